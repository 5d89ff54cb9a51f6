//! Text to token ids and back, exactly as the model's own files say.
//!
//! A wrapper of the `tokenizers` crate that adds what a trainer must not get wrong: every id that
//! leaves [`Tokenizer::encode`] is a row of the embedding; truncation and padding baked into a file
//! are off; a panic in the crate is an error; and the begin token is put by one rule only, here.
//!
//! - The begin tokens are what the file's post-processor puts in front of a text, or, where
//!   `add_bos_token` of `tokenizer_config.json` is set, what that says. They are added by
//!   [`Special::Add`] and nowhere else, and not where the text starts with them already (as a
//!   rendered chat may). `add_eos_token` plays no part: records always get their end token, prompts
//!   never.
//! - The end token is `eos_token` of the tokenizer, as in Hugging Face's trainers (see
//!   [`super::special`]); generation also stops at the ids of `generation_config.json`.
//!   Begin, end and padding may be one id: nothing here or later asks an id what it is for,
//!   supervision is decided by position.
//!
//! Some models list more special tokens than the embedding has rows (Gemma 3 1B names an image
//! token past its end). Such a token is refused when a text uses it, not at load.
//!
//! Next: [`super::template`] for chats, [`super::tokenize`] for records.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use tokenizers::{PostProcessorWrapper, Tokenizer as Inner};

use super::quiet;
use super::special::{Declared, TokenizerFiles};
use super::template::{ChatTemplate, Moment};
use crate::error::{Error, Place, escape};

/// Whether the begin tokens are put in front of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// As for the start of a text.
    Add,
    /// As for the middle of a text, or where a chat template wrote them itself.
    None,
}

/// Token ids with the bytes of the text that each stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, each below the model's vocabulary size.
    pub ids: Vec<u32>,
    /// For each id its byte range in the text; begin tokens have the empty range `0..0`.
    pub bytes: Vec<Range<usize>>,
}

