//! The program as its users meet it: commands, files, streams, exit codes.
//!
//! Every run must end in a code that is promised, tell a mistake in one line, and leave nothing
//! behind that it was refused for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

#[cfg(target_os = "linux")]
mod gpu;
mod mistakes;
#[cfg(target_os = "linux")]
mod resources;
mod results;
mod runs;
mod trust;

const PROGRAM: &str = env!("CARGO_BIN_EXE_qlora-train");

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    path.to_str().unwrap().to_owned()
}

fn model() -> String {
    fixture("curve/model")
}

fn data() -> String {
    fixture("curve/data.jsonl")
}

/// The demo's model has a tokenizer and a chat template.
fn demo(name: &str) -> String {
    format!("{}/src/demo/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Copies a folder with everything in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// A scratch folder in which the program runs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(self.0.path()).env("RUST_BACKTRACE", "1");
        command.env("HF_HUB_CACHE", self.path("no-cache"));
        // A GPU of this machine is none of ours.
        command.env("CUDA_VISIBLE_DEVICES", "");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs to success and gives standard output.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Trains the small model for a few steps.
    fn train(&self, output: &str, more: &[&str]) -> String {
        let (model, data) = (model(), data());
        let mut arguments = vec![&*model, &data, "--output-dir", output];
        arguments.extend(QUICK.iter().chain(more));
        self.ok(&arguments)
    }

    fn loss(&self, arguments: &[&str]) -> f64 {
        self.json(arguments)["results"][0]["loss"].as_f64().unwrap()
    }
}

const QUICK: [&str; 12] = [
    "--seq-len",
    "64",
    "--batch-size",
    "2",
    "--grad-accum",
    "2",
    "--max-steps",
    "6",
    "--learning-rate",
    "5e-3",
    "--lora-r",
    "4",
];

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one line that says what is wrong.
fn refusal(output: &Output) -> String {
    let text = stderr(output);
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

fn metrics(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
