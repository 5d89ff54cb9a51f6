//! The flags, in groups that commands share. What their texts mean is in [`values`](super::values).
//!
//! Names are those of Hugging Face's Trainer and of PEFT where these have one; other spellings that
//! people know are aliases. A flag whose default depends on the model or the data is an `Option`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qlora_train::data::TrainOn;
use qlora_train::device::Dtype;
use qlora_train::model::load::{Quantization, Residence, ScaleForm};
use qlora_train::optim::adamw::Moments;
use qlora_train::optim::schedule::Shape;
use qlora_train::quant::Kind;
use qlora_train::train::checkpoints::Resume;
use qlora_train::train::run::OnSaveError;

use super::values::{
    Bytes, Date, DeviceName, below_one, bytes, date, device, name, not_negative, positive, resume,
    seed, whole,
};

/// Most of anything that is counted.
const MANY: u64 = u32::MAX as u64;

/// How the frozen weights are kept.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Frozen model")]
pub struct BaseFlags {
    /// How frozen linear weights are kept; weights in four bits already stay as they are
    #[arg(long, value_enum, default_value_t = QuantizationName::Nf4, value_name = "NAME")]
    pub quantization: QuantizationName,
    /// Keep the scales of 4-bit blocks in f32
    #[arg(long)]
    pub no_double_quant: bool,
}

impl BaseFlags {
    /// As the loader wants it.
    pub fn quantization(&self) -> Quantization {
        let form = match self.no_double_quant {
            true => ScaleForm::Plain,
            false => ScaleForm::Nested,
        };
        match self.quantization {
            QuantizationName::None => Quantization::None,
            QuantizationName::Nf4 => Quantization::FourBit(Kind::Nf4, form),
            QuantizationName::Fp4 => Quantization::FourBit(Kind::Fp4, form),
        }
    }
}

/// Values of `--quantization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizationName {
    Nf4,
    Fp4,
    None,
}

/// Where it is computed, and with what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Machine")]
pub struct DeviceFlags {
    /// auto, cpu or cuda[:N]
    #[arg(long, value_parser = device, default_value = "auto", value_name = "NAME")]
    pub device: DeviceName,
    /// Threads of the CPU [default: all cores]
    #[arg(long, value_parser = whole(1..=1024), value_name = "N")]
    pub threads: Option<usize>,
    /// Element of activations; f32 on the CPU only
    #[arg(long, value_enum, default_value_t = DtypeName::Bf16, value_name = "NAME")]
    pub dtype: DtypeName,
    /// Where the weights of the layers are: read when their turn comes, or all on the device [default:
    /// what the memory allows]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub weights: Option<WeightsName>,
    /// Memory that may be used, such as 24GiB [default: what the device has]
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub memory_budget: Option<Bytes>,
}

/// Values of `--weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightsName {
    Resident,
    Streamed,
}

impl WeightsName {
    /// As the loader wants it.
    pub fn residence(self) -> Residence {
        match self {
            Self::Resident => Residence::Resident,
            Self::Streamed => Residence::Streamed,
        }
    }
}

/// Values of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    Bf16,
    F32,
}

impl DtypeName {
    /// The device's element.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
        }
    }
}

/// What is made of the records.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct DataFlags {
    /// Longest sequence in tokens [default: the model's, at most 2048]
    #[arg(long, visible_alias = "max-seq-length", value_parser = whole(2..=1 << 24), value_name = "N")]
    pub seq_len: Option<usize>,
    /// Which tokens are supervised; of `text` records always all
    #[arg(long, value_enum, default_value_t = TrainOnName::Completion, value_name = "WHICH")]
    pub train_on: TrainOnName,
    /// The day that a chat template is told, as YYYY-MM-DD [default: today]
    #[arg(long, value_parser = date, value_name = "DATE")]
    pub date: Option<Date>,
}

/// Values of `--train-on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrainOnName {
    Completion,
    All,
}

