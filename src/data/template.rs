//! Chat templates: a conversation becomes the text that the model was trained to see.
//!
//! Jinja as Hugging Face runs it: `trim_blocks` and `lstrip_blocks`, loop controls, Python's string
//! methods, Python's way of writing values, `raise_exception`, `strftime_now`, and the block
//! `{% generation %}` that marks what the model itself writes. A template comes from a downloaded
//! file, so it runs without any access to the machine and with a bounded number of steps.
//!
//! The date that `strftime_now` shows is a parameter ([`Moment`]), not the clock: a run that is
//! resumed on another day must see the same tokens.
//!
//! The values and functions that Python brings are in [`super::python`]; which part of a rendered
//! conversation is an answer is decided in [`super::turns`].

use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, ErrorKind};

use super::python;
pub use super::python::Moment;
use super::quiet;
use super::rewrite::{COPY_FILTER, MARK_FILTER, rewrite};
use super::special::{Declared, TokenizerFiles};
use crate::error::{Error, Place, escape};

/// Whether the rendering ends with the words that ask the model for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// For generation.
    Add,
    /// For training and for conversations that are complete.
    Omit,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, special tokens included.
    pub text: String,
    /// Byte ranges of the parts inside `{% generation %}` blocks, in order.
    pub generation: Vec<Range<usize>>,
}

/// Messages and tools in the form that templates read; cheap to clone.
#[derive(Debug, Clone)]
pub struct Conversation {
    messages: Vec<Value>,
    tools: Value,
}

impl Conversation {
    /// `messages` are objects with `role` and `content`; `tools` is a list of tool schemas.
    pub fn new(messages: &[serde_json::Value], tools: Option<&serde_json::Value>) -> Self {
        Self {
            messages: messages.iter().map(python::value).collect(),
            tools: tools.map_or(Value::from(()), python::value),
        }
    }

    /// The first `count` messages.
    pub fn first(&self, count: usize) -> Self {
        Self { messages: self.messages[..count].to_vec(), tools: self.tools.clone() }
    }

    /// The same with another message at `index`.
    pub fn with_message(&self, index: usize, message: &serde_json::Value) -> Self {
        let mut changed = self.clone();
        changed.messages[index] = python::value(message);
        changed
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    place: Place,
    source: String,
    variables: Vec<(String, Value)>,
    has_generation: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.place)
    }
}

const NAME: &str = "chat_template.jinja";
/// Noncharacters of Unicode around a generation block's text. They never stand in real text.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';
/// Steps of the template engine for one rendering. A long conversation takes some 100,000; an
/// endless loop is stopped after about 0.2 s.
const FUEL: u64 = 4_000_000;
/// A template file larger than this is none; the largest known have 20 KB.
const LARGEST: usize = 1 << 20;

impl ChatTemplate {
    /// Compiles `source`. `variables` are special tokens by name (`bos_token`).
    ///
    /// # Errors
    /// [`Error::Input`] with `place` and line for a source that is no template.
    pub fn new(
        source: &str,
        place: Place,
        variables: &[(String, String)],
        now: Moment,
    ) -> Result<Self, Error> {
        if source.len() > LARGEST {
            let what = format!("a chat template of {} bytes; 1 MiB is allowed", source.len());
            return Err(Error::input(place, what));
        }
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (rewritten, has_generation) = rewrite(&source);
        let mut environment = environment(now);
        quiet::catch(|| environment.add_template_owned(NAME, rewritten))
            .map_err(|what| Error::input(place.clone(), escape(&what)))?
            .map_err(|error| template_error(&place, &error))?;
        let variables = variables.iter().map(|(name, text)| (name.clone(), Value::from(text)));
        Ok(Self { environment, place, has_generation, source, variables: variables.collect() })
    }

    pub(super) fn load(
        files: &TokenizerFiles,
        declared: Declared,
        now: Moment,
    ) -> Result<Option<Self>, Error> {
        let source = match &files.chat_template {
            Some(path) => {
                let bytes = std::fs::read(path).map_err(Error::io(path))?;
                let source = String::from_utf8(bytes)
                    .map_err(|_| Error::input(path, "is not UTF-8; convert it to UTF-8"))?;
                Some((Place::file(path), source))
            }
            None => declared.template,
        };
        let compile =
            |(place, source): (Place, String)| Self::new(&source, place, &declared.tokens, now);
        source.map(compile).transpose()
    }

