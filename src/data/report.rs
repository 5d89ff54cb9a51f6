//! What was read of the data, and whether it can teach what it should: told before anything is learned.

use std::collections::BTreeMap;
use std::fmt;

use super::tokenizer::Tokenizer;
use crate::error::Place;

/// What a record is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKind {
    /// `text`, or a text file.
    #[default]
    Text,
    /// `prompt` and `completion` as texts.
    Completion,
    /// `instruction` and `output`.
    Instruction,
    /// Messages.
    Conversation,
    /// `input_ids`.
    Ids,
}

impl RecordKind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Completion => "prompt and completion",
            Self::Instruction => "instruction",
            Self::Conversation => "conversation",
            Self::Ids => "input_ids",
        }
    }

    /// Whether it is an answer, which has an end that can be learned.
    fn is_answer(self) -> bool {
        matches!(self, Self::Completion | Self::Instruction | Self::Conversation)
    }
}

/// Counts of the records of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records read.
    pub records: usize,
    /// Sequences made from them.
    pub sequences: usize,
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Targets among them.
    pub supervised: usize,
    /// Sequences in which a token that ends generation is a target.
    pub ends: usize,
    /// Records that were longer than a sequence.
    pub cut: usize,
}

/// Why nothing is learned from a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// All of its supervised tokens lie behind the sequence length.
    AnswerCut,
    /// None of its tokens is supervised.
    NothingSupervised,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AnswerCut => "its answer starts behind the sequence length (--seq-len)",
            Self::NothingSupervised => "it has no answer to learn",
        })
    }
}

/// What was read, cut and dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataReport {
    /// Records read.
    pub records: usize,
    /// Sequences made from them.
    pub examples: usize,
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Targets among them.
    pub supervised_tokens: usize,
    /// The same by kind of record.
    pub kinds: BTreeMap<RecordKind, Counts>,
    /// Records that were longer than a sequence.
    pub cut: Vec<Place>,
    /// Tokens lost by cutting.
    pub cut_tokens: usize,
    /// Records that teach nothing, with the reason.
    pub dropped: Vec<(Place, Dropped)>,
    /// Sequences in which a token that ends generation is a target. 0 means: a model that is
    /// trained on this will not learn to stop. Not known (0) without a tokenizer.
    pub end_token_supervised: usize,
    /// Prompt and completion records whose border fell into a token.
    pub split_borders: usize,
    /// Records that begin with the begin token twice.
    pub begin_twice: Vec<Place>,
    /// Records without the begin token that the tokenizer puts in front of a text.
    pub begin_missing: Vec<Place>,
    /// Special tokens that the chat template has written and the tokenizer splits, with the first record.
    pub split_specials: BTreeMap<String, Place>,
}

impl DataReport {
    /// Why nothing should be learned from this data, with the way out; the place where it shows first.
    pub fn refusal(&self, tokenizer: Option<&Tokenizer>) -> Option<(Option<Place>, String)> {
        if let Some((token, place)) = self.split_specials.iter().next() {
            let what = format!(
                "the chat template writes the special token {token}, which the tokenizer does not know and \
                 splits: give the tokenizer.json that belongs to the template, or the template that belongs \
                 to the tokenizer"
            );
            return Some((Some(place.clone()), what));
        }
        let answers = || self.kinds.iter().filter(|(kind, _)| kind.is_answer()).map(|(_, c)| c);
        let sum = |of: fn(&Counts) -> usize| answers().map(of).sum::<usize>();
        let stop = tokenizer.and_then(|t| t.token_name(*t.stop().first()?))?;
        let whole = sum(|c| c.sequences) > sum(|c| c.cut);
        (whole && sum(|c| c.ends) == 0).then(|| {
            let what = format!(
                "no answer ends in a token that the model stops at ({stop}): it would never learn to stop; give a \
                 chat template that ends each turn with it, or name the template's own end token as \
                 eos_token_id in generation_config.json"
            );
            (None, what)
        })
    }
}
