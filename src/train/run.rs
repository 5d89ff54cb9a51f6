//! The loop: steps, evaluations, checkpoints, and what is told of them.

use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use crate::checkpoint::adapter::AdapterConfig;
use crate::data::Example;
use crate::error::{Error, Place};
use crate::ops::dropout::Draw;
use crate::optim::adamw::AdamW;
use crate::optim::schedule::Schedule;

use super::checkpoints::{self, Found, State};
use super::evaluate::evaluate;
use super::metrics::{EvalMetrics, MetricsFile, StepMetrics, Summary};
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
    /// What the numbers of the run depend on.
    pub identity: String,
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
    pub adapter: AdapterConfig,
    /// The output folder, which exists.
    pub output: &'a Path,
}

/// Is told what happens.
pub trait Observer {
    /// An optimizer step of `total` is done.
    fn step(&mut self, metrics: &StepMetrics, total: u64);
    /// An evaluation is done.
    fn evaluation(&mut self, metrics: &EvalMetrics);
    /// Something worth a line.
    fn note(&mut self, text: &str);
}

impl Run<'_> {
    /// Trains to the end, from `found` if there is one. `stop` holds the number of a signal that
    /// asks to stop, or 0: the step under way is finished and a checkpoint written first.
    ///
    /// # Errors
    /// A loss or gradient that is not finite; [`Error::Interrupted`]; whatever a file or the device
    /// refuses.
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
            let done = self.step(step, &mut state)?;
            last_loss = done.loss;
            metrics.write(&done)?;
            observer.step(&done, total);
            if step == 1 {
                self.note_inert(observer);
            }
            if !self.eval.is_empty() && is_due(step, self.routine.eval_steps, total) {
                let evaluation = self.evaluate(step)?;
                metrics.write(&evaluation)?;
                observer.evaluation(&evaluation);
            }
            let signal = stop.load(Ordering::Relaxed);
            if signal != 0 || self.routine.save_steps.is_some_and(|every| step % every == 0) {
                self.save(&state)?;
            }
            if signal != 0 {
                return Err(Error::Interrupted { signal });
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let summary = self.summary(&state, last_loss, seconds, tokens_before);
        metrics.write(&summary)?;
        Ok((self.session, summary))
    }

    fn start(&mut self, found: Option<&Found>) -> Result<State, Error> {
        let Some(found) = found else {
            return Ok(State {
                global_step: 0,
                num_input_tokens_seen: 0,
                num_supervised_tokens_seen: 0,
                first_loss: 0.0,
                identity: self.routine.identity.clone(),
            });
        };
        let Session { device, params, .. } = &mut self.session;
        found.restore(device, params, &mut self.optimizer)?;
        Ok(found.state.clone())
    }

    fn step(&mut self, step: u64, state: &mut State) -> Result<StepMetrics, Error> {
        let begun = Instant::now();
        let window = self.steps.window(step);
        let draw = Draw { seed: self.routine.seed, stream: (step - 1) << 16 };
        let mut done = self.session.gradient(&window, draw)?;
        let rate = self.routine.schedule.rate(step);
        let Session { device, params, .. } = &mut self.session;
        done.grad_norm = self.optimizer.step(device, params, rate, step)?;
        if !(done.loss.is_finite() && done.grad_norm.is_finite()) {
            return Err(self.diverged(step, done.loss, done.grad_norm));
        }
        state.global_step = step;
        state.num_input_tokens_seen += done.tokens;
        state.num_supervised_tokens_seen += done.supervised;
        if step == 1 {
            state.first_loss = done.loss;
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(StepMetrics {
            step,
            epoch: self.steps.epoch_after(step),
            loss: done.loss,
            learning_rate: rate,
            grad_norm: done.grad_norm,
            num_input_tokens_seen: state.num_input_tokens_seen,
            num_supervised_tokens_seen: state.num_supervised_tokens_seen,
            tokens_per_second: done.tokens as f64 / seconds,
            step_seconds: seconds,
            peak_memory_bytes: self.session.device.report().total.peak,
        })
    }

    fn diverged(&self, step: u64, loss: f64, grad_norm: f64) -> Error {
        let what = format!(
            "step {step}: loss {loss}, gradient norm {grad_norm}: the run is stopped before the \
             adapter is spoilt; lower --learning-rate, or look for damaged weights or records"
        );
        Error::input(Place::file(self.output), what)
    }

    /// Tells of adapters that the first gradient did not reach: they would stay as they are.
    fn note_inert(&self, observer: &mut dyn Observer) {
        let params = &self.session.params;
        let mut grads = vec![0.0f32; params.index().len()];
        self.session.device.download(&params.grads, &mut grads);
        let entries = params.index().entries().iter();
        let ups = entries.filter(|entry| entry.name.ends_with(".lora_B.weight"));
        let inert: Vec<_> =
            ups.filter(|entry| grads[entry.range.clone()].iter().all(|g| *g == 0.0)).collect();
        if let Some(first) = inert.first() {
            let (count, name) = (inert.len(), &first.name);
            observer.note(&format!("{count} adapters got no gradient in step 1 (first: {name})"));
        }
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

    fn summary(&self, state: &State, last_loss: f64, seconds: f64, before: u64) -> Summary {
        let traffic = self.session.decoder.traffic();
        Summary {
            summary: true,
            steps: state.global_step,
            epochs: match state.global_step {
                0 => 0.0,
                step => self.steps.epoch_after(step),
            },
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
        }
    }
}

/// Whether something done every `every` steps, and after the last one, is due after `step`.
fn is_due(step: u64, every: Option<u64>, total: u64) -> bool {
    step == total || every.is_some_and(|every| step.is_multiple_of(every))
}
