//! One decoder with its trainables on one device: an optimizer step, and an evaluation pass.
//!
//! The loss of a step is the sum of the token losses divided by the number of supervised tokens in
//! the whole step. Each micro-batch adds its share of the one gradient, scaled by that same number,
//! so that how a step is cut into micro-batches changes nothing but the order of additions.

use crate::data::MicroBatch;
use crate::device::Device;
use crate::error::Error;
use crate::model::decoder::Decoder;
use crate::model::tokens::{Batch, Limits};
use crate::model::workspace::{Purpose, Workspace};
use crate::ops::dropout::Draw;
use crate::optim::adamw::{AdamW, Moments, Settings};
use crate::optim::shelf::Paging;
use crate::params::{Index, Params};

/// A decoder, its trainables, and memory for passes.
pub struct Session {
    /// Where it runs.
    pub device: Device,
    /// The frozen model.
    pub decoder: Decoder,
    /// The trainable numbers.
    pub params: Params,
    workspace: Workspace,
    targets: Targets,
    /// Random numbers of each lane.
    draws: Vec<Option<Draw>>,
}

/// Where the targets of a micro-batch are and what they are, in room that is taken once.
struct Targets {
    rows: Vec<u32>,
    ids: Vec<u32>,
}

/// What an optimizer step has done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean loss of the supervised tokens.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that went in.
    pub tokens: u64,
    /// Tokens with a target.
    pub supervised: u64,
}

