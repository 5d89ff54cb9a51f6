//! The loop: steps, evaluations, checkpoints, and what is told of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use crate::data::{Example, MicroBatch, Row};
use crate::error::{Error, Place};
use crate::ops::dropout::Draw;
use crate::optim::adamw::AdamW;
use crate::optim::schedule::Schedule;

use super::checkpoints::{self, Found, State};
use super::evaluate::evaluate;
use super::export::Form;
use super::guard::{Reason, Seen};
use super::metrics::{EvalMetrics, MetricsFile, SkippedMetrics, StepMetrics, Summary};
use super::session::Session;
use super::steps::Steps;

/// What the loop does besides training.
#[derive(Debug, Clone, PartialEq)]
pub struct Routine {
    /// The learning rate.
    pub schedule: Schedule,
    /// Seed of dropout.
    pub seed: u64,
    /// Steps between evaluations; the last step is always evaluated.
    pub eval_steps: Option<u64>,
    /// Longest row of an evaluation.
    pub seq_len: usize,
    /// Steps between checkpoints.
    pub save_steps: Option<u64>,
    /// Checkpoints that stay.
    pub keep_checkpoints: usize,
    /// What a checkpoint that cannot be written means.
    pub on_save_error: OnSaveError,
    /// Steps in a row that may be left out before the run stops.
    pub max_skipped: u64,
    /// What the numbers of the run depend on.
    pub identity: String,
}

/// What a checkpoint that cannot be written means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSaveError {
    /// The end of the run.
    Stop,
    /// A warning: the next one may succeed.
    Continue,
}

/// A step that was not applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Skipped {
    /// Its number.
    pub step: u64,
    /// Why.
    pub reason: Reason,
    /// Where the records stand that are to blame, as far as that can be told.
    pub places: Vec<Place>,
}

/// Everything the loop works on.
pub struct Run<'a> {
    /// Model, trainables and memory.
    pub session: Session,
    /// The optimizer.
    pub optimizer: AdamW,
    /// What each step learns from.
    pub steps: Steps<'a>,
    /// What is evaluated; empty for nothing.
    pub eval: &'a [Example],
    /// How.
    pub routine: Routine,
    /// The adapter as its file describes it.
    pub adapter: Form,
    /// The output folder, which exists.
    pub output: &'a Path,
    /// The files of the data, in the order in which records count them.
    pub files: &'a [PathBuf],
}

/// Is told what happens.
pub trait Observer {
    /// An optimizer step of `total` is done.
    fn step(&mut self, metrics: &StepMetrics, total: u64);
    /// An optimizer step was left out.
    fn skipped(&mut self, skipped: &Skipped);
    /// An evaluation is done.
    fn evaluation(&mut self, metrics: &EvalMetrics);
    /// Something worth a line.
    fn note(&mut self, text: &str);
}

