//! `train_config.toml`: all settings of a run as they were resolved, valid as a `--config` again.

use std::path::Path;

use qlora_train::checkpoint::adapter::TargetModules;
use qlora_train::data::Packing;
use toml::{Table, Value};

use super::flags::{BaseFlags, TrainFlags, spelled};
use super::job::Source;
use super::train::TrainArgs;
use super::values::Date;

/// What flags that were not given came to.
pub struct Resolved<'a> {
    /// Longest sequence.
    pub seq_len: usize,
    /// Steps of warm-up.
    pub warmup: u64,
    /// What chat templates are told.
    pub date: Date,
    /// How the frozen weights are kept.
    pub base: BaseFlags,
    /// What is attached.
    pub source: &'a Source,
}

/// Settings that no number of the run depends on, or that its data and steps stand for.
const WITHOUT_EFFECT: [&str; 18] = [
    "any_base",
    "data",
    "date",
    "device",
    "epochs",
    "eval_data",
    "eval_steps",
    "keep_checkpoints",
    "max_skipped_steps",
    "max_steps",
    "memory_budget",
    "model",
    "on_save_error",
    "output_dir",
    "save_steps",
    "threads",
    "warmup_steps",
    "weights",
];

/// The file's text.
pub fn file(args: &TrainArgs, resolved: &Resolved) -> String {
    format!(
        "# All settings of this run. To repeat it in another folder:\n\
         #   qlora-train --config train_config.toml --output-dir DIR\n\n{}",
        table(args, resolved)
    )
}

/// The settings that numbers depend on, for the identity of the run. A run may become longer: how many
/// steps it has is no part of it, nor in how many of them the learning rate rises.
pub fn numbers(args: &TrainArgs, resolved: &Resolved) -> String {
    let mut table = table(args, resolved);
    table.retain(|key, _| !WITHOUT_EFFECT.contains(&key));
    table.to_string()
}

/// What an adapter of `total` steps tells of how it was trained: the settings that its numbers depend on, and
/// no path of this machine.
pub fn told(args: &TrainArgs, resolved: &Resolved, total: u64) -> String {
    let mut table = table(args, resolved);
    table.retain(|key, _| !WITHOUT_EFFECT.contains(&key) && key != "init_adapter");
    table.insert("max_steps".to_owned(), whole(total as usize));
    table.insert("warmup_steps".to_owned(), whole(resolved.warmup as usize));
    table.to_string()
}

fn table(args: &TrainArgs, resolved: &Resolved) -> Table {
    let flags = &args.flags;
    let mut table = Table::new();
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("model", args.model.clone().unwrap_or_default().into());
    set("data", paths(&args.data));
    set("seq_len", whole(resolved.seq_len));
    set("warmup_steps", whole(resolved.warmup as usize));
    set("date", resolved.date.to_string().into());
    set("quantization", spelled(resolved.base.quantization).into());
    set("no_double_quant", resolved.base.no_double_quant.into());
    add_method(&mut table, flags, resolved.source);
    add_training(&mut table, flags);
    add_optimizer(&mut table, flags);
    add_rest(&mut table, flags);
    table
}

fn add_method(table: &mut Table, flags: &TrainFlags, source: &Source) {
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("method", spelled(flags.method.method).into());
    set("lora_dropout", flags.method.lora_dropout.into());
    set("any_base", flags.method.foreign.any_base.into());
    match source {
        Source::New(settings) => {
            let targets = flags.method.target_modules.clone();
            set("lora_r", whole(settings.rank));
            set("lora_alpha", settings.alpha.into());
            set("target_modules", targets.unwrap_or_else(|| vec!["all-linear".into()]).into());
        }
        Source::From { adapter, folder, .. } => {
            set("lora_r", whole(adapter.config.rank));
            set("lora_alpha", adapter.config.alpha.into());
            set("init_adapter", path(folder));
            if let TargetModules::Suffixes(names) = &adapter.config.target_modules {
                set("target_modules", names.clone().into());
            }
        }
    }
}

fn add_training(table: &mut Table, flags: &TrainFlags) {
    let batch = &flags.batch;
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("epochs", batch.epochs.into());
    set("batch_size", whole(batch.batch_size));
    set("grad_accum", whole(batch.grad_accum));
    set("packing", (batch.packing() == Packing::On).into());
    set("no_shuffle", batch.no_shuffle.into());
    set("seed", whole(batch.seed as usize));
    set("train_on", spelled(flags.data.train_on).into());
    if let Some(steps) = batch.max_steps {
        set("max_steps", whole(steps));
    }
}

fn add_optimizer(table: &mut Table, flags: &TrainFlags) {
    let optimizer = &flags.optimizer;
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("learning_rate", optimizer.learning_rate.into());
    set("lr_scheduler", spelled(optimizer.lr_scheduler).into());
    set("optimizer", spelled(optimizer.optimizer).into());
    set("weight_decay", optimizer.weight_decay.into());
    set("max_grad_norm", optimizer.max_grad_norm.into());
    set("adam_beta1", optimizer.adam_beta1.into());
    set("adam_beta2", optimizer.adam_beta2.into());
    set("adam_epsilon", optimizer.adam_epsilon.into());
}

fn add_rest(table: &mut Table, flags: &TrainFlags) {
    let (output, device) = (&flags.output, &flags.device);
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("output_dir", path(&output.output_dir));
    set("keep_checkpoints", whole(output.keep_checkpoints));
    set("max_skipped_steps", whole(output.max_skipped_steps));
    set("on_save_error", spelled(output.on_save_error).into());
    set("device", device.device.to_string().into());
    set("dtype", spelled(device.dtype).into());
    let counts = [
        ("eval_steps", output.eval_steps),
        ("save_steps", output.save_steps),
        ("threads", device.threads),
    ];
    for (key, count) in counts {
        if let Some(count) = count {
            set(key, whole(count));
        }
    }
    if !output.eval_data.is_empty() {
        set("eval_data", paths(&output.eval_data));
    }
    if let Some(weights) = device.weights {
        set("weights", spelled(weights).into());
    }
    if let Some(budget) = device.memory_budget {
        set("memory_budget", budget.to_string().into());
    }
}

fn whole(count: usize) -> Value {
    Value::Integer(count as i64)
}

fn path(path: &Path) -> Value {
    Value::String(path.display().to_string())
}

fn paths(list: &[std::path::PathBuf]) -> Value {
    Value::Array(list.iter().map(|item| path(item)).collect())
}
