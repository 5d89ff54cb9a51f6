//! A run as it is seen: a bar on a terminal, plain lines elsewhere, few enough to read.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qlora_train::train::metrics::{EvalMetrics, StepMetrics};
use qlora_train::train::run::{Observer, Skipped};

use super::output;
use super::table::{duration, grouped, mib};

/// Shows a run on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// When the last plain line was written, and for which step.
    last: Option<(Instant, u64)>,
    /// Time of a step, smoothed.
    step_seconds: f64,
}

/// Plain lines are at least this far apart.
const APART: Duration = Duration::from_secs(1);

/// And at least one in so many of all steps.
const LINES: u64 = 100;

impl Progress {
    /// A view of a run of `total` steps, of which `done` are.
    pub fn new(total: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let bar = ProgressBar::with_draw_target(Some(total), target);
            bar.set_style(style());
            bar.set_position(done);
            bar
        });
        Self { bar, last: None, step_seconds: 0.0 }
    }

    /// Clears the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn is_due(&self, step: u64, total: u64) -> bool {
        let Some((when, last)) = self.last else {
            return true;
        };
        step == total || when.elapsed() >= APART && (step - last) * LINES >= total
    }
}

fn style() -> ProgressStyle {
    let template = "{bar:30} {pos}/{len}  {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Observer for Progress {
    fn step(&mut self, metrics: &StepMetrics, total: u64) {
        let StepMetrics { step, loss, tokens_per_second, step_seconds, .. } = *metrics;
        self.step_seconds = match self.step_seconds {
            0.0 => step_seconds,
            before => 0.9 * before + 0.1 * step_seconds,
        };
        let speed = grouped(tokens_per_second as u64);
        let left = duration((total - step) as f64 * self.step_seconds);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("loss {loss:.4}  {speed} tokens/s  {left} left"));
            bar.set_position(step);
        } else if self.is_due(step, total) {
            self.last = Some((Instant::now(), step));
            let StepMetrics { learning_rate, grad_norm, peak_memory_bytes, .. } = metrics;
            output::note(format_args!(
                "step {step}/{total}  loss {loss:.4}  lr {learning_rate:.2e}  grad norm \
                 {grad_norm:.3}  {speed} tokens/s  {} MiB  {left} left",
                mib(*peak_memory_bytes)
            ));
        }
    }

    fn skipped(&mut self, skipped: &Skipped) {
        let Skipped { step, reason, places } = skipped;
        let places: Vec<_> = places.iter().map(ToString::to_string).collect();
        let records = match places.is_empty() {
            true => "no single record is to blame".to_owned(),
            false => places.join("; "),
        };
        self.note(&format!("warning: step {step} is left out: {reason}: {records}"));
    }

    fn evaluation(&mut self, metrics: &EvalMetrics) {
        let EvalMetrics { step, eval_loss, eval_perplexity, eval_tokens } = metrics;
        self.note(&format!(
            "evaluation after step {step}: loss {eval_loss:.4}, perplexity {eval_perplexity:.3} \
             over {} tokens",
            grouped(*eval_tokens)
        ));
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }
}
