//! `demo`: the whole way in under a minute, with a model and records that come with the program.
//!
//! The model is a very small Llama that tells stories; the records teach it to write a card about
//! whom a story is. The files are unpacked, and the steps are the program's own commands: each
//! command line that is printed is the one that runs.

use std::path::{Path, PathBuf};

use clap::Args;
use qlora_train::checkpoint::atomic;
use qlora_train::checkpoint::folder::OutputFolder;
use qlora_train::error::Error;
use serde_json::Value;

use super::{Refusal, output, parse};

/// Flags of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Where model, data and adapter go, to stay; absent or empty
    #[arg(long, visible_alias = "output", value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Keep everything, in qlora-demo if no folder is named
    #[arg(long)]
    keep: bool,
}

/// The files, by their path in the folder.
const FILES: [(&str, &[u8]); 7] = [
    ("model/config.json", include_bytes!("../demo/model/config.json")),
    ("model/generation_config.json", include_bytes!("../demo/model/generation_config.json")),
    ("model/model.safetensors", include_bytes!("../demo/model/model.safetensors")),
    ("model/tokenizer.json", include_bytes!("../demo/model/tokenizer.json")),
    ("model/tokenizer_config.json", include_bytes!("../demo/model/tokenizer_config.json")),
    ("train.jsonl", include_bytes!("../demo/train.jsonl")),
    ("valid.jsonl", VALID),
];

/// Records that training does not see.
const VALID: &[u8] = include_bytes!("../demo/valid.jsonl");

/// How this model is trained: small as it is, it takes a high rate.
const RECIPE: &str = "--no-packing --batch-size 16 --grad-accum 1 --max-steps 300 \
                      --learning-rate 5e-3";

/// Stories that are shown.
const SHOWN: usize = 2;

/// Shows, trains, and shows again.
///
/// # Errors
/// A folder that holds something, or a disk that refuses.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let folder = Folder::unpack(args)?;
    let stories = stories(&folder.path)?;
    output::result("What the model writes before it has learned anything new:\n")?;
    stories.iter().try_for_each(|story| show(story, &folder, None))?;
    let (model, train) = (folder.file("model"), folder.file("train.jsonl"));
    let (valid, adapter) = (folder.file("valid.jsonl"), folder.file("adapter"));
    output::note("Now it learns to write cards:\n");
    let mut words = vec![&*model, &train, "--eval-data", &valid, "--output-dir", &adapter];
    words.extend(RECIPE.split_whitespace());
    command(&words)?;
    output::result("\nAnd what it writes now, for stories that it has never seen:\n")?;
    stories.iter().try_for_each(|story| show(story, &folder, Some(&adapter)))?;
    folder.tell()
}

/// A story, and the file of the conversation that asks about it.
struct Story {
    text: String,
    messages: PathBuf,
}

/// The first conversations of the records that training does not see, without their answers.
fn stories(folder: &Path) -> Result<Vec<Story>, Error> {
    let records = String::from_utf8_lossy(VALID);
    let mut stories = Vec::new();
    for (i, line) in records.lines().take(SHOWN).enumerate() {
        let record: Value = serde_json::from_str(line).expect("the demo's records are JSON");
        let question = &record["messages"][0];
        let messages = folder.join(format!("story-{}.json", i + 1));
        atomic::write_bytes(&messages, Value::from(vec![question.clone()]).to_string())?;
        let text = question["content"].as_str().unwrap_or_default().to_owned();
        stories.push(Story { text, messages });
    }
    Ok(stories)
}

fn show(story: &Story, folder: &Folder, adapter: Option<&str>) -> anyhow::Result<()> {
    output::result(format_args!("> {}", story.text))?;
    let (model, messages) = (folder.file("model"), story.messages.display().to_string());
    let mut words = vec!["generate", &model, "--messages", &messages, "--max-new-tokens", "60"];
    words.extend(adapter.iter().flat_map(|adapter| ["--adapter", adapter]));
    command(&words)?;
    output::result("")
}

/// Says what would be typed, and does it.
fn command(words: &[&str]) -> anyhow::Result<()> {
    let quoted: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    output::note(format_args!("$ qlora-train {}", quoted.join(" ")));
    let words = ["qlora-train"].iter().chain(words);
    match parse(words.map(Into::into)) {
        Ok(invocation) => super::run(invocation),
        Err(Refusal::Usage(page)) => unreachable!("the demo's own command line: {page}"),
        Err(Refusal::Config(error)) => Err(error.into()),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    match word.contains(|c: char| c.is_whitespace() || "'\"$\\`*?&;|<>()".contains(c)) {
        true => format!("'{}'", word.replace('\'', "'\\''")),
        false => word.to_owned(),
    }
}

/// The demo's folder, removed in the end unless it was to stay.
struct Folder {
    path: PathBuf,
    stays: bool,
}

impl Folder {
    fn unpack(args: &DemoArgs) -> Result<Self, Error> {
        let stays = args.keep || args.output_dir.is_some();
        let usual = match stays {
            true => PathBuf::from("qlora-demo"),
            false => std::env::temp_dir().join(format!("qlora-demo-{}", std::process::id())),
        };
        let path = args.output_dir.clone().unwrap_or(usual);
        OutputFolder::create(&path)?.commit();
        let folder = Self { path, stays };
        let model = folder.path.join("model");
        std::fs::create_dir(&model).map_err(Error::io(&model))?;
        for (name, bytes) in FILES {
            atomic::write_bytes(&folder.path.join(name), bytes)?;
        }
        Ok(folder)
    }

    fn file(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    fn tell(&self) -> anyhow::Result<()> {
        match self.stays {
            true => output::result(format_args!("Everything is in {}.", self.path.display())),
            false => output::result("Nothing was kept; --keep leaves everything in qlora-demo."),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.stays {
            // What stays behind in the folder for temporary files is the system's to remove.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
