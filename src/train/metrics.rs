//! `metrics.jsonl`: one JSON object a line, written as the run goes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::run::Skipped;
use crate::checkpoint::atomic;
use crate::error::Error;

/// One optimizer step, or the mean of what led to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Mean loss of the step's supervised tokens.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that went in since the start of the run.
    pub num_input_tokens_seen: u64,
    /// Supervised ones among them.
    pub num_supervised_tokens_seen: u64,
    /// Tokens of this step by its time.
    pub tokens_per_second: f64,
    /// Time of this step.
    pub step_seconds: f64,
    /// Peak of the device's named allocations.
    pub peak_memory_bytes: u64,
}

/// A step that was left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SkippedMetrics {
    /// Its number.
    pub step: u64,
    /// Always true: tells this line from the others.
    pub skipped: bool,
    /// Why.
    pub reason: String,
    /// Where the records stand that are to blame.
    pub records: Vec<String>,
}

impl SkippedMetrics {
    /// The line for `skipped`.
    pub fn of(skipped: &Skipped) -> Self {
        Self {
            step: skipped.step,
            skipped: true,
            reason: skipped.reason.to_string(),
            records: skipped.places.iter().map(ToString::to_string).collect(),
        }
    }
}

/// One evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EvalMetrics {
    /// Optimizer steps done before it.
    pub step: u64,
    /// Mean loss of the supervised tokens.
    pub eval_loss: f64,
    /// e to the loss.
    pub eval_perplexity: f64,
    /// Supervised tokens.
    pub eval_tokens: u64,
}

/// The last line of a finished run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Always true: tells this line from the others.
    pub summary: bool,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Epochs done.
    pub epochs: f64,
    /// Steps among them that were left out.
    pub skipped_steps: u64,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Tokens that went in.
    pub num_input_tokens_seen: u64,
    /// Supervised ones among them.
    pub num_supervised_tokens_seen: u64,
    /// Numbers that were trained.
    pub trainable_parameters: u64,
    /// Time of this process's steps, evaluations and checkpoints.
    pub train_seconds: f64,
    /// Tokens of this process's steps by that time.
    pub tokens_per_second: f64,
    /// Peak of the device's named allocations.
    pub peak_memory_bytes: u64,
    /// Bytes of weights that were read because they did not stay; absent where all stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_bytes_read: Option<u64>,
    /// Time of the steps in which weights were waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_wait_seconds: Option<f64>,
    /// Bytes that the driver of a GPU has taken for kernels, graphs and whole pages; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_memory_bytes: Option<u64>,
    /// Bytes that were booked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_memory_planned_bytes: Option<u64>,
}

/// The file, open for the length of a run.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens `path`, keeping the lines of steps up to `step` and dropping those behind it, which a
    /// resumed run is about to write again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, step: u64) -> Result<Self, Error> {
        let old = match step {
            0 => String::new(),
            _ => std::fs::read_to_string(path).unwrap_or_default(),
        };
        let kept = old.lines().filter(|line| step_of(line).is_some_and(|s| s <= step));
        let text: String = kept.flat_map(|line| [line, "\n"]).collect();
        // Whole or not at all: a crash must not cost the lines of days.
        atomic::write_bytes(path, text)?;
        let file = File::options().append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds one line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_string(line).expect("metrics are plain numbers");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))
    }
}

fn step_of(line: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64()
}
