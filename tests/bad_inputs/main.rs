//! What a user may hand over by mistake or malice, against the program itself.
//!
//! Each file here is a table of cases of one kind of input. A case builds its inputs in a fresh
//! folder, and the program runs in another one. Whatever the input: a promised exit code, one line
//! that names the place and what to do, no panic, no control characters, little memory, inputs
//! untouched and nothing left behind.
#![allow(clippy::print_stdout, reason = "what was said is shown when a case fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod adapters;
mod command_line;
mod configs;
mod machine;
mod places;
mod records;
mod templates;
mod tokenizers;
mod weights;

const PROGRAM: &str = env!("CARGO_BIN_EXE_qlora-train");

/// Virtual data memory in KiB that a refusal may cost.
const REFUSAL_MEMORY: &str = "600000";

/// Time that any case may take; a refusal takes milliseconds, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(10);

/// What must come of a run.
#[derive(Clone, Copy)]
enum Verdict {
    /// Exit 0.
    Done,
    /// Exit 1 and this text in the one line.
    Refused(&'static str),
    /// Exit 2 and this text.
    Usage(&'static str),
}
use Verdict::{Done, Refused, Usage};

/// Builds the inputs and says the command line.
type Build = Box<dyn Fn(&Folder) -> Vec<String>>;

struct Case {
    name: String,
    verdict: Verdict,
    build: Build,
}

fn case(
    name: impl Into<String>,
    verdict: Verdict,
    build: impl Fn(&Folder) -> Vec<String> + 'static,
) -> Case {
    Case { name: name.into(), verdict, build: Box::new(build) }
}

/// Runs every case and fails with the list of those that did not end as they must.
fn battery(cases: &[Case]) {
    let wrong: Vec<String> = cases.iter().filter_map(|case| run(case).err()).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn run(case: &Case) -> Result<(), String> {
    let (inputs, work) = (Folder::new(), Folder::new());
    let arguments = (case.build)(&inputs);
    let before = inputs.contents();
    let start = Instant::now();
    let output = spawn(&work, &arguments, case.verdict);
    let (elapsed, stderr) = (start.elapsed(), stderr(&output));
    println!("{} [{} ms]: {}", case.name, elapsed.as_millis(), stderr.trim_end());
    let told = |what: &str| Err(format!("{}: {what}: {stderr}", case.name));
    if let Err(what) = manners(&output, &stderr).and_then(|()| verdict(case, &output, &stderr)) {
        return told(&what);
    }
    if elapsed > PATIENCE {
        return told(&format!("took {elapsed:?}"));
    }
    if inputs.contents() != before {
        return told("changed its inputs");
    }
    match (case.verdict, work.contents()) {
        (Refused(_) | Usage(_), left) if !left.is_empty() => {
            told(&format!("left {:?}", left.keys()))
        }
        _ => Ok(()),
    }
}

fn spawn(work: &Folder, arguments: &[String], verdict: Verdict) -> Output {
    let limit = match verdict {
        Done => "unlimited",
        Refused(_) | Usage(_) => REFUSAL_MEMORY,
    };
    let script = format!("ulimit -d {limit}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, PROGRAM]).args(arguments).current_dir(work.path());
    command.env("HF_HUB_CACHE", work.at("no-cache")).env("RUST_BACKTRACE", "1");
    // A GPU of this machine is none of ours.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.stdin(Stdio::null()).output().unwrap()
}

/// What every run owes its user, however it ends.
fn manners(output: &Output, stderr: &str) -> Result<(), String> {
    let bad = |what: &str| Err(what.to_owned());
    match output.status.code() {
        Some(0..=2) => {}
        other => return Err(format!("ended with {other:?} ({})", output.status)),
    }
    if stderr.contains("panicked") || stderr.contains("stack backtrace") {
        return bad("panicked");
    }
    if stderr.chars().any(|c| c.is_control() && c != '\n') {
        return bad("wrote control characters");
    }
    match stderr.len() > 20_000 {
        true => bad("wrote more than 20 kB"),
        false => Ok(()),
    }
}

fn verdict(case: &Case, output: &Output, stderr: &str) -> Result<(), String> {
    let (code, fragment) = match case.verdict {
        Done => (0, ""),
        Refused(fragment) => (1, fragment),
        Usage(fragment) => (2, fragment),
    };
    if output.status.code() != Some(code) {
        return Err(format!("exit {:?}, not {code}", output.status.code()));
    }
    if !stderr.contains(fragment) {
        return Err(format!("does not say {fragment:?}"));
    }
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
    let last = stderr.lines().last().unwrap_or_default();
    match code {
        1 if errors != 1 || !last.starts_with("error: ") => Err("not one error line".to_owned()),
        1 if !output.stdout.is_empty() => Err("a result beside a refusal".to_owned()),
        2 if errors != 1 => Err("not one error line".to_owned()),
        0 if errors != 0 => Err("an error line, yet exit 0".to_owned()),
        _ => Ok(()),
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A scratch folder, removed with all that is in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self.name(name)
    }

    /// A copy of the model without tokenizer, in `model/`.
    fn model(&self) -> String {
        for name in ["config.json", "model.safetensors"] {
            self.write(&format!("model/{name}"), fs::read(ids_model().join(name)).unwrap());
        }
        self.name("model")
    }

    /// A copy of the model that has a tokenizer and a chat template, in `model/`.
    fn text_model(&self) -> String {
        for name in [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ] {
            self.write(&format!("model/{name}"), fs::read(text_model().join(name)).unwrap());
        }
        self.name("model")
    }

    /// Rewrites a JSON file.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let bytes = fs::read(self.at(name)).unwrap();
        let mut value: Value = serde_json::from_slice(&bytes).unwrap();
        change(&mut value);
        self.write(name, serde_json::to_vec(&value).unwrap());
    }

    /// Every path with a digest of its bytes; links as links.
    fn contents(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        collect(self.path(), &mut found);
        found
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        // A sparse file stands for what it claims, not for its bytes.
        let digest = match kind.is_file() && kind.len() < 1 << 28 {
            true => fs::read(&path).map(|bytes| digest(&bytes)).unwrap_or_default(),
            false => kind.len(),
        };
        if kind.is_dir() {
            collect(&path, found);
        }
        found.insert(path, digest);
    }
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn ids_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/curve/model")
}

fn text_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model")
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

/// Records of token ids that every model of these tests has.
const IDS: &str = "{\"input_ids\": [5, 6, 7, 8]}\n{\"input_ids\": [9, 10, 11]}\n";

/// A chat in one record.
const CHAT: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, \
                    {\"role\": \"assistant\", \"content\": \"Ho\"}]}\n";

/// The command line of a run of one step.
fn train(model: impl Into<String>, data: impl Into<String>) -> Vec<String> {
    let mut line = vec![model.into(), data.into()];
    line.extend(["--max-steps", "1", "--grad-accum", "1", "--lora-r", "2"].map(str::to_owned));
    line
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}