/// A model's tokenizer with its special tokens and its chat template.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Inner,
    place: Place,
    vocab_size: usize,
    begin: Vec<u32>,
    end: Option<u32>,
    stop: Vec<u32>,
    template: Option<ChatTemplate>,
    /// Special tokens that are declared and that the vocabulary does not have.
    split_specials: Vec<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model whose embedding has `vocab_size` rows. `now` is the date
    /// that chat templates see.
    ///
    /// # Errors
    /// [`Error::Input`] for files that are damaged or do not fit the model, [`Error::Io`] for files
    /// that cannot be read.
    pub fn load(files: &TokenizerFiles, vocab_size: usize, now: Moment) -> Result<Self, Error> {
        let path = &files.tokenizer_json;
        let place = Place::file(path);
        refuse_older_formats(path)?;
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let mut inner = parse(&bytes).map_err(|what| unusable(&place, &what))?;
        check_ids(&inner, vocab_size, &place)?;
        let declared = Declared::read(files)?;
        check_end_ids(&declared.end_ids, files, vocab_size)?;
        let id = |name: &str| declared.token(name).and_then(|text| inner.token_to_id(text));
        let (bos, eos) = (id("bos_token"), id("eos_token"));
        let begin = match (declared.add_bos, bos) {
            (Some(true), Some(bos)) => vec![bos],
            (Some(false), _) => Vec::new(),
            _ => post_processor_prefix(&inner).map_err(|what| unusable(&place, &what))?,
        };
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let mut tokenizer = Self {
            inner,
            place,
            vocab_size,
            begin,
            end: eos.or_else(|| declared.end_ids.first().copied()),
            stop: stop_ids(eos, &declared.end_ids),
            template: None,
            split_specials: Vec::new(),
        };
        tokenizer.check_special_ids()?;
        let declared_tokens = declared.tokens.iter().map(|(_, text)| text);
        let unknown = declared_tokens.filter(|text| tokenizer.inner.token_to_id(text).is_none());
        tokenizer.split_specials = unknown.cloned().collect();
        tokenizer.template = ChatTemplate::load(files, declared, now)?;
        Ok(tokenizer)
    }

    /// Writes `text` as token ids.
    ///
    /// # Errors
    /// [`Error::Input`] where the file's rules fail on this text or give a token that the model's
    /// embedding does not have.
    pub fn encode(&self, text: &str, special: Special) -> Result<Encoded, Error> {
        let encoding = quiet::catch(|| self.inner.encode(text, false))
            .and_then(|result| result.map_err(|error| error.to_string()))
            .map_err(|what| unusable(&self.place, &what))?;
        self.check_encodable(encoding.get_ids())?;
        let mut ids = encoding.get_ids().to_vec();
        let offsets = encoding.get_offsets().iter();
        let mut bytes: Vec<Range<usize>> = offsets.map(|&(start, end)| start..end).collect();
        if special == Special::Add && !ids.starts_with(&self.begin) {
            ids.splice(..0, self.begin.iter().copied());
            bytes.splice(..0, self.begin.iter().map(|_| 0..0));
        }
        Ok(Encoded { ids, bytes })
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Input`] where the file's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        quiet::catch(|| self.inner.decode(ids, true))
            .and_then(|result| result.map_err(|error| error.to_string()))
            .map_err(|what| unusable(&self.place, &what))
    }

    /// A decoder of tokens that arrive one by one after `prompt`.
    pub fn stream(&self, prompt: &[u32]) -> Result<TextStream<'_>, Error> {
        TextStream::after(self, prompt)
    }

    /// How a token is written in the vocabulary file; `None` for an id without a token.
    pub fn token_name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokens that stand in front of every text; mostly one (BOS) or none.
    pub fn begin(&self) -> &[u32] {
        &self.begin
    }

    /// The token that ends a text, where the model has one.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// Tokens at which generation stops: the end token and those of `generation_config.json`.
    pub fn stop(&self) -> &[u32] {
        &self.stop
    }

    /// Special tokens that the tokenizer's files name and that it splits, because its vocabulary does not
    /// have them.
    pub fn split_specials(&self) -> &[String] {
        &self.split_specials
    }

    /// The model's chat template, where it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Rows of the model's embedding; every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn check_special_ids(&self) -> Result<(), Error> {
        let special = self.begin.iter().chain(&self.end).chain(&self.stop);
        match special.copied().find(|&id| id as usize >= self.vocab_size) {
            Some(id) => Err(self.too_large(id)),
            None => Ok(()),
        }
    }

    fn check_encodable(&self, ids: &[u32]) -> Result<(), Error> {
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(&id) => Err(self.too_large(id)),
            None => Ok(()),
        }
    }

    fn too_large(&self, id: u32) -> Error {
        let name = self.token_name(id).unwrap_or_default();
        too_large(&self.place, &name, id, self.vocab_size)
    }
}

/// Older models have only the files from which `tokenizer.json` is made.
fn refuse_older_formats(path: &Path) -> Result<(), Error> {
    let beside = |name: &str| path.with_file_name(name).is_file();
    let old = ["tokenizer.model", "vocab.json"].into_iter().find(|name| beside(name));
    match old {
        Some(old) if !path.is_file() => {
            let what = format!(
                "is not there, only {old}; make it with transformers: \
                 AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            );
            Err(Error::input(path, what))
        }
        _ => Ok(()),
    }
}

fn too_large(place: &Place, name: &str, id: u32, vocab_size: usize) -> Error {
    let name = escape(name);
    Error::input(
        place.clone(),
        format!(
            "the token `{name}` has id {id}, but the model's embedding has {vocab_size} rows; \
             use the tokenizer that belongs to this model"
        ),
    )
}

fn unusable(place: &Place, what: &str) -> Error {
    let what = escape(what);
    Error::input(
        place.clone(),
        format!("the tokenizer fails: {what}; copy the file from the model again"),
    )
}

fn parse(bytes: &[u8]) -> Result<Inner, String> {
    quiet::catch(|| -> Result<Inner, String> {
        let mut inner = Inner::from_bytes(bytes).map_err(|error| error.to_string())?;
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        Ok(inner)
    })?
}

/// Every id has one token, and every ordinary token has a row of the embedding.
fn check_ids(inner: &Inner, vocab_size: usize, place: &Place) -> Result<(), Error> {
    let added = inner.get_added_tokens_decoder();
    let mut names: Vec<(String, u32)> = inner.get_vocab(true).into_iter().collect();
    names.sort_unstable();
    let mut by_id = HashMap::with_capacity(names.len());
    for (name, id) in &names {
        if let Some(other) = by_id.insert(*id, name) {
            let (one, two) = (escape(other), escape(name));
            let what = format!(
                "the tokens `{one}` and `{two}` have the same id {id}; \
                 copy the file from the model again"
            );
            return Err(Error::input(place.clone(), what));
        }
        let special = added.get(id).is_some_and(|token| token.special);
        if *id as usize >= vocab_size && !special {
            return Err(too_large(place, name, *id, vocab_size));
        }
    }
    Ok(())
}

/// The model can say every id at which generation stops.
fn check_end_ids(ids: &[u32], files: &TokenizerFiles, vocab_size: usize) -> Result<(), Error> {
    let large = ids.iter().find(|&&id| id as usize >= vocab_size);
    match (large, &files.generation_config) {
        (Some(id), Some(path)) => {
            let what = format!(
                "holds {id}, but the model's embedding has {vocab_size} rows; \
                 use the file that belongs to this model"
            );
            Err(Error::input(Place::file(path).field("eos_token_id"), what))
        }
        _ => Ok(()),
    }
}

/// What the file's post-processor puts in front of a text.
fn post_processor_prefix(inner: &Inner) -> Result<Vec<u32>, String> {
    quiet::catch(|| -> Result<Vec<u32>, String> {
        let probe = "a";
        let with = inner.encode(probe, true).map_err(|error| error.to_string())?;
        let plain = inner.encode(probe, false).map_err(|error| error.to_string())?;
        let (with, plain) = (with.get_ids(), plain.get_ids());
        let at = with.windows(plain.len().max(1)).position(|window| window == plain);
        Ok(with[..at.unwrap_or(0)].to_vec())
    })?
}

fn stop_ids(eos: Option<u32>, declared: &[u32]) -> Vec<u32> {
    let mut ids: Vec<u32> = eos.into_iter().collect();
    for &id in declared {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// Decodes tokens as they arrive: a character whose bytes are spread over tokens comes out whole,
/// and spaces between tokens as in the full text.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Context and everything that is not shown yet.
    ids: Vec<u32>,
    /// The text of the tokens that are shown already.
    shown: String,
    /// Lengths of `ids` at which its text ended with a whole character. Only there may it be
    /// divided: a decoder spoils all bytes behind half a character.
    whole: Vec<usize>,
}

/// Tokens of context that decide how the next one is written (leading spaces).
const CONTEXT: usize = 8;
/// Tokens that may be held back until a character is whole; more are broken bytes.
const HELD_BACK: usize = 16;

impl<'a> TextStream<'a> {
    fn after(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self, Error> {
        let mut context = CONTEXT.min(prompt.len());
        let mut shown = tokenizer.decode(&prompt[prompt.len() - context..])?;
        while shown.starts_with(char::REPLACEMENT_CHARACTER)
            && context < prompt.len().min(CONTEXT + 4)
        {
            context += 1;
            shown = tokenizer.decode(&prompt[prompt.len() - context..])?;
        }
        let ids = prompt[prompt.len() - context..].to_vec();
        Ok(Self { tokenizer, whole: vec![ids.len()], ids, shown })
    }

    /// Takes the next token; the text that is certain now, often empty within a character.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let held_back = self.ids.len() - self.whole.last().unwrap_or(&0);
        if text.ends_with(char::REPLACEMENT_CHARACTER) && held_back < HELD_BACK {
            return Ok(String::new());
        }
        let new = text[common_prefix(&text, &self.shown)..].to_string();
        self.shown = text;
        self.whole.push(self.ids.len());
        self.forget()?;
        Ok(new)
    }

    /// What is still held back, where the last character never became whole.
    pub fn finish(self) -> Result<String, Error> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text[common_prefix(&text, &self.shown)..].to_string())
    }

    /// Drops old context, so that a token of a long text costs no more than one of a short text.
    fn forget(&mut self) -> Result<(), Error> {
        let keep = self.ids.len().saturating_sub(CONTEXT);
        let Some(&cut) = self.whole.iter().rfind(|&&cut| cut <= keep) else {
            return Ok(());
        };
        if cut >= CONTEXT {
            self.ids.drain(..cut);
            self.whole.retain(|&whole| whole >= cut);
            self.whole.iter_mut().for_each(|whole| *whole -= cut);
            self.shown = self.tokenizer.decode(&self.ids)?;
        }
        Ok(())
    }
}

/// Bytes that two texts have in common at their start, on a character boundary.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(x, y)| x == y);
    same.map(|(x, _)| x.len_utf8()).sum()
}