    /// The source, with line ends made `\n`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template itself marks what the model writes.
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Input`] with the template's place and line, for what the template refuses, for what
    /// it cannot compute, and for a template that does not come to an end.
    pub fn render(
        &self,
        conversation: &Conversation,
        prompt: GenerationPrompt,
    ) -> Result<Rendered, Error> {
        let context = self.context(conversation, prompt);
        let render = || self.environment.get_template(NAME)?.render(context);
        let text = quiet::catch(render)
            .map_err(|what| Error::input(self.place.clone(), escape(&what)))?
            .map_err(|error| template_error(&self.place, &error))?;
        if !self.has_generation {
            let generation = Vec::new();
            return Ok(Rendered { text, generation });
        }
        take_marks(&text).ok_or_else(|| {
            let what = "the conversation holds U+FDD0 or U+FDD1, which are no characters; \
                        remove them";
            Error::input(self.place.clone(), what)
        })
    }

    fn context(&self, conversation: &Conversation, prompt: GenerationPrompt) -> Value {
        let own = [
            ("messages", Value::from(conversation.messages.clone())),
            ("tools", conversation.tools.clone()),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(prompt == GenerationPrompt::Add)),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_string(), value));
        Value::from_pairs(self.variables.iter().cloned().chain(own))
    }
}

fn environment(now: Moment) -> Environment<'static> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let mut environment = Environment::new();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_fuel(Some(FUEL));
    environment.add_filter(COPY_FILTER, |value: Value| copy_of(&value, &mut { LARGEST_COPY }, 0));
    environment.add_filter(MARK_FILTER, |text: String| format!("{OPEN}{text}{CLOSE}"));
    python::extend(&mut environment, now);
    environment
}

/// Values that are copied at once, at most.
const LARGEST_COPY: usize = 1 << 20;
/// Lists in lists that are copied, at most.
const DEEPEST_COPY: usize = 100;

/// A value that shares no list and no map with `value`.
fn copy_of(value: &Value, left: &mut usize, depth: usize) -> Result<Value, minijinja::Error> {
    if *left == 0 || depth > DEEPEST_COPY {
        let what = "a value in a namespace is too large";
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
    }
    *left -= 1;
    match value.kind() {
        ValueKind::Seq => {
            let copies = value.try_iter()?.map(|item| copy_of(&item, left, depth + 1));
            copies.collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        ValueKind::Map => {
            let copies = value.try_iter()?.map(|key| {
                let item = value.get_item(&key)?;
                Ok((key, copy_of(&item, left, depth + 1)?))
            });
            copies.collect::<Result<Vec<_>, minijinja::Error>>().map(Value::from_pairs)
        }
        _ => Ok(value.clone()),
    }
}

/// Takes the marks out of a rendered text; `None` where they do not pair.
fn take_marks(marked: &str) -> Option<Rendered> {
    let mut text = String::with_capacity(marked.len());
    let mut generation = Vec::new();
    let mut open = None;
    for c in marked.chars() {
        match (c, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                generation.push(start..text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => return None,
            _ => text.push(c),
        }
    }
    open.is_none().then_some(Rendered { text, generation })
}

fn template_error(place: &Place, error: &minijinja::Error) -> Error {
    let place = match error.line() {
        Some(line) => place.clone().line(line),
        None => place.clone(),
    };
    let what = match error.kind() {
        ErrorKind::OutOfFuel => {
            "the chat template does not come to an end; use another template".to_string()
        }
        _ => format!("the chat template says: {}", escape(&reason(error))),
    };
    Error::input(place, what)
}

fn reason(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(source: &str) -> Result<ChatTemplate, Error> {
        let tokens = [("bos_token".to_string(), "<s>".to_string())];
        ChatTemplate::new(source, Place::file("t.jinja"), &tokens, Moment::from_unix(0))
    }

    fn render(source: &str) -> String {
        let messages = [json!({"role": "user", "content": "hi"})];
        let conversation = Conversation::new(&messages, None);
        match template(source).and_then(|t| t.render(&conversation, GenerationPrompt::Add)) {
            Ok(rendered) => rendered.text,
            Err(error) => format!("! {error}"),
        }
    }

    #[test]
    fn generation_blocks_are_found_and_leave_no_trace() {
        let source = "a{% generation %}\nß{{ messages[0].content }}{%- endgeneration -%} z";
        let rendered = template(source)
            .unwrap()
            .render(&Conversation::new(&[json!({"content": "hi"})], None), GenerationPrompt::Omit)
            .unwrap();
        assert_eq!(rendered.text, "aßhiz");
        assert_eq!(&rendered.text[rendered.generation[0].clone()], "ßhi");
        assert_eq!(rendered.generation.len(), 1);
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let source = "{{ [true, none, 'a\"b', 1.0] | tojson }} {{ true }} {{ none }} {{ 1.0 }} \
                      {{ {'b': 1, 'a': 'ü<'} | tojson(sort_keys=true, separators=(',', ':')) }}";
        let want = "[true, null, \"a\\\"b\", 1.0] True None 1.0 {\"a\":\"ü<\",\"b\":1}";
        assert_eq!(render(source), want);
        let indented = render("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}");
        assert_eq!(indented, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
        let escaped = render("{{ 'ü🌕' | tojson(ensure_ascii=true) }}");
        assert_eq!(escaped, "\"\\u00fc\\ud83c\\udf15\"");
    }

    #[test]
    fn the_date_is_the_given_moment() {
        let source = "{{ strftime_now('%d %b %Y, %A %B %-d %H:%M:%S %j %% %y') }}";
        assert_eq!(render(source), "01 Jan 1970, Thursday January 1 00:00:00 001 % 70");
    }

    #[test]
    fn errors_name_the_template_and_its_line() {
        assert_eq!(
            render("a\n{{ raise_exception('no tools') }}"),
            "! t.jinja: line 2: the chat template says: no tools"
        );
        assert!(render("\n\n{% if %}").starts_with("! t.jinja: line 3: "));
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(render(endless).contains("does not come to an end"));
        assert!(render("{% include '/etc/passwd' %}").starts_with("! "));
    }
}
