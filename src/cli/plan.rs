//! `plan`: the memory of a training run, by the run's own calls on a device that only books bytes.
//!
//! Of the model only `config.json` is needed; where the tensors are there, their headers are read
//! too. Without data the largest micro-batch that the flags allow is taken.

use std::path::{Path, PathBuf};

use clap::Args;
use qlora_train::checkpoint::weights::Weights;
use qlora_train::error::{Error, Place};
use qlora_train::model::config::Config;
use qlora_train::model::tokens::Limits;
use qlora_train::optim::shelf::Paging;
use qlora_train::train::evaluate;
use qlora_train::train::plan::{Outlook, Plan, outlook, plan};
use qlora_train::train::steps::{Length, Steps};
use serde_json::{Value, json};

use super::corpus::Reading;
use super::flags::{BatchFlags, TrainFlags, spelled};
use super::job::{first_that_fits, job, larger, tell_split};
use super::machine::Machine;
use super::opened::{Opened, open, read_config, usual_length};
use super::values::Date;
use super::{disk, output, table};
use qlora_train::data::Dataset;

/// Flags of `plan`: those of training.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Model folder (config.json is enough), .safetensors file, or org/name in the local cache
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Records to learn from; without them the largest possible batch is planned
    data: Vec<PathBuf>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
    /// Settings from a file, in snake_case; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: TrainFlags,
}

/// A model as far as it is there.
enum Known {
    Whole(Box<Opened>),
    Config(Box<Config>),
}

impl Known {
    fn config(&self) -> &Config {
        match self {
            Self::Whole(opened) => &opened.config,
            Self::Config(config) => config,
        }
    }

    fn weights(&self) -> Option<&Weights> {
        match self {
            Self::Whole(opened) => Some(&opened.weights),
            Self::Config(_) => None,
        }
    }
}

/// Plans.
///
/// # Errors
/// Whatever is wrong with the inputs. A plan that does not fit is a result, no error.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let machine = args.flags.device.machine()?;
    let missing = || Error::input(Place::flag("MODEL"), "missing: give a model");
    let known = find(args.model.as_deref().ok_or_else(missing)?)?;
    let source = args.flags.method.source()?;
    let seq_len = args.flags.data.seq_len.unwrap_or_else(|| usual_length(known.config()));
    let records = match args.data.is_empty() {
        true => None,
        false => Some(Records::read(args, &known)?),
    };
    let (config, weights, method) = (known.config(), known.weights(), source.method());
    let with = |batch: BatchFlags| -> Result<_, Error> {
        let limits = match &records {
            None => batch.worst(seq_len),
            Some(records) => records.limits(&batch, seq_len),
        };
        let (most, machine) = ((limits, batch.grad_accum), (&machine, u64::MAX));
        let job = job(&args.flags, config, weights, &method, most, machine);
        let plan = plan(&job, machine.0.budget)?;
        Ok((batch, job, plan))
    };
    let splits = args.flags.batch.splits(None);
    let (batch, job, plan) = first_that_fits(splits, with, |(.., plan)| plan)?;
    tell_split(&args.flags.batch, &batch);
    let limits = job.limits;
    let outlook = outlook(&job, machine.budget, seq_len)?;
    match args.json {
        true => {
            output::json(&as_json(args, &machine, (&plan, &outlook), (&batch, limits), seq_len))
        }
        false => {
            output::result(format_args!("{}\n{}", table::plan(&plan), table::outlook(&outlook)))
        }
    }
}

fn find(name: &str) -> Result<Known, Error> {
    let path = Path::new(name);
    let config = match path.is_dir() {
        true => path.join("config.json"),
        false => path.to_owned(),
    };
    match open(name) {
        Ok(opened) => Ok(Known::Whole(Box::new(opened))),
        Err(_) if config.ends_with("config.json") && config.is_file() => {
            output::note("no tensor files: planned from config.json alone");
            read_config(&config).map(|config| Known::Config(Box::new(config)))
        }
        Err(error) => Err(error),
    }
}

/// The records that a run will see.
struct Records {
    train: Dataset,
    eval: Option<Dataset>,
    length: Length,
}

impl Records {
    fn read(args: &PlanArgs, known: &Known) -> Result<Self, Error> {
        let Known::Whole(opened) = known else {
            let what =
                "a model without tensor files has no tokenizer to read it with: leave it out";
            return Err(Error::input(Place::flag("DATA"), what));
        };
        let flags = &args.flags;
        let date = flags.data.date.unwrap_or_else(Date::today);
        let reading = Reading::new(&flags.data, opened, None, date)?;
        let (train, eval) = (reading.read(&args.data, opened)?, &flags.output.eval_data);
        let eval = if eval.is_empty() { None } else { Some(reading.read(eval, opened)?) };
        Ok(Self { train, eval, length: flags.batch.length() })
    }

    fn limits(&self, batch: &BatchFlags, seq_len: usize) -> Limits {
        let batching = batch.batching(seq_len);
        let limits = Steps::new(&self.train.examples, batching, self.length).limits();
        match &self.eval {
            None => limits,
            Some(eval) => larger(limits, evaluate::limits(&eval.examples, seq_len)),
        }
    }
}

fn as_json(
    args: &PlanArgs,
    machine: &Machine,
    (plan, outlook): (&Plan, &Outlook),
    (batch, limits): (&BatchFlags, Limits),
    seq_len: usize,
) -> Value {
    let flags = &args.flags;
    json!({
        "categories": table::categories_json(&plan.report),
        "device_bytes": plan.report.total.peak,
        // Beside the device: on the CPU, what is in host memory is counted above.
        "host_bytes": plan.host,
        "disk_bytes": disk::needed(flags, plan, None),
        "fits": plan.fits(),
        "choices": {
            "keep": table::choice(plan),
            "kept_layers": plan.keep.blocks.min(plan.layers),
            "weights": table::residence(plan),
            "lanes": plan.keep.lanes,
            "parked": plan.keep.parked,
            "paged": plan.paging != Paging::Resident,
            "device": machine.name(),
            "quantization": spelled(flags.base.quantization),
            "optimizer": spelled(flags.optimizer.optimizer),
            "seq_len": seq_len,
            "batch_size": batch.batch_size,
            "grad_accum": batch.grad_accum,
            "micro_batch_tokens": limits.tokens,
            "budget_bytes": plan.budget,
        },
        "outlook": {
            "everything_bytes": outlook.everything,
            "resident_bytes": outlook.resident,
            "longest_sequence": outlook.longest_sequence,
            "largest_batch_tokens": outlook.largest_batch,
            "largest_family_member": outlook.largest_member,
        },
    })
}