impl TrainOnName {
    /// As the data module names it.
    pub fn train_on(self) -> TrainOn {
        match self {
            Self::Completion => TrainOn::Completion,
            Self::All => TrainOn::All,
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Method")]
pub struct MethodFlags {
    /// What is trained
    #[arg(long, value_enum, default_value_t = MethodName::Lora, value_name = "NAME")]
    pub method: MethodName,
    /// Rank of the updates [default: 16]
    #[arg(long, visible_aliases = ["r", "lora-rank"], value_parser = whole(1..=4096), value_name = "N")]
    pub lora_r: Option<usize>,
    /// The update is multiplied by alpha/r [default: 32]
    #[arg(long, value_parser = positive, value_name = "X")]
    pub lora_alpha: Option<f64>,
    /// Probability with which an input does not reach the update
    #[arg(long, value_parser = below_one, default_value = "0", value_name = "P")]
    pub lora_dropout: f64,
    /// Names or endings of names of linear maps, or all-linear [default: all-linear]
    #[arg(long, value_delimiter = ',', value_parser = name, value_name = "LIST")]
    pub target_modules: Option<Vec<String>>,
    /// Go on from the weights of this PEFT adapter
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    #[command(flatten)]
    pub foreign: ForeignFlags,
}

/// Whether an adapter must be one of this base.
#[derive(Debug, Clone, Copy, Args)]
pub struct ForeignFlags {
    /// Take an adapter that says it was trained on another base model
    #[arg(long)]
    pub any_base: bool,
}

/// Values of `--method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    Lora,
}

/// How long, and in which portions.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub struct BatchFlags {
    /// Passes over the data; the last one may be a part
    #[arg(long, visible_alias = "num-train-epochs", value_parser = positive, default_value = "1", value_name = "X")]
    pub epochs: f64,
    /// Optimizer steps; wins over --epochs
    #[arg(long, value_parser = whole(1..=MANY), value_name = "N")]
    pub max_steps: Option<usize>,
    /// Sequences of a micro-batch
    #[arg(long, visible_alias = "per-device-train-batch-size", value_parser = whole(1..=1 << 16), default_value = "1", value_name = "N")]
    pub batch_size: usize,
    /// Micro-batches of an optimizer step
    #[arg(long, visible_alias = "gradient-accumulation-steps", value_parser = whole(1..=1 << 16), default_value = "8", value_name = "N")]
    pub grad_accum: usize,
    /// Several records in one row, attention and positions separate (the default)
    #[arg(long, overrides_with = "no_packing")]
    pub packing: bool,
    /// One record a row
    #[arg(long)]
    pub no_packing: bool,
    /// Records in the order of the files
    #[arg(long)]
    pub no_shuffle: bool,
    /// Seed of order, start values and dropout
    #[arg(long, value_parser = seed(), default_value = "42", value_name = "N")]
    pub seed: u64,
}

/// From gradients to new values.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Optimizer")]
pub struct OptimizerFlags {
    /// Highest learning rate
    #[arg(long, visible_alias = "lr", value_parser = positive, default_value = "2e-4", value_name = "X")]
    pub learning_rate: f64,
    /// Shape of the learning rate
    #[arg(long, visible_alias = "lr-scheduler-type", value_enum, default_value_t = SchedulerName::Cosine, value_name = "NAME")]
    pub lr_scheduler: SchedulerName,
    /// Steps in which the rate rises from 0 [default: 3 % of all, rounded up]
    #[arg(long, value_parser = whole(0..=MANY), value_name = "N")]
    pub warmup_steps: Option<usize>,
    /// adamw-8bit keeps the moments in eight bits
    #[arg(long, visible_alias = "optim", value_enum, default_value_t = OptimizerName::Adamw, value_name = "NAME")]
    pub optimizer: OptimizerName,
    /// Decoupled weight decay
    #[arg(long, value_parser = not_negative, default_value = "0", value_name = "X")]
    pub weight_decay: f64,
    /// A longer gradient is shortened to this norm
    #[arg(long, value_parser = positive, default_value = "1", value_name = "X")]
    pub max_grad_norm: f64,
    /// Decay of the first moment
    #[arg(long, value_parser = below_one, default_value = "0.9", value_name = "X")]
    pub adam_beta1: f64,
    /// Decay of the second moment
    #[arg(long, value_parser = below_one, default_value = "0.999", value_name = "X")]
    pub adam_beta2: f64,
    /// Added to the root of the second moment
    #[arg(long, value_parser = positive, default_value = "1e-8", value_name = "X")]
    pub adam_epsilon: f64,
}

/// Values of `--lr-scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchedulerName {
    Constant,
    Linear,
    Cosine,
}

