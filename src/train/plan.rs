//! The memory of a run before it starts: the calls of the run, on a device that only books bytes.

use crate::checkpoint::weights::Weights;
use crate::data::{MicroBatch, Target};
use crate::device::{Device, Dtype, Hardware, Report};
use crate::error::Error;
use crate::methods::lora;
use crate::model::config::Config;
use crate::model::load::{Quantization, load};
use crate::model::tokens::Limits;
use crate::model::workspace::{Keep, Purpose};
use crate::ops::dropout::Draw;
use crate::optim::adamw::{Moments, Settings};
use crate::params::Index;

use super::session::Session;

/// What the bytes of a training run depend on.
pub struct Job<'a> {
    /// The model.
    pub config: &'a Config,
    /// Its tensors, where they are at hand: some may be quantized already.
    pub weights: Option<&'a Weights>,
    /// How linear weights are kept.
    pub quantization: Quantization,
    /// What is attached.
    pub method: &'a Method<'a>,
    /// The largest micro-batch, of training and of evaluation.
    pub limits: Limits,
    /// How moments are kept.
    pub moments: Moments,
    /// What it runs on.
    pub hardware: Hardware,
    /// Element of activations.
    pub dtype: Dtype,
}

/// How trainables are attached.
pub enum Method<'a> {
    /// A new LoRA adapter.
    Lora(&'a lora::Settings),
    /// An existing one.
    Adapter {
        /// Its content.
        adapter: &'a crate::checkpoint::adapter::Adapter,
        /// Where it was read from.
        folder: &'a std::path::Path,
        /// Dropout of further training.
        dropout: f64,
    },
}

impl Method<'_> {
    /// Attaches to `decoder`.
    ///
    /// # Errors
    /// As [`lora::attach`] and [`lora::attach_adapter`].
    pub fn attach(
        &self,
        decoder: &mut crate::model::decoder::Decoder,
    ) -> Result<lora::Attached, Error> {
        match self {
            Self::Lora(settings) => lora::attach(decoder, settings),
            Self::Adapter { adapter, folder, dropout } => {
                lora::attach_adapter(decoder, adapter, folder, *dropout)
            }
        }
    }
}

/// What a run will take.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What blocks keep.
    pub keep: Keep,
    /// Count of blocks.
    pub layers: usize,
    /// Bytes by label.
    pub report: Report,
    /// Bytes allowed.
    pub budget: u64,
}

impl Plan {
    /// Whether the run fits its budget.
    pub fn fits(&self) -> bool {
        self.report.total.peak <= self.budget
    }
}

/// The plan that computes least within `budget` bytes; if none fits, the smallest.
///
/// # Errors
/// As [`load`] for what can be told from shapes.
pub fn plan(job: &Job, budget: u64) -> Result<Plan, Error> {
    let layers = job.config.layers;
    let with = |blocks, logits| -> Result<Plan, Error> {
        let keep = Keep { blocks, logits };
        Ok(Plan { keep, layers, report: book(job, keep)?, budget })
    };
    let everything = with(layers, Keep::EVERYTHING.logits)?;
    if everything.fits() {
        return Ok(everything);
    }
    let mut best = with(1, Keep::INPUTS.logits)?;
    let mut too_many = layers + 1;
    while best.fits() && too_many - best.keep.blocks > 1 {
        let middle = with(best.keep.blocks.midpoint(too_many), Keep::INPUTS.logits)?;
        match middle.fits() {
            true => best = middle,
            false => too_many = middle.keep.blocks,
        }
    }
    Ok(best)
}

fn book(job: &Job, keep: Keep) -> Result<Report, Error> {
    let device = Device::plan(job.hardware, job.dtype, u64::MAX);
    let mut decoder = load(&device, job.config.clone(), job.weights, job.quantization)?;
    let index: Index = job.method.attach(&mut decoder)?.index;
    let purpose = Purpose::Training(keep);
    let mut session = Session::new(device.clone(), decoder, index, job.limits, purpose)?;
    let settings =
        Settings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
    let mut optimizer = session.optimizer(settings, job.moments)?;
    session.gradient(&[largest(job.limits)], Draw { seed: 0, stream: 0 });
    optimizer.step(&device, &mut session.params, 0.0, 1)?;
    device.synchronize()?;
    Ok(device.report())
}

/// A micro-batch at all limits at once.
fn largest(limits: Limits) -> MicroBatch {
    let (n, first) = (limits.tokens as u32, limits.sequences as u32 - 1);
    let ones = (0..first).map(|i| i..i + 1);
    let target = |row: usize| Target { row: (row as u32).min(n - 1), id: 0, segment: 0 };
    MicroBatch {
        tokens: vec![0; limits.tokens],
        positions: vec![0; limits.tokens],
        segments: ones.chain([first..n]).collect(),
        targets: (0..limits.targets).map(target).collect(),
    }
}
