//! A record becomes tokens, and for each token whether it is a target.
//!
//! - **Text**: begin token, text, end token; all of it taught.
//! - **Prompt and completion** (strings): the ids are those of the joined text wherever these begin
//!   with the ids of the prompt alone; generation starts from the prompt alone, so that is what
//!   training has to show. Where a token would straddle the border (`"x: "` + `"4"`), the prompt's
//!   own ids are kept and the completion is encoded by itself, as the middle of a text. TRL warns in
//!   this case and trains on ids that generation never sees. Strings stay plain text even where the
//!   model has a chat template.
//! - **Instructions** become a conversation, or Alpaca's prompt where there is no template.
//! - **Conversations** are rendered once and encoded once; spans of the text are mapped to tokens by
//!   their byte ranges. Each assistant turn is taught with its end-of-turn token.
//!
//! Supervision is by position. The first token, and begin tokens, are never targets: nothing comes
//! before them. Cutting to length and counting is [`super::dataset`]'s business.

use std::ops::Range;

use serde_json::{Value, json};

use super::chat::Chat;
use super::record::{Instruction, Record, Refusal};
use super::report::RecordKind;
use super::template::{ChatTemplate, Conversation, GenerationPrompt};
use super::tokenizer::{Encoded, Special, Tokenizer};
use super::turns;
use crate::error::Error;

/// Which tokens are supervised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainOn {
    /// The answers; all of a `text` record.
    Completion,
    /// Every token.
    All,
}

/// Tokens of a whole record, not yet cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marked {
    pub tokens: Vec<u32>,
    pub supervised: Vec<bool>,
    /// The completion was encoded by itself, because a token straddled the border.
    pub split: bool,
    /// What the record is.
    pub kind: RecordKind,
    /// Special tokens that the chat template has written and the tokenizer splits.
    pub split_specials: Vec<String>,
}

impl Marked {
    /// Everything supervised from token `start` on.
    fn taught_from(tokens: Vec<u32>, start: usize) -> Self {
        let supervised = (0..tokens.len()).map(|index| index >= start).collect();
        Self { tokens, supervised, ..Self::default() }
    }

    fn unsupervise_first(&mut self, count: usize) {
        let count = count.max(1).min(self.supervised.len());
        self.supervised[..count].fill(false);
    }
}

/// Writes a record as tokens. Records of ids need no tokenizer.
pub(super) fn tokenize(
    record: &Record,
    tokenizer: Option<&Tokenizer>,
    train_on: TrainOn,
) -> Result<Marked, Refusal> {
    let present = || tokenizer.ok_or_else(no_tokenizer);
    let mut marked = match record {
        Record::Ids { ids, supervised } => {
            let (tokens, supervised) = (ids.clone(), supervised.clone());
            let kind = RecordKind::Ids;
            let mut given = Marked { tokens, supervised, kind, ..Marked::default() };
            given.unsupervise_first(1);
            return Ok(given);
        }
        Record::Text(text) => plain_text(present()?, text),
        Record::Completion { prompt, completion } => joined(present()?, prompt, completion),
        Record::Instruction(record) => instruction(present()?, record),
        Record::Chat(chat) => conversation(present()?, chat),
    }?;
    marked.kind = match record {
        Record::Text(_) => RecordKind::Text,
        Record::Completion { .. } => RecordKind::Completion,
        Record::Instruction(_) => RecordKind::Instruction,
        Record::Chat(_) => RecordKind::Conversation,
        Record::Ids { .. } => RecordKind::Ids,
    };
    if train_on == TrainOn::All {
        marked.supervised.fill(true);
    }
    let begin = tokenizer.map_or(&[][..], Tokenizer::begin);
    let begins = marked.tokens.starts_with(begin);
    marked.unsupervise_first(if begins { begin.len() } else { 0 });
    Ok(marked)
}

fn no_tokenizer() -> Refusal {
    let what = "needs a tokenizer, but the model has no tokenizer.json; add it, or give records \
                with input_ids";
    Refusal::new("", what)
}

fn plain_text(tokenizer: &Tokenizer, text: &str) -> Result<Marked, Refusal> {
    let tokens = encode(tokenizer, text, Special::Add)?.ids;
    Ok(Marked::taught_from(ended(tokenizer, tokens), 0))
}