impl Session {
    /// Takes memory for passes within `limits`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        device: Device,
        decoder: Decoder,
        index: Index,
        limits: Limits,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        let params = Params::new(&device, index)?;
        let workspace = Workspace::new(&device, &decoder, limits, purpose)?;
        let room = || Vec::with_capacity(limits.targets);
        let targets = Targets { rows: room(), ids: room() };
        let draws = vec![None; workspace.lanes()];
        Ok(Self { device, decoder, params, workspace, targets, draws })
    }

    /// A fresh optimizer for the trainables.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn optimizer(
        &self,
        settings: Settings,
        moments: Moments,
        paging: Paging,
    ) -> Result<AdamW, Error> {
        AdamW::new(&self.device, &self.params, settings, moments, paging)
    }

    /// Computes the gradient of one window and its loss. `draw` seeds dropout; its stream counts
    /// the micro-batches of the whole run.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn gradient(&mut self, window: &[MicroBatch], draw: Draw) -> Result<Step, Error> {
        let whole = self.gradient_unless(window, draw, || false)?;
        Ok(whole.expect("nothing stops it"))
    }

    /// As [`gradient`](Self::gradient); gives nothing if `stopped` says, between micro-batches, that
    /// nobody needs it any more.
    ///
    /// # Errors
    /// As there.
    pub fn gradient_unless(
        &mut self,
        window: &[MicroBatch],
        draw: Draw,
        stopped: impl Fn() -> bool + Sync,
    ) -> Result<Option<Step>, Error> {
        let supervised: usize = window.iter().map(|micro| micro.targets.len()).sum();
        assert!(supervised > 0, "a window without supervised tokens has no loss");
        let device = self.device.clone();
        let sum = device.enter(|| {
            self.device.zero(&mut self.params.grads);
            self.params.refresh(&self.device);
            let (mut sum, mut stream) = (0.0, draw.stream);
            let mut before = None;
            for (turn, together) in window.chunks(self.draws.len()).enumerate() {
                if stopped() {
                    return Ok(None);
                }
                let (scale, draw) = (1.0 / supervised as f32, Draw { stream, ..draw });
                self.together(together, turn % 2, scale, draw)?;
                stream += together.len() as u64;
                // A GPU computes these while the losses of those before them are read.
                sum += before.replace((turn % 2, together)).map_or(0.0, |it| self.sum(it));
            }
            Ok::<_, Error>(Some(sum + before.map_or(0.0, |it| self.sum(it))))
        })?;
        Ok(sum.map(|sum| Step {
            loss: sum / supervised as f64,
            grad_norm: f64::NAN,
            tokens: window.iter().map(|micro| micro.tokens.len() as u64).sum(),
            supervised: supervised as u64,
        }))
    }

    /// Takes micro-batches there and back, through each block all of them.
    fn together(
        &mut self,
        window: &[MicroBatch],
        turn: usize,
        scale: f32,
        first: Draw,
    ) -> Result<(), Error> {
        for (number, micro) in window.iter().enumerate() {
            let stream = (first.stream + number as u64) << STREAM_BITS;
            self.draws[number] = Some(Draw { stream, ..first });
            self.enter(number, micro)?;
        }
        let Self { device, decoder, params, workspace, draws, .. } = self;
        let draws = &draws[..window.len()];
        decoder.forward(device, params, workspace, draws)?;
        for (number, _) in window.iter().enumerate().filter(|(_, m)| !m.targets.is_empty()) {
            decoder.losses(device, workspace, (number, turn), Some(scale));
        }
        decoder.backward(device, params, workspace, draws)
    }

    /// The sum of the losses of micro-batches that went through [`together`](Self::together).
    fn sum(&mut self, (turn, window): (usize, &[MicroBatch])) -> f64 {
        let Self { device, workspace, .. } = self;
        let mut sum = 0.0;
        for (number, micro) in window.iter().enumerate() {
            let losses = workspace.losses(device, (number, turn), micro.targets.len());
            sum += losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        }
        sum
    }

    /// The loss of every target of `micro`, in their order; gradients are left alone.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn evaluate(&mut self, micro: &MicroBatch) -> Result<Vec<f32>, Error> {
        let device = self.device.clone();
        device.enter(|| {
            self.params.refresh(&device);
            self.forward(micro)?;
            let Self { decoder, workspace, .. } = self;
            decoder.losses(&device, workspace, (0, 0), None);
            Ok(workspace.losses(&device, (0, 0), micro.targets.len()).to_vec())
        })
    }

    /// Runs `tokens` behind the `past` tokens seen so far through a session made for generation,
    /// and gives the logits `[V]` of the last of them.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn extend(&mut self, tokens: &[u32], past: usize) -> Result<Vec<f32>, Error> {
        let Self { device, decoder, params, workspace, .. } = self;
        let sequences = [0..tokens.len() as u32];
        let batch = Batch { tokens, sequences: &sequences, past, rows: &[], targets: &[] };
        device.enter(|| {
            if past == 0 {
                params.refresh(device);
            }
            decoder.enter(device, workspace, 0, &batch)?;
            decoder.forward(device, params, workspace, &[None])?;
            Ok(decoder.logits(device, workspace, tokens.len() - 1))
        })
    }

    /// Logits `[V]` of token `row` of `micro`.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn logits(&mut self, micro: &MicroBatch, row: usize) -> Result<Vec<f32>, Error> {
        self.params.refresh(&self.device);
        self.forward(micro)?;
        Ok(self.decoder.logits(&self.device, &mut self.workspace, row))
    }

    fn forward(&mut self, micro: &MicroBatch) -> Result<(), Error> {
        self.enter(0, micro)?;
        let Self { device, decoder, params, workspace, .. } = self;
        decoder.forward(device, params, workspace, &[None])
    }

    fn enter(&mut self, lane: usize, micro: &MicroBatch) -> Result<(), Error> {
        let Self { device, decoder, workspace, targets: Targets { rows, ids }, .. } = self;
        rows.clear();
        ids.clear();
        rows.extend(micro.targets.iter().map(|target| target.row));
        ids.extend(micro.targets.iter().map(|target| target.id));
        let (tokens, sequences) = (&micro.tokens, &micro.segments);
        let batch = Batch { tokens, sequences, past: 0, rows, targets: ids };
        decoder.enter(device, workspace, lane, &batch)
    }
}

/// Streams of one micro-batch: more than a model has low-rank updates.
const STREAM_BITS: u32 = 20;
