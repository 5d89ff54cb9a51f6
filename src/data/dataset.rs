//! All records of a run as tokens, with a report of what will be learned from them.
//!
//! The report is the promise that nothing is silent: how many records were cut, which were dropped
//! and why, how many tokens are targets, and how often an end token is one of them. A data set that
//! teaches nothing is refused here, before a weight is loaded.
//!
//! A record longer than the sequence length is cut at its end and counted. A `.txt` file is never
//! cut: it becomes consecutive pieces; each begins with the last token of the one before, so that
//! every token of the file is a target once.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::record::{self, Record, Refusal};
use super::report::{DataReport, Dropped, RecordKind};
use super::source::{Kind, Piece, Source};
use super::tokenize::{Marked, TrainOn, tokenize};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Place};
use crate::json;

/// What is made of the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Longest sequence in tokens, at least 2.
    pub seq_len: usize,
    /// Rows of the model's embedding; ids of records are below it.
    pub vocab_size: usize,
    /// Which tokens are supervised.
    pub train_on: TrainOn,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Index into the data files.
    pub file: usize,
    /// Line of the file, from 1.
    pub line: usize,
    /// Ordinal of the record over all files, from 0; records that are dropped count too.
    pub record: usize,
}

impl Origin {
    /// Where that is in `files`.
    pub fn place(&self, files: &[PathBuf]) -> Place {
        let file = files.get(self.file).map_or(Path::new("data"), PathBuf::as_path);
        Place::file(file).line(self.line)
    }
}

/// A sequence to learn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids, at least 2 and at most `seq_len`.
    pub tokens: Vec<u32>,
    /// For each token whether it is a target: to be predicted from the tokens before it. Never the
    /// first one.
    pub supervised: Vec<bool>,
    /// The record it comes from.
    pub origin: Origin,
}

impl Example {
    /// How many tokens are targets.
    pub fn supervised_count(&self) -> usize {
        self.supervised.iter().filter(|&&target| target).count()
    }
}

/// Everything to learn from, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Sequences in the order of files and lines.
    pub examples: Vec<Example>,
    /// What was read, cut and dropped.
    pub report: DataReport,
}

/// Records that are read before their errors are looked at: bounds the work behind a bad line.
const CHUNK: usize = 1024;

impl Dataset {
    /// Reads `files` in order. The tokenizer may be absent where all records have `input_ids`.
    ///
    /// # Errors
    /// [`Error::Input`] for the first record in file order that cannot be used, and for files that
    /// teach nothing; [`Error::Io`] for files that cannot be read.
    pub fn load(
        files: &[PathBuf],
        tokenizer: Option<&Tokenizer>,
        policy: &Policy,
    ) -> Result<Self, Error> {
        assert!(policy.seq_len >= 2, "seq_len {} < 2", policy.seq_len);
        let (examples, report) = (Vec::new(), DataReport::default());
        let mut dataset = Self { examples, report };
        for (file, path) in files.iter().enumerate() {
            let source = Source::read(path)?;
            let reader = Reader { path, source: &source, tokenizer, policy };
            for chunk in source.pieces.chunks(CHUNK) {
                let read: Vec<_> = chunk.par_iter().map(|piece| reader.read(piece)).collect();
                for (piece, records) in chunk.iter().zip(read) {
                    for marked in records? {
                        let record = dataset.report.records;
                        let origin = Origin { file, line: piece.line, record };
                        dataset.add(marked, origin, &reader);
                    }
                }
            }
        }
        dataset.refuse_empty(files)?;
        Ok(dataset)
    }

    fn add(&mut self, marked: Marked, origin: Origin, reader: &Reader<'_>) {
        let place = || Place::file(reader.path).line(origin.line);
        let kind = marked.kind;
        self.report.records += 1;
        self.report.kinds.entry(kind).or_default().records += 1;
        self.report.split_borders += usize::from(marked.split);
        self.note_specials(&marked, reader.tokenizer, &place);
        if !marked.supervised.contains(&true) {
            return self.report.dropped.push((place(), Dropped::NothingSupervised));
        }
        if reader.source.kind == Kind::Text {
            return self.add_pieces(marked, origin, reader);
        }
        let seq_len = reader.policy.seq_len;
        let Marked { mut tokens, mut supervised, .. } = marked;
        if tokens.len() > seq_len {
            self.report.cut.push(place());
            self.report.kinds.entry(kind).or_default().cut += 1;
            self.report.cut_tokens += tokens.len() - seq_len;
            tokens.truncate(seq_len);
            supervised.truncate(seq_len);
        }
        if !supervised.contains(&true) {
            return self.report.dropped.push((place(), Dropped::AnswerCut));
        }
        self.push(Example { tokens, supervised, origin }, kind, reader.tokenizer);
    }

