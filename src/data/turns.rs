//! Which part of a rendered conversation each assistant turn is.
//!
//! A template is a program, so the question is put to it: the same conversation is rendered in
//! variants, and where the renderings agree and differ tells where a turn stands.
//!
//! - It **starts** where the rendering of all earlier messages plus the generation prompt ends: that
//!   is what the model sees when it has to answer. Templates that write an earlier turn differently
//!   later on (they drop its reasoning, move the system message, put `<think>` into the prompt) break
//!   that prefix. There the start is the end of the last generation prompt before the place where
//!   the text changes when another answer is put in, or that place itself.
//! - It **ends** where the rendering up to and including it ends, so that the end-of-turn token
//!   belongs to it. Where that is not a prefix either (Phi-3 closes every conversation with one more
//!   token), the end is found by laying what follows the answer in both renderings side by side.
//!
//! Templates with `{% generation %}` say it themselves and are not asked; see [`super::tokenize`].

use std::ops::Range;

use serde_json::Value;

use super::template::{ChatTemplate, Conversation, GenerationPrompt};
use super::tokenizer::common_prefix;

/// A noncharacter: an answer that no template expects and no text contains.
const PROBE: &str = "\u{FDD2}";

/// Byte range of the assistant message `index` in `full`, the rendering of all `messages`; `None`
/// where the template does not show it.
pub fn turn_span(
    template: &ChatTemplate,
    messages: &[Value],
    tools: Option<&Value>,
    full: &str,
    index: usize,
) -> Option<Range<usize>> {
    let conversation = Conversation::new(messages, tools);
    let turn = Turn {
        template,
        probed: conversation.with_message(index, &probe(&messages[index])),
        conversation,
        full,
        index,
    };
    let start = turn.start();
    let end = if index + 1 == messages.len() { Some(full.len()) } else { turn.end(start) };
    end.filter(|&end| end > start).map(|end| start..end)
}

/// The message with everything that the model wrote replaced.
fn probe(message: &Value) -> Value {
    let mut probe = message.clone();
    let calls = probe.get_mut("tool_calls").and_then(Value::as_array_mut);
    let has_calls = calls.as_ref().is_some_and(|calls| !calls.is_empty());
    for call in calls.into_iter().flatten() {
        if let Some(name) = call.pointer_mut("/function/name") {
            *name = PROBE.into();
        }
    }
    for key in ["content", "reasoning_content", "thinking"] {
        let keep_empty = has_calls || key != "content";
        if let Some(Value::String(text)) = probe.get_mut(key)
            && !(text.is_empty() && keep_empty)
        {
            *text = PROBE.to_string();
        }
    }
    probe
}

struct Turn<'a> {
    template: &'a ChatTemplate,
    conversation: Conversation,
    probed: Conversation,
    full: &'a str,
    index: usize,
}

impl Turn<'_> {
    fn start(&self) -> usize {
        let before = self.conversation.first(self.index);
        let prompt = self.render(&before, GenerationPrompt::Add);
        if let Some(prompt) = prompt.as_ref().filter(|prompt| self.full.starts_with(*prompt)) {
            return prompt.len();
        }
        let probed = self.render(&self.probed, GenerationPrompt::Omit);
        let content = probed.map_or(0, |probed| common_prefix(self.full, &probed));
        let plain = self.render(&before, GenerationPrompt::Omit);
        let header = match (&prompt, &plain) {
            (Some(prompt), Some(plain)) => prompt.strip_prefix(plain.as_str()).unwrap_or_default(),
            _ => "",
        };
        let found = self.full[..content].rfind(header).filter(|_| !header.is_empty());
        found.map_or(content, |at| at + header.len())
    }

    fn end(&self, start: usize) -> Option<usize> {
        let upto = self.index + 1;
        let closed = self.render(&self.conversation.first(upto), GenerationPrompt::Omit)?;
        if self.full.starts_with(&closed) {
            return Some(closed.len());
        }
        let probed = self.render(&self.probed, GenerationPrompt::Omit)?;
        let probed_closed = self.render(&self.probed.first(upto), GenerationPrompt::Omit)?;
        let after = content_end(self.full, &probed).max(start);
        let after_closed = content_end(&closed, &probed_closed);
        let (rest, rest_closed) = (&self.full[after..], &closed[after_closed..]);
        let same = common_prefix(rest, rest_closed);
        Some(after + whole_marks(&rest[..same], rest_closed.len() - same))
    }

    fn render(&self, conversation: &Conversation, prompt: GenerationPrompt) -> Option<String> {
        let rendered = self.template.render(conversation, prompt);
        rendered.ok().map(|rendered| rendered.text)
    }
}

/// Where the text that follows the answer begins in `text`, seen from the end.
fn content_end(text: &str, probed: &str) -> usize {
    let same = text.chars().rev().zip(probed.chars().rev()).take_while(|(a, b)| a == b);
    text.len() - same.map(|(c, _)| c.len_utf8()).sum::<usize>()
}

/// Length of `same` without the first characters of a mark (`</s>`, `<|user|>`) in which the two
/// texts only began alike; `left` bytes of the other text were not matched.
fn whole_marks(same: &str, left: usize) -> usize {
    match same.rfind('<') {
        Some(open) if left > 0 && !same[open..].contains('>') => open,
        _ => same.len(),
    }
}