impl SchedulerName {
    /// The curve.
    pub fn shape(self) -> Shape {
        match self {
            Self::Constant => Shape::Constant,
            Self::Linear => Shape::Linear,
            Self::Cosine => Shape::Cosine,
        }
    }
}

/// Values of `--optimizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimizerName {
    Adamw,
    #[value(name = "adamw-8bit")]
    Adamw8bit,
}

impl OptimizerName {
    /// How the moments are kept.
    pub fn moments(self) -> Moments {
        match self {
            Self::Adamw => Moments::F32,
            Self::Adamw8bit => Moments::EightBit,
        }
    }
}

/// What is evaluated and written along the way.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputFlags {
    /// Where the adapter goes; absent or empty, unless resuming
    #[arg(long, default_value = "qlora-out", value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Data of evaluations; may be given several times
    #[arg(long, value_name = "FILE")]
    pub eval_data: Vec<PathBuf>,
    /// Steps between evaluations; the last step always is one
    #[arg(long, value_parser = whole(1..=MANY), value_name = "N")]
    pub eval_steps: Option<usize>,
    /// Steps between checkpoints [default: none but on a signal]
    #[arg(long, value_parser = whole(1..=MANY), value_name = "N")]
    pub save_steps: Option<usize>,
    /// Checkpoints that stay
    #[arg(long, visible_alias = "save-total-limit", value_parser = whole(1..=MANY), default_value = "2", value_name = "N")]
    pub keep_checkpoints: usize,
    /// What a checkpoint that cannot be written means: the end of the run, or a warning
    #[arg(long, value_enum, default_value_t = OnSaveErrorName::Stop, value_name = "WHAT")]
    pub on_save_error: OnSaveErrorName,
    /// Steps in a row that may be left out because their numbers are not finite or leap
    #[arg(long, value_parser = whole(1..=MANY), default_value = "5", value_name = "N")]
    pub max_skipped_steps: usize,
    /// Go on: auto takes the newest whole checkpoint of the output folder
    #[arg(long, visible_alias = "resume-from-checkpoint", value_parser = resume, value_name = "auto|DIR")]
    pub resume: Option<Resume>,
    /// Write a timeline of the run, for chrome://tracing or Perfetto, and tell where the time went
    #[arg(long, value_name = "FILE.json")]
    pub profile: Option<PathBuf>,
}

/// Values of `--on-save-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnSaveErrorName {
    Stop,
    Continue,
}

impl OnSaveErrorName {
    /// As the loop wants it.
    pub fn meaning(self) -> OnSaveError {
        match self {
            Self::Stop => OnSaveError::Stop,
            Self::Continue => OnSaveError::Continue,
        }
    }
}

/// All flags of a training run.
#[derive(Debug, Clone, Args)]
pub struct TrainFlags {
    #[command(flatten)]
    pub batch: BatchFlags,
    #[command(flatten)]
    pub data: DataFlags,
    #[command(flatten)]
    pub method: MethodFlags,
    #[command(flatten)]
    pub optimizer: OptimizerFlags,
    #[command(flatten)]
    pub base: BaseFlags,
    #[command(flatten)]
    pub output: OutputFlags,
    #[command(flatten)]
    pub device: DeviceFlags,
}

/// How a value of a closed list is written.
pub fn spelled(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
