//! `eval`: the mean loss of the supervised tokens, for the base or for several adapters on it.
//!
//! The base is loaded once; adapters are attached one after the other.

use std::path::{Path, PathBuf};

use clap::Args;
use qlora_train::checkpoint::adapter::Adapter;
use qlora_train::data::Dataset;
use qlora_train::device::Device;
use qlora_train::error::{Error, Place};
use qlora_train::methods::lora;
use qlora_train::model::decoder::Decoder;
use qlora_train::model::load::load;
use qlora_train::model::workspace::Purpose;
use qlora_train::params::Index;
use qlora_train::train::evaluate::{Evaluation, RecordLoss, evaluate, limits};
use qlora_train::train::session::Session;
use serde_json::{Value, json};

use super::corpus::Reading;
use super::flags::{BaseFlags, DataFlags, DeviceFlags, ForeignFlags};
use super::opened::{Opened, open};
use super::table::grouped;
use super::values::Date;
use super::{output, told};

/// Flags of `eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Model folder, .safetensors file, or org/name in the local cache
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Records to evaluate: .jsonl, .json or .txt files
    #[arg(required_unless_present = "config")]
    data: Vec<PathBuf>,
    /// Adapter folder; may be given several times. Without one the base is evaluated
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
    /// With --json: the loss of every record
    #[arg(long, requires = "json")]
    per_record: bool,
    /// Settings from a file, in snake_case; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    data_flags: DataFlags,
    #[command(flatten)]
    foreign: ForeignFlags,
    #[command(flatten)]
    base: BaseFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

/// Evaluates.
///
/// # Errors
/// Whatever is wrong with the inputs; too little memory.
pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let machine = args.device.machine()?;
    let missing = || Error::input(Place::flag("MODEL"), "missing: give a model and data");
    let opened = open(args.model.as_deref().ok_or_else(missing)?)?;
    let read = |folder| Ok::<_, Error>((opened.adapter(folder, args.foreign)?, folder));
    let adapters =
        args.adapter.iter().map(PathBuf::as_path).map(read).collect::<Result<Vec<_>, _>>()?;
    let (data, seq_len) = load_data(args, &opened)?;
    let device = machine.open()?;
    let (config, weights) = (opened.config.clone(), Some(&opened.weights));
    let residence = opened.residence(args.device.weights, machine.budget);
    let mut decoder = load(&device, config, weights, args.base.quantization(), residence)?;
    let mut results = Vec::new();
    if adapters.is_empty() {
        let (result, _) = evaluate_one(&device, decoder, None, &data, seq_len)?;
        results.push((None, result));
    } else {
        for (adapter, folder) in &adapters {
            let result;
            let attached = Some((adapter, *folder));
            (result, decoder) = evaluate_one(&device, decoder, attached, &data, seq_len)?;
            results.push((Some(*folder), result));
        }
    }
    match args.json {
        true => output::json(&as_json(&results, args.per_record)),
        false => output::result(as_table(&results)),
    }
}

fn load_data(args: &EvalArgs, opened: &Opened) -> Result<(Dataset, usize), Error> {
    let date = args.data_flags.date.unwrap_or_else(Date::today);
    let reading = Reading::new(&args.data_flags, opened, template_of(&args.adapter), date)?;
    let data = reading.read(&args.data, opened)?;
    told::tell("data", &data.report, reading.tokenizer.as_ref());
    Ok((data, reading.policy.seq_len))
}

/// The adapter whose chat template the records are rendered with: of several, the first.
fn template_of(adapters: &[PathBuf]) -> Option<&Path> {
    if adapters.len() > 1 {
        output::note("records are rendered with the chat template of the first adapter");
    }
    adapters.first().map(PathBuf::as_path)
}

/// Evaluates one adapter, or the base, and gives the base back.
fn evaluate_one(
    device: &Device,
    mut decoder: Decoder,
    adapter: Option<(&Adapter, &Path)>,
    data: &Dataset,
    seq_len: usize,
) -> Result<(Evaluation, Decoder), Error> {
    let index = match adapter {
        None => Index::default(),
        Some((adapter, folder)) => {
            detach(&mut decoder);
            lora::attach_adapter(&mut decoder, adapter, folder, 0.0)?.index
        }
    };
    let limits = limits(&data.examples, seq_len);
    let mut session = Session::new(device.clone(), decoder, index, limits, Purpose::Evaluation)?;
    if let Some((adapter, _)) = adapter {
        lora::restore(device, &mut session.params, adapter);
    }
    let evaluation = evaluate(&mut session, &data.examples, seq_len)?;
    Ok((evaluation, session.decoder))
}

fn detach(decoder: &mut Decoder) {
    let linears = decoder.layers.iter_mut().flat_map(|block| block.linears_mut());
    linears.for_each(|linear| linear.lora = None);
}

fn as_json(results: &[(Option<&Path>, Evaluation)], per_record: bool) -> Value {
    let one = |(adapter, evaluation): &(Option<&Path>, Evaluation)| {
        let mut result = json!({
            "adapter": adapter.map(|folder| folder.display().to_string()),
            "loss": evaluation.loss(),
            "perplexity": evaluation.perplexity(),
            "supervised_tokens": evaluation.tokens(),
        });
        if per_record {
            result["records"] = records(evaluation);
        }
        result
    };
    json!({ "results": results.iter().map(one).collect::<Vec<_>>() })
}

fn records(evaluation: &Evaluation) -> Value {
    let record = |record: &RecordLoss| {
        json!({
            "index": record.record,
            "supervised_tokens": record.tokens,
            "loss_sum": record.loss_sum,
        })
    };
    evaluation.records.iter().map(record).collect()
}

fn as_table(results: &[(Option<&Path>, Evaluation)]) -> String {
    let name = |adapter: &Option<&Path>| {
        adapter.map_or("base".to_owned(), |folder| folder.display().to_string())
    };
    let width = results.iter().map(|(adapter, _)| name(adapter).chars().count()).max();
    let width = width.unwrap_or(0).max("adapter".len());
    let mut lines = vec![format!(
        "{:width$}  {:>10}  {:>12}  {:>10}",
        "adapter", "loss", "perplexity", "tokens"
    )];
    for (adapter, evaluation) in results {
        lines.push(format!(
            "{:width$}  {:>10.5}  {:>12.4}  {:>10}",
            name(adapter),
            evaluation.loss(),
            evaluation.perplexity(),
            grouped(evaluation.tokens())
        ));
    }
    lines.join("\n")
}