/// Adds the end token, unless the text ends with it.
fn ended(tokenizer: &Tokenizer, mut tokens: Vec<u32>) -> Vec<u32> {
    let has_end =
        tokens.len() > tokenizer.begin().len() && tokens.last().copied() == tokenizer.end();
    if !has_end {
        tokens.extend(tokenizer.end());
    }
    tokens
}

fn joined(tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Result<Marked, Refusal> {
    let alone = encode(tokenizer, prompt, Special::Add)?.ids;
    let whole = encode(tokenizer, &format!("{prompt}{completion}"), Special::Add)?.ids;
    let (start, split) = (alone.len(), !whole.starts_with(&alone));
    let tokens = if split {
        let rest = continuation(tokenizer, completion)?;
        alone.into_iter().chain(rest).collect()
    } else {
        whole
    };
    let marked = Marked::taught_from(ended(tokenizer, tokens), start);
    Ok(Marked { split, ..marked })
}

/// Encodes `text` as the middle of a text: behind an anchor that shares no token with it, so that
/// no begin-of-text space is put in front.
fn continuation(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Refusal> {
    for anchor in ["\n", ".", "a"] {
        let encoded = encode(tokenizer, &format!("{anchor}{text}"), Special::None)?;
        let border = anchor.len();
        let before = encoded.bytes.iter().take_while(|bytes| bytes.end <= border).count();
        let clean = encoded.bytes[before..].iter().all(|bytes| bytes.start >= border);
        if before > 0 && clean {
            return Ok(encoded.ids[before..].to_vec());
        }
    }
    encode(tokenizer, text, Special::None).map(|encoded| encoded.ids)
}

fn instruction(tokenizer: &Tokenizer, record: &Instruction) -> Result<Marked, Refusal> {
    if tokenizer.chat_template().is_none() {
        return joined(tokenizer, &alpaca_prompt(record), &record.output);
    }
    let mut messages = Vec::new();
    let mut say = |role: &str, content: &str| {
        messages.push(json!({"role": role, "content": content}));
    };
    if let Some(system) = &record.system {
        say("system", system);
    }
    for (question, answer) in &record.history {
        say("user", question);
        say("assistant", answer);
    }
    match record.input.as_str() {
        "" => say("user", &record.instruction),
        input => say("user", &format!("{}\n{input}", record.instruction)),
    }
    say("assistant", &record.output);
    conversation(tokenizer, &Chat::answer_last(messages))
}

/// The prompt that Stanford's Alpaca models were trained with; earlier rounds stand before it in the
/// same form, and a system text takes the place of the opening words.
fn alpaca_prompt(record: &Instruction) -> String {
    let context = if record.input.is_empty() {
        ""
    } else {
        ", paired with an input that provides further context"
    };
    let opening = format!(
        "Below is an instruction that describes a task{context}. Write a response that \
         appropriately completes the request."
    );
    let mut prompt = record.system.clone().unwrap_or(opening);
    for (question, answer) in &record.history {
        prompt += &format!("\n\n### Instruction:\n{question}\n\n### Response:\n{answer}");
    }
    prompt += &format!("\n\n### Instruction:\n{}", record.instruction);
    if !record.input.is_empty() {
        prompt += &format!("\n\n### Input:\n{}", record.input);
    }
    prompt + "\n\n### Response:\n"
}

fn conversation(tokenizer: &Tokenizer, chat: &Chat) -> Result<Marked, Refusal> {
    let template = tokenizer.chat_template().ok_or_else(|| {
        let what = "is a conversation, but the model has no chat template; add \
                    chat_template.jinja beside tokenizer.json, or give prompt and completion";
        Refusal::new("", what)
    })?;
    let whole = Conversation::new(&chat.messages, chat.tools.as_ref());
    let rendered = template.render(&whole, GenerationPrompt::Omit).map_err(refusal)?;
    refuse_hidden_calls(template, chat, &rendered.text)?;
    let encoded = encode(tokenizer, &rendered.text, Special::Add)?;
    let spans = |taught| turn_spans(template, chat, &rendered.text, taught);
    let supervised = if template.has_generation() {
        without(covered(&encoded, &rendered.generation), &covered(&encoded, &spans(false)))
    } else {
        compared(tokenizer, &encoded, &spans(true))
    };
    let split = tokenizer.split_specials().iter().filter(|token| rendered.text.contains(&**token));
    let split_specials = split.cloned().collect();
    Ok(Marked { tokens: encoded.ids, supervised, split_specials, ..Marked::default() })
}

/// Targets by the template's own marks, less the turns that are not taught.
fn without(mut marked: Vec<bool>, untaught: &[bool]) -> Vec<bool> {
    marked.iter_mut().zip(untaught).for_each(|(target, off)| *target &= !off);
    marked
}

/// Targets by spans of turns.
fn compared(tokenizer: &Tokenizer, encoded: &Encoded, spans: &[Range<usize>]) -> Vec<bool> {
    let mut supervised = covered(encoded, spans);
    teach_next_stop(tokenizer, encoded, spans, &mut supervised);
    supervised
}

/// Many templates pass over `tool_calls`; the model would be taught to answer with nothing.
fn refuse_hidden_calls(template: &ChatTemplate, chat: &Chat, text: &str) -> Result<(), Refusal> {
    for (index, message) in chat.messages.iter().enumerate() {
        let calls = message.get("tool_calls").and_then(Value::as_array);
        let Some(calls) = calls.filter(|_| chat.taught[index]) else {
            continue;
        };
        let span = turns::turn_span(template, &chat.messages, chat.tools.as_ref(), text, index);
        let answer = span.map_or("", |span| &text[span]);
        let name =
            |call: &Value| call.pointer("/function/name").and_then(Value::as_str).map(String::from);
        if !calls.iter().filter_map(name).all(|name| answer.contains(&name)) {
            let what = "calls a tool, but the model's chat template does not show tool calls; use \
                        a chat_template.jinja that does, or leave such records out";
            return Err(Refusal::new(format!("messages[{index}].tool_calls"), what));
        }
    }
    Ok(())
}

fn is_answer(message: &Value) -> bool {
    message["role"] == "assistant"
}

/// Spans of the assistant turns that are taught, or of those that are not.
fn turn_spans(template: &ChatTemplate, chat: &Chat, text: &str, taught: bool) -> Vec<Range<usize>> {
    let turns = (0..chat.messages.len())
        .filter(|&index| is_answer(&chat.messages[index]) && chat.taught[index] == taught);
    let span = |index| turns::turn_span(template, &chat.messages, chat.tools.as_ref(), text, index);
    turns.filter_map(span).collect()
}

/// Tokens that end within a span. A token that straddles the start holds text of the answer and
/// counts; one that straddles the end holds text of the next turn and does not.
fn covered(encoded: &Encoded, spans: &[Range<usize>]) -> Vec<bool> {
    let inside = |bytes: &Range<usize>, span: &Range<usize>| {
        bytes.start < bytes.end && bytes.end > span.start && bytes.end <= span.end
    };
    let any = |bytes: &Range<usize>| spans.iter().any(|span| inside(bytes, span));
    encoded.bytes.iter().map(any).collect()
}

/// Templates without an end-of-turn token (GLM-4) stop at the next turn's first token; it is taught
/// where generation stops at it and the turn has no other such token.
fn teach_next_stop(
    tokenizer: &Tokenizer,
    encoded: &Encoded,
    spans: &[Range<usize>],
    supervised: &mut [bool],
) {
    let is_stop = |index: usize| tokenizer.stop().contains(&encoded.ids[index]);
    for span in spans {
        let tokens = covered(encoded, std::slice::from_ref(span));
        let Some(last) = tokens.iter().rposition(|&inside| inside) else {
            continue;
        };
        let stops = tokens.iter().enumerate().any(|(index, &inside)| inside && is_stop(index));
        if !stops && last + 1 < tokens.len() && is_stop(last + 1) {
            supervised[last + 1] = true;
        }
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, special: Special) -> Result<Encoded, Refusal> {
    tokenizer.encode(text, special).map_err(refusal)
}

fn refusal(error: Error) -> Refusal {
    Refusal::new("", error.to_string())
}
