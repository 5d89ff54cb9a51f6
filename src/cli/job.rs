//! A training run before anything is loaded: what its flags come to for this model and this data.
//!
//! `train` and `plan` share it, so that what is planned is what is run.

use std::path::{Path, PathBuf};

use qlora_train::checkpoint::adapter::{Adapter, TargetModules};
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::{Batching, Order, Packing};
use qlora_train::error::{Error, Place};
use qlora_train::methods::lora::{self, Targets};
use qlora_train::model::config::Config;
use qlora_train::model::tokens::Limits;
use qlora_train::optim::adamw;
use qlora_train::optim::schedule::Schedule;
use qlora_train::train::plan::{Job, Method, Plan};
use qlora_train::train::steps::Length;

use super::flags::{
    BatchFlags, ForeignFlags, MethodFlags, OptimizerFlags, TrainFlags, WeightsName,
};
use super::machine::Machine;
use super::opened::Opened;
use super::output;

/// Where the trainable numbers come from.
pub enum Source {
    /// A new adapter.
    New(lora::Settings),
    /// An existing one.
    From {
        /// Its content.
        adapter: Box<Adapter>,
        /// Where it was read.
        folder: PathBuf,
        /// Dropout of the further training.
        dropout: f64,
    },
}

/// Defaults of a new adapter.
const RANK: usize = 16;
const ALPHA: f64 = 32.0;
const ALL_LINEAR: &str = "all-linear";

impl MethodFlags {
    /// What is attached.
    ///
    /// # Errors
    /// An adapter that cannot be read, or that says otherwise than a flag.
    pub fn source(&self) -> Result<Source, Error> {
        let Some(folder) = &self.init_adapter else {
            return Ok(Source::New(self.settings()?));
        };
        let adapter = Box::new(Adapter::read(folder)?);
        self.refuse_contradiction(&adapter, folder)?;
        Ok(Source::From { adapter, folder: folder.clone(), dropout: self.lora_dropout })
    }

    fn settings(&self) -> Result<lora::Settings, Error> {
        let targets = match self.target_modules.as_deref() {
            None => Targets::AllLinear,
            Some([one]) if one == ALL_LINEAR => Targets::AllLinear,
            Some(names) if names.iter().any(|name| name == ALL_LINEAR) => {
                let what = "all-linear stands alone: it names every linear map already";
                return Err(Error::input(Place::flag("--target-modules"), what));
            }
            Some(names) => Targets::Named(names.to_vec()),
        };
        Ok(lora::Settings {
            rank: self.lora_r.unwrap_or(RANK),
            alpha: self.lora_alpha.unwrap_or(ALPHA),
            dropout: self.lora_dropout,
            targets,
        })
    }

    fn refuse_contradiction(&self, adapter: &Adapter, folder: &Path) -> Result<(), Error> {
        let config = &adapter.config;
        let contradiction = if self.lora_r.is_some_and(|rank| rank != config.rank) {
            Some(("--lora-r", config.rank.to_string()))
        } else if self.lora_alpha.is_some_and(|alpha| alpha != config.alpha) {
            Some(("--lora-alpha", config.alpha.to_string()))
        } else if self.target_modules.as_ref().is_some_and(|t| !names_same(t, config)) {
            Some(("--target-modules", "modules of its own".to_owned()))
        } else {
            None
        };
        let Some((flag, theirs)) = contradiction else {
            return Ok(());
        };
        let what = format!(
            "the adapter in {} has {theirs}: leave the flag out, it goes on with what it has",
            folder.display()
        );
        Err(Error::input(Place::flag(flag), what))
    }
}

fn names_same(flag: &[String], config: &qlora_train::checkpoint::adapter::AdapterConfig) -> bool {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    match &config.target_modules {
        TargetModules::Suffixes(names) => sorted(names) == sorted(flag),
        TargetModules::Pattern(pattern) => flag == [pattern.clone()],
    }
}

impl Source {
    /// As the library wants it.
    pub fn method(&self) -> Method<'_> {
        match self {
            Self::New(settings) => Method::Lora(settings),
            Self::From { adapter, folder, dropout } => {
                Method::Adapter { adapter, folder, dropout: *dropout }
            }
        }
    }

    /// Says what an adapter holds that is not understood, and refuses one of another base.
    ///
    /// # Errors
    /// As [`Opened::adapter`].
    pub fn check(&self, opened: &Opened, foreign: ForeignFlags) -> Result<(), Error> {
        let Self::From { adapter, folder, .. } = self else { return Ok(()) };
        tell_unknown(adapter, folder);
        opened.check_base(adapter, folder, foreign)
    }
}

/// Warns of keys of `adapter_config.json` that are set and not known.
pub fn tell_unknown(adapter: &Adapter, folder: &Path) {
    if !adapter.config.unknown.is_empty() {
        let keys = adapter.config.unknown.join(", ");
        output::warn(format_args!("{}: keys not understood: {keys}", folder.display()));
    }
}

