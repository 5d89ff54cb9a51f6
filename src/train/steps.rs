//! Which records each optimizer step learns from: a pure function of the step's number.

use crate::data::Example;
use crate::data::{Batching, MicroBatch, Row, Window, epoch_windows};
use crate::model::tokens::Limits;

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Passes over the data; the last one may be a part.
    Epochs(f64),
    /// Optimizer steps, over as many epochs as they take.
    Steps(u64),
}

/// The steps of a run.
pub struct Steps<'a> {
    examples: &'a [Example],
    lengths: Vec<usize>,
    batching: Batching,
    /// Steps taken in each epoch, and windows the epoch has.
    epochs: Vec<(u64, u64)>,
    current: Option<(usize, Vec<Window>)>,
}

impl<'a> Steps<'a> {
    /// Lays out the epochs of a run over `examples`, of which there is at least one.
    pub fn new(examples: &'a [Example], batching: Batching, length: Length) -> Self {
        let lengths: Vec<_> = examples.iter().map(|example| example.tokens.len()).collect();
        let mut steps = Self { examples, lengths, batching, epochs: Vec::new(), current: None };
        steps.lay_out(length);
        steps
    }

    fn lay_out(&mut self, length: Length) {
        let mut left = match length {
            Length::Epochs(epochs) => epochs,
            Length::Steps(steps) => steps as f64,
        };
        while left > 0.0 {
            let windows = self.windows(self.epochs.len()).len() as u64;
            let (taken, used) = match length {
                Length::Epochs(_) => ((left.min(1.0) * windows as f64).ceil(), left.min(1.0)),
                Length::Steps(_) => (left.min(windows as f64), left.min(windows as f64)),
            };
            self.epochs.push((taken as u64, windows));
            left -= used;
        }
    }

    fn windows(&self, epoch: usize) -> Vec<Window> {
        epoch_windows(&self.lengths, &self.batching, epoch as u32)
    }

    /// Count of optimizer steps.
    pub fn total(&self) -> u64 {
        self.epochs.iter().map(|(taken, _)| taken).sum()
    }

    /// The micro-batches of step `step`, counted from 1.
    pub fn window(&mut self, step: u64) -> Vec<MicroBatch> {
        let examples = self.examples;
        let micro_batches = self.rows(step).micro_batches.iter();
        micro_batches.map(|rows| MicroBatch::new(examples, rows)).collect()
    }

    /// The records of step `step`.
    pub fn records(&mut self, step: u64) -> Vec<&'a Example> {
        let examples = self.examples;
        let rows = self.rows(step).micro_batches.iter().flatten();
        rows.flat_map(|row| &row.examples).map(|index| &examples[*index]).collect()
    }

    fn rows(&mut self, step: u64) -> &Window {
        let (epoch, index, _) = self.place(step);
        if self.current.as_ref().is_none_or(|(current, _)| *current != epoch) {
            self.current = Some((epoch, self.windows(epoch)));
        }
        let (_, windows) = self.current.as_ref().expect("just set");
        &windows[index]
    }

    /// Most micro-batches of a step.
    pub fn window_size(&self) -> usize {
        self.batching.grad_accum
    }

    /// Epochs done after step `step`.
    pub fn epoch_after(&self, step: u64) -> f64 {
        let (epoch, index, windows) = self.place(step);
        epoch as f64 + (index + 1) as f64 / windows as f64
    }

    /// Most of what a micro-batch of the run has.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits { tokens: 1, sequences: 1, targets: 1 };
        for (epoch, (taken, _)) in self.epochs.iter().enumerate() {
            for window in self.windows(epoch).iter().take(*taken as usize) {
                window.micro_batches.iter().for_each(|rows| limits.include(self.examples, rows));
            }
        }
        limits
    }

    /// Epoch, window within it, and windows of the epoch.
    fn place(&self, step: u64) -> (usize, usize, u64) {
        let mut left = step - 1;
        for (epoch, (taken, windows)) in self.epochs.iter().enumerate() {
            if left < *taken {
                return (epoch, left as usize, *windows);
            }
            left -= taken;
        }
        panic!("step {step} of {}", self.total());
    }
}

impl Limits {
    /// Raises the limits to what a micro-batch of `rows` has.
    pub fn include(&mut self, examples: &[Example], rows: &[Row]) {
        let (mut tokens, mut sequences, mut targets) = (0, 0, 0);
        for example in rows.iter().flat_map(|row| &row.examples).map(|&index| &examples[index]) {
            tokens += example.tokens.len();
            sequences += 1;
            targets += example.supervised_count();
        }
        self.tokens = self.tokens.max(tokens);
        self.sequences = self.sequences.max(sequences);
        self.targets = self.targets.max(targets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;
    use crate::data::{Order, Packing};

    fn examples(count: usize) -> Vec<Example> {
        let example = |i: usize| Example {
            tokens: vec![i as u32; 3 + i % 4],
            supervised: (0..3 + i % 4).map(|token| token > 0).collect(),
            origin: Origin { file: 0, line: i + 1, record: i },
        };
        (0..count).map(example).collect()
    }

    #[test]
    fn epochs_end_in_a_shorter_window_and_steps_go_on_in_the_next() {
        let examples = examples(11);
        let batching = Batching {
            seq_len: 16,
            batch_size: 2,
            grad_accum: 2,
            packing: Packing::Off,
            order: Order::File,
        };
        let mut steps = Steps::new(&examples, batching.clone(), Length::Epochs(2.5));
        assert_eq!(steps.total(), 3 + 3 + 2);
        let sizes: Vec<_> = (1..=8).map(|s| steps.window(s).len()).collect();
        assert_eq!(sizes, [2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(steps.window(3)[1].segments.len(), 1);
        assert_eq!(steps.epoch_after(3), 1.0);
        assert_eq!(steps.window(4), steps.window(1));
        let limited = Steps::new(&examples, batching, Length::Steps(4));
        assert_eq!(limited.total(), 4);
        assert_eq!(limited.limits(), Limits { tokens: 11, sequences: 2, targets: 9 });
    }
}
