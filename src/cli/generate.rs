//! `generate`: what the model writes behind a prompt or a conversation, as it is written.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use qlora_train::data::{Conversation, GenerationPrompt};
use qlora_train::data::{Special, TextStream, Tokenizer};
use qlora_train::error::{Error, Place};
use qlora_train::json;
use qlora_train::methods::lora;
use qlora_train::model::load::load;
use qlora_train::params::Index;
use qlora_train::train::generate::{Sampling, generate, session};
use qlora_train::train::session::Session;
use serde_json::{Value, json};

use super::flags::{BaseFlags, DeviceFlags, ForeignFlags};
use super::machine::Machine;
use super::opened::{Opened, open};
use super::output;
use super::values::{Date, date, not_negative, seed, share, whole};

/// Flags of `generate`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "messages", "prompt_ids"]))]
pub struct GenerateArgs {
    /// Model folder, .safetensors file, or org/name in the local cache
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Text to go on from
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A conversation to answer: a JSON list of {role, content}
    #[arg(long, value_name = "FILE.json")]
    messages: Option<PathBuf>,
    /// Token ids to go on from, for models without a tokenizer
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    prompt_ids: Option<Vec<u32>>,
    /// Adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Most tokens that are written
    #[arg(long, value_parser = whole(1..=1 << 24), default_value = "256", value_name = "N")]
    max_new_tokens: usize,
    /// 0 takes the most likely token
    #[arg(long, value_parser = not_negative, default_value = "0", value_name = "T")]
    temperature: f64,
    /// Draw from the likeliest tokens that together have this share
    #[arg(long, value_parser = share, default_value = "1", value_name = "P")]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, value_parser = seed(), default_value = "42", value_name = "N")]
    seed: u64,
    /// The day that a chat template is told, as YYYY-MM-DD [default: today]
    #[arg(long, value_parser = date, value_name = "DATE")]
    date: Option<Date>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
    /// Settings from a file, in snake_case; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    foreign: ForeignFlags,
    #[command(flatten)]
    base: BaseFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

/// Writes.
///
/// # Errors
/// Whatever is wrong with the inputs; too little memory.
pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let machine = args.device.machine()?;
    let missing = || Error::input(Place::flag("MODEL"), "missing: give a model");
    let opened = open(args.model.as_deref().ok_or_else(missing)?)?;
    let now = args.date.unwrap_or_else(Date::today).moment();
    let tokenizer = opened.tokenizer_of(args.adapter.as_deref(), now)?;
    let prompt = prompt(args, &opened, tokenizer.as_ref())?;
    let most = room(args, &opened, prompt.len())?;
    let mut session = load_session(args, &opened, &machine, prompt.len(), most)?;
    let mut writer = Writer::new(args, &opened, tokenizer.as_ref(), &prompt)?;
    let written = generate(&mut session, &prompt, &sampling(args), most, |id| writer.take(id));
    if let Some(error) = writer.failure.take() {
        return Err(error);
    }
    writer.finish(&prompt, &written?)
}

fn sampling(args: &GenerateArgs) -> Sampling {
    Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed }
}