impl BatchFlags {
    /// The same flags, and then smaller micro-batches and more of them: an optimizer step stays what it
    /// was. Of a run that goes on, only what it had `before`: sequences and micro-batches.
    pub fn splits(&self, before: Option<[usize; 2]>) -> Vec<Self> {
        let all = self.batch_size * self.grad_accum;
        let with = |batch_size, grad_accum| Self { batch_size, grad_accum, ..self.clone() };
        match before.filter(|[batch_size, grad_accum]| batch_size * grad_accum == all) {
            Some([batch_size, grad_accum]) => vec![with(batch_size, grad_accum)],
            None => {
                let divisors =
                    (1..=self.batch_size).rev().filter(|n| self.batch_size.is_multiple_of(*n));
                divisors.map(|batch_size| with(batch_size, all / batch_size)).collect()
            }
        }
    }

    /// How records are put together in rows of at most `seq_len` tokens.
    pub fn batching(&self, seq_len: usize) -> Batching {
        Batching {
            seq_len,
            batch_size: self.batch_size,
            grad_accum: self.grad_accum,
            packing: self.packing(),
            order: match self.no_shuffle {
                true => Order::File,
                false => Order::Shuffled { seed: self.seed },
            },
        }
    }

    /// Whether a row holds several records. Of `--packing` and `--no-packing` the last one wins.
    pub fn packing(&self) -> Packing {
        if self.no_packing { Packing::Off } else { Packing::On }
    }

    /// How long the run is.
    pub fn length(&self) -> Length {
        match self.max_steps {
            Some(steps) => Length::Steps(steps as u64),
            None => Length::Epochs(self.epochs),
        }
    }

    /// The largest micro-batch that any data can make of rows of `seq_len` tokens. An example has
    /// two tokens at least, and the first is never a target.
    pub fn worst(&self, seq_len: usize) -> Limits {
        let tokens = self.batch_size * seq_len;
        let sequences = match self.packing() {
            Packing::On => self.batch_size * (seq_len / 2),
            Packing::Off => self.batch_size,
        };
        Limits { tokens, sequences, targets: tokens - self.batch_size }
    }
}

/// Part of all steps in which the learning rate rises, if nothing is said.
const WARMUP: f64 = 0.03;

impl OptimizerFlags {
    /// Constants of AdamW.
    pub fn settings(&self) -> adamw::Settings {
        adamw::Settings {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            epsilon: self.adam_epsilon,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
        }
    }

    /// The learning rate over `total` steps.
    pub fn schedule(&self, total: u64) -> Schedule {
        let usual = || (WARMUP * total as f64).ceil() as u64;
        Schedule {
            shape: self.lr_scheduler.shape(),
            peak: self.learning_rate,
            warmup: self.warmup_steps.map_or_else(usual, |steps| steps as u64),
            total,
        }
    }
}

/// What the memory of a run on `machine` depends on, with `host_budget` bytes beside a GPU.
pub fn job<'a>(
    flags: &TrainFlags,
    config: &'a Config,
    weights: Option<&'a Weights>,
    method: &'a Method<'a>,
    (limits, window): (Limits, usize),
    (machine, host_budget): (&Machine, u64),
) -> Job<'a> {
    Job {
        config,
        weights,
        quantization: flags.base.quantization(),
        method,
        residence: flags.device.weights.map(WeightsName::residence),
        limits,
        window,
        moments: flags.optimizer.optimizer.moments(),
        host_budget,
        hardware: machine.hardware,
        dtype: machine.dtype,
    }
}

/// What `with` makes of the first of `splits` whose plan fits, or of the last one.
pub fn first_that_fits<T>(
    splits: Vec<BatchFlags>,
    with: impl Fn(BatchFlags) -> Result<T, Error>,
    plan: impl Fn(&T) -> &Plan,
) -> Result<T, Error> {
    let mut splits = splits.into_iter();
    let mut made = with(splits.next().expect("at least what was asked for"))?;
    for split in splits {
        if plan(&made).fits() {
            break;
        }
        made = with(split)?;
    }
    Ok(made)
}

/// Says that micro-batches are smaller than asked for.
pub fn tell_split(asked: &BatchFlags, chosen: &BatchFlags) {
    if asked.batch_size != chosen.batch_size {
        output::note(format_args!(
            "micro-batches of {} in place of {}, {} of them a step: more at once do not fit",
            chosen.batch_size, asked.batch_size, chosen.grad_accum
        ));
    }
}

/// The larger of two limits, each by itself.
pub fn larger(a: Limits, b: Limits) -> Limits {
    Limits {
        tokens: a.tokens.max(b.tokens),
        sequences: a.sequences.max(b.sequences),
        targets: a.targets.max(b.targets),
    }
}
