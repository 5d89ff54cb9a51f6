//! The memory of a run before it starts: the calls of the run, on a device that only books bytes.

use crate::checkpoint::weights::Weights;
use crate::data::{MicroBatch, Target};
use crate::device::{Device, Dtype, Hardware, Report};
use crate::error::Error;
use crate::methods::lora;
use crate::model::config::Config;
use crate::model::config::members::members;
use crate::model::load::{Quantization, Residence, load};
use crate::model::tokens::Limits;
use crate::model::workspace::{Keep, Purpose};
use crate::ops::dropout::Draw;
use crate::optim::adamw::{Moments, Settings};
use crate::optim::shelf::Paging;
use crate::params::Index;

use super::session::Session;

/// What the bytes of a training run depend on.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The model.
    pub config: &'a Config,
    /// Its tensors, where they are at hand: some may be quantized already.
    pub weights: Option<&'a Weights>,
    /// How linear weights are kept.
    pub quantization: Quantization,
    /// What is attached.
    pub method: &'a Method<'a>,
    /// Where linear weights are, if it is not for the plan to choose.
    pub residence: Option<Residence>,
    /// The largest micro-batch, of training and of evaluation.
    pub limits: Limits,
    /// Most micro-batches of an optimizer step.
    pub window: usize,
    /// How moments are kept.
    pub moments: Moments,
    /// Bytes of host memory that may be taken beside the device.
    pub host_budget: u64,
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
    /// What blocks keep, and how many micro-batches go through them together.
    pub keep: Keep,
    /// Where linear weights are.
    pub residence: Residence,
    /// Count of blocks.
    pub layers: usize,
    /// Where moments are.
    pub paging: Paging,
    /// Bytes by label.
    pub report: Report,
    /// Bytes of host memory beside the device.
    pub host: u64,
    /// Bytes allowed.
    pub budget: u64,
    /// Bytes of host memory allowed.
    pub host_budget: u64,
}

impl Plan {
    /// Whether the run fits its budget.
    pub fn fits(&self) -> bool {
        self.total() <= self.budget && self.host <= self.host_budget
    }

    /// Most bytes held at once.
    pub fn total(&self) -> u64 {
        self.report.total.peak
    }
}

/// The plan that computes least within `budget` bytes; if none fits, the smallest.
///
/// In this order: blocks keep everything; some keep their inputs and compute the rest again; beside a
/// GPU, inputs wait in host memory, and then moments; weights are read when their turn comes, with all
/// micro-batches of a step going through a block together; with fewer of them.
///
/// # Errors
/// As [`load`] for what can be told from shapes.
pub fn plan(job: &Job, budget: u64) -> Result<Plan, Error> {
    let planner = Planner { job, budget };
    match job.residence {
        Some(Residence::Resident) => planner.resident(),
        Some(Residence::Streamed) => planner.streamed(),
        None => {
            let resident = planner.resident()?;
            if resident.fits() {
                return Ok(resident);
            }
            // Weights that cannot be streamed are no mistake as long as nobody asked for it.
            let streamed = planner.streamed().ok();
            let better = streamed.filter(|plan| plan.fits() || plan.total() < resident.total());
            Ok(better.unwrap_or(resident))
        }
    }
}

/// What else a budget could hold, and what a larger one would buy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// Bytes with which nothing is computed twice and all weights stay.
    pub everything: u64,
    /// Bytes with which all weights stay.
    pub resident: u64,
    /// Tokens of the longest sequence, alone in its micro-batch.
    pub longest_sequence: usize,
    /// Tokens of the largest micro-batch, of any number of sequences as long as those planned.
    pub largest_batch: usize,
    /// The largest published model of the family with which the same micro-batch fits.
    pub largest_member: Option<&'static str>,
}