/// The ids of the prompt, made as training makes them.
fn prompt(
    args: &GenerateArgs,
    opened: &Opened,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<u32>, Error> {
    if let Some(ids) = &args.prompt_ids {
        let vocab = opened.config.vocab;
        return match ids.iter().find(|id| **id as usize >= vocab) {
            None => Ok(ids.clone()),
            Some(id) => {
                let what = format!("{id}: the model has {vocab} tokens, counted from 0");
                Err(Error::input(Place::flag("--prompt-ids"), what))
            }
        };
    }
    let Some(tokenizer) = tokenizer else {
        return Err(no_tokenizer(opened));
    };
    let text = match (&args.prompt, &args.messages) {
        (Some(text), _) => text.clone(),
        (_, Some(path)) => conversation(path, tokenizer)?,
        _ => unreachable!("one of the group is given"),
    };
    let ids = tokenizer.encode(&text, Special::Add)?.ids;
    match ids.is_empty() {
        false => Ok(ids),
        true => Err(Error::input(Place::flag("--prompt"), "is empty: give at least one token")),
    }
}

fn no_tokenizer(opened: &Opened) -> Error {
    let advice = opened.files.tokenizer().err().map_or(String::new(), |error| error.to_string());
    Error::input(Place::flag("--prompt"), format!("needs a tokenizer, or --prompt-ids: {advice}"))
}

/// The conversation in the file, with the words that ask the model for its turn.
fn conversation(path: &Path, tokenizer: &Tokenizer) -> Result<String, Error> {
    let Some(template) = tokenizer.chat_template() else {
        let what = "the model has no chat template: add chat_template.jinja beside its \
                    tokenizer.json, or use --prompt";
        return Err(Error::input(Place::flag("--messages"), what));
    };
    let value = json::read(path)?;
    let (messages, tools) = match &value {
        Value::Array(messages) => (messages, None),
        Value::Object(object) => match object.get("messages") {
            Some(Value::Array(messages)) => (messages, object.get("tools")),
            _ => {
                return Err(Error::input(Place::file(path).field("messages"), "expected a list"));
            }
        },
        other => {
            let what = format!("holds {}, expected a list of messages", json::kind(other));
            return Err(Error::input(path, what));
        }
    };
    check_messages(path, messages)?;
    let conversation = Conversation::new(messages, tools);
    Ok(template.render(&conversation, GenerationPrompt::Add)?.text)
}

fn check_messages(path: &Path, messages: &[Value]) -> Result<(), Error> {
    if messages.is_empty() {
        return Err(Error::input(path, "holds no message: write at least one"));
    }
    for (index, message) in messages.iter().enumerate() {
        for key in ["role", "content"] {
            if !message.get(key).is_some_and(Value::is_string) {
                let place = Place::file(path).field(&format!("[{index}].{key}"));
                return Err(Error::input(place, "expected a string"));
            }
        }
    }
    Ok(())
}

/// How many tokens can be written before the model's length ends.
fn room(args: &GenerateArgs, opened: &Opened, prompt: usize) -> Result<usize, Error> {
    let most = opened.config.max_positions;
    match most.saturating_sub(prompt) {
        0 => {
            let what = format!("the prompt has {prompt} tokens, the model takes {most} in all");
            Err(Error::input(Place::flag("--prompt"), what))
        }
        left => Ok(left.min(args.max_new_tokens)),
    }
}

fn load_session(
    args: &GenerateArgs,
    opened: &Opened,
    machine: &Machine,
    prompt: usize,
    most: usize,
) -> Result<Session, Error> {
    let read = |folder| Ok::<_, Error>((opened.adapter(folder, args.foreign)?, folder));
    let adapter = args.adapter.as_deref().map(read).transpose()?;
    let device = machine.open()?;
    let (config, weights) = (opened.config.clone(), Some(&opened.weights));
    let residence = opened.residence(args.device.weights, machine.budget);
    let mut decoder = load(&device, config, weights, args.base.quantization(), residence)?;
    let index = match &adapter {
        None => Index::default(),
        Some((adapter, folder)) => lora::attach_adapter(&mut decoder, adapter, folder, 0.0)?.index,
    };
    let mut session = session(device.clone(), decoder, index, prompt, prompt + most)?;
    if let Some((adapter, _)) = &adapter {
        lora::restore(&device, &mut session.params, adapter);
    }
    Ok(session)
}

/// Takes tokens as they come: shows their text, and knows where to stop.
///
/// What is shown goes on from the prompt, with the space that begins a word. As JSON the text is that
/// of the tokens alone, as `decode` of the tokenizer gives it.
struct Writer<'a> {
    tokenizer: Option<&'a Tokenizer>,
    stream: Option<TextStream<'a>>,
    stop: Vec<u32>,
    text: String,
    shown: bool,
    failure: Option<anyhow::Error>,
}

impl<'a> Writer<'a> {
    fn new(
        args: &GenerateArgs,
        opened: &Opened,
        tokenizer: Option<&'a Tokenizer>,
        prompt: &[u32],
    ) -> Result<Self, Error> {
        let mut stop = opened.config.eos.clone();
        stop.extend(tokenizer.map_or(&[][..], Tokenizer::stop));
        let stream = tokenizer.map(|tokenizer| tokenizer.stream(prompt)).transpose()?;
        let (text, shown) = (String::new(), !args.json);
        Ok(Self { tokenizer, stream, stop, text, shown, failure: None })
    }

    fn take(&mut self, id: u32) -> Result<ControlFlow<()>, Error> {
        if self.stop.contains(&id) {
            return Ok(ControlFlow::Break(()));
        }
        let Some(stream) = &mut self.stream else {
            return Ok(ControlFlow::Continue(()));
        };
        let piece = stream.push(id)?;
        Ok(self.show(&piece))
    }

    fn show(&mut self, piece: &str) -> ControlFlow<()> {
        self.text.push_str(piece);
        if self.shown
            && let Err(error) = output::piece(piece)
        {
            self.failure = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn finish(mut self, prompt: &[u32], written: &[u32]) -> anyhow::Result<()> {
        if let Some(stream) = self.stream.take() {
            let rest = stream.finish()?;
            let _ = self.show(&rest);
        }
        if !self.shown {
            let text = self.tokenizer.map(|tokenizer| tokenizer.decode(written)).transpose()?;
            let text = text.unwrap_or_default();
            let result = json!({ "prompt_tokens": prompt, "tokens": written, "text": text });
            return output::json(&result);
        }
        if self.text.is_empty() && !written.is_empty() {
            let ids: Vec<_> = written.iter().map(u32::to_string).collect();
            return output::result(ids.join(","));
        }
        output::piece("\n")
    }
}
