//! `check`: the self-test on the user's own model and data. What must not depend on how it is computed is
//! computed in several ways, and the gradient is held against differences of the loss.

use std::path::PathBuf;

use clap::Args;
use qlora_train::error::{Error, Place};
use qlora_train::train::check::{Comparison, Subject};
use serde_json::json;

use super::corpus::Reading;
use super::flags::{BaseFlags, DataFlags, DeviceFlags, MethodFlags};
use super::opened::open;
use super::output;
use super::values::{Date, whole};

/// Flags of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Model folder, .safetensors file, or org/name in the local cache
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Records to check with: .jsonl, .json or .txt files
    #[arg(required_unless_present = "config")]
    data: Vec<PathBuf>,
    /// Records that are used, the first ones
    #[arg(long, value_parser = whole(1..=1 << 16), default_value = "4", value_name = "N")]
    records: usize,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
    /// Settings from a file, in snake_case; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    data_flags: DataFlags,
    #[command(flatten)]
    method: MethodFlags,
    #[command(flatten)]
    base: BaseFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

/// Checks.
///
/// # Errors
/// Whatever is wrong with the inputs; a comparison that fails.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let machine = args.device.machine()?;
    let missing = || Error::input(Place::flag("MODEL"), "missing: give a model and data");
    let opened = open(args.model.as_deref().ok_or_else(missing)?)?;
    let source = MethodFlags { lora_dropout: 0.0, ..args.method.clone() }.source()?;
    source.check(&opened, args.method.foreign)?;
    let date = args.data_flags.date.unwrap_or_else(Date::today);
    let data = Reading::new(&args.data_flags, &opened, None, date)?.read(&args.data, &opened)?;
    machine.tell();
    let examples = &data.examples[..args.records.min(data.examples.len())];
    let tokens: usize = examples.iter().map(|example| example.tokens.len()).sum();
    output::note(format_args!(
        "checking with {} records, {tokens} tokens, and an adapter of random numbers",
        examples.len()
    ));
    let subject = Subject {
        config: &opened.config,
        weights: &opened.weights,
        quantization: args.base.quantization(),
        method: source.method(),
        examples,
        device: machine.open()?,
        hardware: machine.hardware,
        budget: machine.budget,
        seed: SEED,
    };
    let mut written = Ok(());
    let done = subject.check(|comparison| {
        if !args.json && written.is_ok() {
            written = output::result(row(comparison));
        }
    })?;
    written?;
    let failed = done.iter().filter(|comparison| !comparison.holds()).count();
    if args.json {
        output::json(&as_json(&done))?;
    }
    if failed > 0 {
        let what = format!(
            "{failed} of {} comparisons fail: do not train with this program on this machine, and \
             report the table with the model's name",
            done.len()
        );
        return Err(Error::input(Place::flag("check"), what).into());
    }
    match args.json {
        true => Ok(()),
        false => output::result(format_args!("all {} comparisons hold", done.len())),
    }
}

/// Seed of the adapter's numbers.
const SEED: u64 = 42;

fn row(comparison: &Comparison) -> String {
    let Comparison { name, difference, bound } = comparison;
    let verdict = if comparison.holds() { "holds" } else { "FAILS" };
    let bound = if *bound == 0.0 { "0".to_owned() } else { format!("{bound:.0e}") };
    format!("  {verdict}  {difference:>8.1e} of {bound:>5}  {name}")
}

fn as_json(done: &[Comparison]) -> serde_json::Value {
    let one = |comparison: &Comparison| {
        json!({
            "name": comparison.name,
            "difference": comparison.difference,
            "bound": comparison.bound,
            "holds": comparison.holds(),
        })
    };
    json!({
        "comparisons": done.iter().map(one).collect::<Vec<_>>(),
        "holds": done.iter().all(Comparison::holds),
    })
}