    fn add_pieces(&mut self, document: Marked, origin: Origin, reader: &Reader<'_>) {
        let (seq_len, length) = (reader.policy.seq_len, document.tokens.len());
        for start in (0..length - 1).step_by(seq_len - 1) {
            let end = length.min(start + seq_len);
            let tokens = document.tokens[start..end].to_vec();
            let mut supervised = document.supervised[start..end].to_vec();
            supervised[0] = false;
            if supervised.contains(&true) {
                self.push(
                    Example { tokens, supervised, origin },
                    RecordKind::Text,
                    reader.tokenizer,
                );
            }
        }
    }

    /// Notes begin tokens that are there twice or not at all, and special tokens that are split.
    fn note_specials(
        &mut self,
        marked: &Marked,
        tokenizer: Option<&Tokenizer>,
        place: &impl Fn() -> Place,
    ) {
        let begin = tokenizer.map_or(&[][..], Tokenizer::begin);
        if !begin.is_empty() {
            match marked.tokens.strip_prefix(begin) {
                None => self.report.begin_missing.push(place()),
                Some(rest) if rest.starts_with(begin) => self.report.begin_twice.push(place()),
                Some(_) => (),
            }
        }
        for token in &marked.split_specials {
            self.report.split_specials.entry(token.clone()).or_insert_with(place);
        }
    }

    fn push(&mut self, example: Example, kind: RecordKind, tokenizer: Option<&Tokenizer>) {
        let stop = tokenizer.map_or(&[][..], Tokenizer::stop);
        let mut targets = example.tokens.iter().zip(&example.supervised);
        let ends = targets.any(|(id, &target)| target && stop.contains(id));
        let of_kind = self.report.kinds.entry(kind).or_default();
        of_kind.sequences += 1;
        of_kind.tokens += example.tokens.len();
        of_kind.supervised += example.supervised_count();
        of_kind.ends += usize::from(ends);
        self.report.end_token_supervised += usize::from(ends);
        self.report.examples += 1;
        self.report.tokens += example.tokens.len();
        self.report.supervised_tokens += example.supervised_count();
        self.examples.push(example);
    }

    fn refuse_empty(&self, files: &[PathBuf]) -> Result<(), Error> {
        if !self.examples.is_empty() {
            return Ok(());
        }
        let what = match self.report.dropped.first() {
            None => "holds no record; give a file with at least one".to_string(),
            Some((place, reason)) => format!(
                "teaches nothing: all {} records are dropped; the first is {place}: {reason}",
                self.report.records
            ),
        };
        let place = files.first().map_or_else(|| Place::flag("DATA"), Place::from);
        Err(Error::input(place, what))
    }
}

struct Reader<'a> {
    path: &'a Path,
    source: &'a Source,
    tokenizer: Option<&'a Tokenizer>,
    policy: &'a Policy,
}

impl Reader<'_> {
    fn read(&self, piece: &Piece) -> Result<Vec<Marked>, Error> {
        let bytes = &self.source.bytes[piece.bytes.clone()];
        let records = match self.source.kind {
            Kind::Text => vec![self.document(bytes)?],
            Kind::Json => self.records(bytes, piece.line)?,
        };
        let tokens = |record: &Record| {
            let marked = tokenize(record, self.tokenizer, self.policy.train_on)?;
            check_ids(record, self.policy.vocab_size)?;
            Ok(marked)
        };
        let marked: Result<_, Refusal> = records.iter().map(tokens).collect();
        marked.map_err(|refusal| self.error(piece.line, refusal))
    }

    fn records(&self, bytes: &[u8], line: usize) -> Result<Vec<Record>, Error> {
        let value = json::parse_bytes(bytes).map_err(|fault| {
            let place = Place::file(self.path).line(line + fault.line - 1);
            Error::input(place, fault.what)
        })?;
        record::read(&value).map_err(|refusal| self.error(line, refusal))
    }

    fn document(&self, bytes: &[u8]) -> Result<Record, Error> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            let what = "is not UTF-8 here; convert the file to UTF-8";
            Error::input(Place::file(self.path).line(line), what)
        })?;
        Ok(Record::Text(text.replace("\r\n", "\n")))
    }

    fn error(&self, line: usize, refusal: Refusal) -> Error {
        let place = Place::file(self.path).line(line);
        let place = match refusal.field.as_str() {
            "" => place,
            field => place.field(field),
        };
        Error::input(place, refusal.what)
    }
}

fn check_ids(record: &Record, vocab_size: usize) -> Result<(), Refusal> {
    let Record::Ids { ids, .. } = record else {
        return Ok(());
    };
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            let what = format!("holds the id {id}; the model's embedding has {vocab_size} rows");
            Err(Refusal::new("input_ids", what))
        }
    }
}