impl Run<'_> {
    /// Trains to the end, from `found` if there is one. `stop` holds the number of a signal that
    /// asks to stop, or 0: the micro-batch under way is finished and a checkpoint of the last whole step
    /// written first.
    ///
    /// # Errors
    /// Too many steps in a row that could not be applied; [`Error::Interrupted`]; whatever a file or the
    /// device refuses.
    pub fn train(
        mut self,
        found: Option<&Found>,
        observer: &mut dyn Observer,
        stop: &AtomicI32,
    ) -> Result<(Session, Summary), Error> {
        let mut state = self.start(found)?;
        let mut metrics = MetricsFile::open(&self.output.join("metrics.jsonl"), state.global_step)?;
        let (begun, tokens_before) = (Instant::now(), state.num_input_tokens_seen);
        let (first, total) = (state.global_step + 1, self.steps.total());
        let mut last_loss = state.first_loss;
        for step in first..=total {
            match self.step(step, &mut state, stop)? {
                Done::Applied(done) => {
                    last_loss = done.loss;
                    self.told(metrics.write(&done), observer)?;
                    observer.step(&done, total);
                    if step == 1 {
                        self.note_inert(observer);
                    }
                    if step == first && step < total {
                        self.note_driver(observer)?;
                    }
                }
                Done::Skipped(skipped) => {
                    observer.skipped(&skipped);
                    self.told(metrics.write(&SkippedMetrics::of(&skipped)), observer)?;
                    self.refuse_too_many(&skipped, &state, observer)?;
                }
                Done::Stopped => {
                    self.save(&state)?;
                    return Err(Error::Interrupted { signal: stop.load(Ordering::Relaxed) });
                }
            }
            if !self.eval.is_empty() && is_due(step, self.routine.eval_steps, total) {
                let evaluation = self.evaluate(step)?;
                self.told(metrics.write(&evaluation), observer)?;
                observer.evaluation(&evaluation);
            }
            let signal = stop.load(Ordering::Relaxed);
            if signal != 0 {
                self.save(&state)?;
                return Err(Error::Interrupted { signal });
            }
            if self.routine.save_steps.is_some_and(|every| step % every == 0) {
                self.told(self.save(&state), observer)?;
            }
        }
        self.note_driver(observer)?;
        let seconds = begun.elapsed().as_secs_f64();
        let summary = self.summary(&state, last_loss, seconds, tokens_before)?;
        self.told(metrics.write(&summary), observer)?;
        Ok((self.session, summary))
    }

    fn start(&mut self, found: Option<&Found>) -> Result<State, Error> {
        let Some(found) = found else {
            return Ok(State {
                global_step: 0,
                total_steps: self.steps.total(),
                warmup_steps: self.routine.schedule.warmup,
                num_input_tokens_seen: 0,
                num_supervised_tokens_seen: 0,
                first_loss: 0.0,
                seen: Seen::default(),
                format: checkpoints::FORMAT,
                program: checkpoints::PROGRAM.to_owned(),
                identity: self.routine.identity.clone(),
            });
        };
        let Session { device, params, .. } = &mut self.session;
        found.restore(device, params, &mut self.optimizer)?;
        let (total_steps, warmup_steps) = (self.steps.total(), self.routine.schedule.warmup);
        Ok(State { total_steps, warmup_steps, ..found.state.clone() })
    }

    /// Computes the gradient of step `step`, and applies it if its numbers allow.
    fn step(&mut self, step: u64, state: &mut State, stop: &AtomicI32) -> Result<Done, Error> {
        let begun = Instant::now();
        let window = self.steps.window(step);
        let draw = Draw { seed: self.routine.seed, stream: (step - 1) << 16 };
        let stopped = || stop.load(Ordering::Relaxed) != 0;
        let Some(done) = self.session.gradient_unless(&window, draw, stopped)? else {
            return Ok(Done::Stopped);
        };
        let Session { device, params, .. } = &mut self.session;
        let norm = self.optimizer.norm(device, params)?;
        state.global_step = step;
        state.num_input_tokens_seen += done.tokens;
        state.num_supervised_tokens_seen += done.supervised;
        let max_norm = self.optimizer.settings().max_grad_norm;
        if let Some(reason) = state.seen.judge(done.loss, norm, max_norm) {
            state.seen.left_out();
            let places = self.blame(step, reason)?;
            return Ok(Done::Skipped(Skipped { step, reason, places }));
        }
        let rate = self.routine.schedule.rate(step);
        self.optimizer.apply(device, params, rate, (norm, step - state.seen.skipped));
        state.seen.applied(norm);
        if step - state.seen.skipped == 1 {
            state.first_loss = done.loss;
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Done::Applied(StepMetrics {
            step,
            epoch: self.steps.epoch_after(step),
            loss: done.loss,
            learning_rate: rate,
            grad_norm: norm,
            num_input_tokens_seen: state.num_input_tokens_seen,
            num_supervised_tokens_seen: state.num_supervised_tokens_seen,
            tokens_per_second: done.tokens as f64 / seconds,
            step_seconds: seconds,
            peak_memory_bytes: self.session.device.report().total.peak,
        }))
    }

    /// The records whose own gradients are not finite, or, for a spike, have the largest norms.
    fn blame(&mut self, step: u64, reason: Reason) -> Result<Vec<Place>, Error> {
        let mut norms = Vec::new();
        for example in self.steps.records(step) {
            let alone =
                [MicroBatch::new(std::slice::from_ref(example), &[Row { examples: vec![0] }])];
            if alone[0].targets.is_empty() {
                continue;
            }
            let loss = self.session.gradient(&alone, Draw { seed: 0, stream: 0 })?.loss;
            let Session { device, params, .. } = &self.session;
            let norm = self.optimizer.norm(device, params)?;
            let norm = if loss.is_finite() && norm.is_finite() { norm } else { f64::INFINITY };
            norms.push((norm, example.origin.place(self.files)));
        }
        if let Reason::NotFinite { .. } = reason {
            norms.retain(|(norm, _)| norm.is_infinite());
        }
        norms.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(norms.into_iter().take(BLAMED).map(|(_, place)| place).collect())
    }

    /// Stops, with a checkpoint, if too many steps in a row were left out.
    fn refuse_too_many(
        &self,
        skipped: &Skipped,
        state: &State,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let count = state.seen.in_a_row;
        if count < self.routine.max_skipped {
            return Ok(());
        }
        if state.global_step > state.seen.skipped {
            self.save(state)?;
            observer.note("a checkpoint was written of what was learned before");
        }
        let place = skipped.places.first().cloned().unwrap_or_else(|| Place::file(self.output));
        let what = format!(
            "step {}: {}: steps left out in a row: {count}, before the adapter is spoilt; lower \
             --learning-rate, or look for damaged weights or records",
            skipped.step, skipped.reason
        );
        Err(Error::input(place, what))
    }

    /// What could not be written beside the results, as [`OnSaveError`] wants it.
    fn told(&self, written: Result<(), Error>, observer: &mut dyn Observer) -> Result<(), Error> {
        match (written, self.routine.on_save_error) {
            (Err(error), OnSaveError::Continue) => {
                observer.note(&format!("warning: not written: {error}"));
                Ok(())
            }
            (written, _) => written,
        }
    }

    /// Tells how many adapters the first gradient did not reach, which would stay as they are: none, if all
    /// is well. Of each it is B that has a gradient first.
    fn note_inert(&self, observer: &mut dyn Observer) {
        let params = &self.session.params;
        let mut grads = vec![0.0f32; params.index().len()];
        self.session.device.download(&params.grads, &mut grads);
        let entries = params.index().entries().iter();
        let ups: Vec<_> = entries.filter(|entry| entry.name.ends_with(".lora_B.weight")).collect();
        let inert = ups.iter().filter(|entry| grads[entry.range.clone()].iter().all(|g| *g == 0.0));
        let inert: Vec<&str> = inert.map(|entry| entry.name.as_str()).collect();
        let first = inert.first().map_or_else(String::new, |name| format!(" (first: {name})"));
        let (count, all) = (inert.len(), ups.len());
        observer.note(&format!("adapters without a gradient in step 1: {count} of {all}{first}"));
    }

    /// Says if the driver of a GPU has taken more for itself than the plan has booked for it: after the first step,
    /// when everything that every step needs is there, and at the end, when all graphs are made.
    fn note_driver(&self, observer: &mut dyn Observer) -> Result<(), Error> {
        let Some(driver) = self.session.device.driver_memory()? else { return Ok(()) };
        if driver.taken > driver.planned {
            let [taken, planned] =
                [driver.taken, driver.planned].map(|bytes| bytes.div_ceil(1 << 20));
            observer.note(&format!(
                "the driver takes {taken} MiB for kernels, graphs and whole pages, {planned} MiB were planned: \
                 if memory runs out, lower --memory-budget by {} MiB",
                taken - planned
            ));
        }
        Ok(())
    }

    fn evaluate(&mut self, step: u64) -> Result<EvalMetrics, Error> {
        let evaluation = evaluate(&mut self.session, self.eval, self.routine.seq_len)?;
        Ok(EvalMetrics {
            step,
            eval_loss: evaluation.loss(),
            eval_perplexity: evaluation.perplexity(),
            eval_tokens: evaluation.tokens(),
        })
    }

    fn save(&self, state: &State) -> Result<(), Error> {
        let Session { device, params, .. } = &self.session;
        let keep = self.routine.keep_checkpoints;
        checkpoints::save(self.output, device, params, &self.optimizer, &self.adapter, state, keep)
    }

    fn summary(
        &self,
        state: &State,
        last_loss: f64,
        seconds: f64,
        before: u64,
    ) -> Result<Summary, Error> {
        let traffic = self.session.decoder.traffic();
        let driver = self.session.device.driver_memory()?;
        Ok(Summary {
            summary: true,
            steps: state.global_step,
            epochs: match state.global_step {
                0 => 0.0,
                step => self.steps.epoch_after(step),
            },
            skipped_steps: state.seen.skipped,
            first_loss: state.first_loss,
            last_loss,
            num_input_tokens_seen: state.num_input_tokens_seen,
            num_supervised_tokens_seen: state.num_supervised_tokens_seen,
            trainable_parameters: self.session.params.index().len() as u64,
            train_seconds: seconds,
            tokens_per_second: (state.num_input_tokens_seen - before) as f64 / seconds,
            peak_memory_bytes: self.session.device.report().total.peak,
            weight_bytes_read: traffic.map(|traffic| traffic.bytes),
            weight_wait_seconds: traffic.map(|traffic| traffic.waited.as_secs_f64()),
            driver_memory_bytes: driver.map(|driver| driver.taken),
            driver_memory_planned_bytes: driver.map(|driver| driver.planned),
        })
    }
}

/// Records that are named for one step.
const BLAMED: usize = 5;

/// How a step ended.
enum Done {
    /// The adapter is another one.
    Applied(StepMetrics),
    /// It is what it was.
    Skipped(Skipped),
    /// A signal came first; it is what it was.
    Stopped,
}

/// Whether something done every `every` steps, and after the last one, is due after `step`.
fn is_due(step: u64, every: Option<u64>, total: u64) -> bool {
    step == total || every.is_some_and(|every| step.is_multiple_of(every))
}