/// The outlook of `job`, whose sequences have `seq_len` tokens at most.
///
/// # Errors
/// As [`plan`].
pub fn outlook(job: &Job, budget: u64, seq_len: usize) -> Result<Outlook, Error> {
    let planner = Planner { job, budget };
    let total =
        |keep| planner.with(Residence::Resident, keep, Paging::Resident).map(|plan| plan.total());
    let (everything, resident) = (total(Keep::EVERYTHING)?, total(Keep::INPUTS)?);
    let limits = |tokens, sequences| Limits { tokens, sequences, targets: tokens };
    let sequence = |tokens| planner.fits_somehow(limits(tokens, 1));
    let batch = |count| planner.fits_somehow(limits(count * seq_len, count));
    Ok(Outlook {
        everything,
        resident,
        longest_sequence: largest(sequence, 64)?,
        largest_batch: largest(batch, 1)? * seq_len,
        largest_member: planner.largest_member()?,
    })
}

/// The largest multiple of `unit` for which `fits` holds, or 0; it holds for all smaller ones.
fn largest(fits: impl Fn(usize) -> Result<bool, Error>, unit: usize) -> Result<usize, Error> {
    let (mut low, mut high) = (0, 1);
    while high < MOST && fits(high * unit)? {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 {
        let middle = low.midpoint(high);
        match fits(middle * unit)? {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(low * unit)
}

/// Units beyond which nobody looks.
const MOST: usize = 1 << 20;

struct Planner<'a> {
    job: &'a Job<'a>,
    budget: u64,
}

impl Planner<'_> {
    fn with(&self, residence: Residence, keep: Keep, paging: Paging) -> Result<Plan, Error> {
        let (layers, device) = (self.job.config.layers, book(self.job, residence, keep, paging)?);
        let (report, host) = (device.report(), device.host_report().total.peak);
        let (budget, host_budget) = (self.budget, self.job.host_budget);
        Ok(Plan { keep, residence, layers, paging, report, host, budget, host_budget })
    }

    /// What can wait in host memory, the least first: nothing where there is none beside the device.
    fn waiting(&self) -> &'static [(bool, Paging)] {
        const NOTHING: (bool, Paging) = (false, Paging::Resident);
        match self.job.hardware {
            Hardware::Cpu { .. } => &[NOTHING],
            Hardware::Cuda { .. } => &[NOTHING, (true, Paging::Resident), (true, Paging::PAGED)],
        }
    }

    /// Micro-batches one after the other, with as many blocks that keep everything as fit.
    fn one_lane(&self, residence: Residence) -> Result<Plan, Error> {
        let with = |blocks, keep| self.with(residence, Keep { blocks, ..keep }, Paging::Resident);
        let layers = self.job.config.layers;
        let everything = with(layers, Keep::EVERYTHING)?;
        if everything.fits() {
            return Ok(everything);
        }
        let fewest = with(1, Keep::INPUTS)?;
        let best = self.most(layers, 2, |blocks| with(blocks, Keep::INPUTS))?;
        Ok(best.unwrap_or(fewest))
    }

    /// All weights on the device; other things wait in host memory if there is no other way.
    fn resident(&self) -> Result<Plan, Error> {
        let mut plan = self.one_lane(Residence::Resident)?;
        for (parked, paging) in &self.waiting()[1..] {
            if plan.fits() {
                break;
            }
            let keep = Keep { parked: *parked, ..Keep::INPUTS };
            let next = self.with(Residence::Resident, keep, *paging)?;
            if next.total() < plan.total() {
                plan = next;
            }
        }
        Ok(plan)
    }

    /// Whether a micro-batch of `limits` fits in the plan that takes least.
    fn fits_somehow(&self, limits: Limits) -> Result<bool, Error> {
        let planner = Planner { job: &Job { limits, ..*self.job }, budget: self.budget };
        let (wanted, (parked, paging)) =
            (self.job.residence, self.waiting()[self.waiting().len() - 1]);
        for residence in [Residence::Resident, Residence::Streamed] {
            if wanted.is_none_or(|wanted| wanted == residence) {
                match planner.with(residence, Keep { parked, ..Keep::INPUTS }, paging) {
                    Ok(plan) if plan.fits() => return Ok(true),
                    Err(error) if wanted.is_some() => return Err(error),
                    _ => (),
                }
            }
        }
        Ok(false)
    }

    /// The largest published model of the family that would do, where what is trained is new.
    fn largest_member(&self) -> Result<Option<&'static str>, Error> {
        let Method::Lora(_) = self.job.method else { return Ok(None) };
        for member in members(&self.job.config.architecture).rev() {
            let config = member.shape(self.job.config);
            let job = Job { config: &config, weights: None, ..*self.job };
            let planner = Planner { job: &job, budget: self.budget };
            if planner.fits_somehow(self.job.limits)? {
                return Ok(Some(member.name));
            }
        }
        Ok(None)
    }

    /// As many micro-batches of a step together as fit, with as little in host memory as that allows.
    fn streamed(&self) -> Result<Plan, Error> {
        let mut best = self.together(self.one_lane(Residence::Streamed)?)?;
        for (parked, paging) in &self.waiting()[1..] {
            if best.fits() && best.keep.lanes == self.job.window {
                break;
            }
            let keep = Keep { parked: *parked, ..Keep::INPUTS };
            let next = self.together(self.with(Residence::Streamed, keep, *paging)?)?;
            let better = match best.fits() {
                true => next.keep.lanes > best.keep.lanes,
                false => next.total() < best.total(),
            };
            if better {
                best = next;
            }
        }
        Ok(best)
    }

    /// The plan `alone` of one lane, with as many as fit, and as many blocks that keep everything.
    fn together(&self, alone: Plan) -> Result<Plan, Error> {
        let Plan { keep: Keep { parked, .. }, paging, .. } = alone;
        if !alone.fits() || self.job.window == 1 {
            return Ok(alone);
        }
        let none = Keep { blocks: 0, parked, ..Keep::INPUTS };
        let with = |keep| self.with(Residence::Streamed, keep, paging);
        let lanes = |lanes| with(Keep { lanes, ..none });
        let Some(most) = self.most(self.job.window, 2, lanes)? else { return Ok(alone) };
        let keep = most.keep;
        let blocks = |blocks| with(Keep { blocks, ..keep });
        Ok(self.most(most.layers, 1, blocks)?.unwrap_or(most))
    }

    /// The plan that fits for the largest number from `least` to `most`, if it fits for any.
    fn most(
        &self,
        most: usize,
        least: usize,
        with: impl Fn(usize) -> Result<Plan, Error>,
    ) -> Result<Option<Plan>, Error> {
        let (mut best, mut low, mut high) = (None, least, most);
        // All of them first: mostly they fit.
        let mut next = most;
        while low <= high {
            let plan = with(next)?;
            match plan.fits() {
                true => (best, low) = (Some(plan), next + 1),
                false => high = next - 1,
            }
            next = low.midpoint(high);
        }
        Ok(best)
    }
}

/// A step on a device that only books.
fn book(job: &Job, residence: Residence, keep: Keep, paging: Paging) -> Result<Device, Error> {
    let device = Device::plan(job.hardware, job.dtype, u64::MAX);
    let (config, weights) = (job.config.clone(), job.weights);
    let mut decoder = load(&device, config, weights, job.quantization, residence)?;
    let index: Index = job.method.attach(&mut decoder)?.index;
    let purpose = Purpose::Training(keep);
    let mut session = Session::new(device.clone(), decoder, index, job.limits, purpose)?;
    let settings =
        Settings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
    let mut optimizer = session.optimizer(settings, job.moments, paging)?;
    session.gradient(&[full(job.limits)], Draw { seed: 0, stream: 0 })?;
    optimizer.step(&device, &mut session.params, 0.0, 1)?;
    device.synchronize()?;
    Ok(device)
}

/// A micro-batch at all limits at once.
fn full(limits: Limits) -> MicroBatch {
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
