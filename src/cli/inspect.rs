//! `inspect`: what will be learned, token by token, before anything is.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use qlora_train::checkpoint::atomic;
use qlora_train::data::Tokenizer;
use qlora_train::data::{Counts, DataReport, Dataset, Example, RecordKind};
use qlora_train::data::{ExplainedToken, explain};
use qlora_train::error::{Error, Place, escape};
use serde_json::{Value, json};

use super::corpus::Reading;
use super::flags::DataFlags;
use super::opened::open;
use super::values::{Date, whole};
use super::{output, page, told};

/// Flags of `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Model folder, .safetensors file, or org/name in the local cache
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Records to look at: .jsonl, .json or .txt files
    #[arg(required_unless_present = "config")]
    data: Vec<PathBuf>,
    /// Sequences that are shown
    #[arg(long, value_parser = whole(0..=1 << 32), default_value = "3", value_name = "N")]
    records: usize,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
    /// The report as a page of HTML
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Settings from a file, in snake_case; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: DataFlags,
}

/// Shows.
///
/// # Errors
/// Whatever is wrong with the inputs.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let missing = || Error::input(Place::flag("MODEL"), "missing: give a model and data");
    let opened = open(args.model.as_deref().ok_or_else(missing)?)?;
    let date = args.flags.date.unwrap_or_else(Date::today);
    let reading = Reading::new(&args.flags, &opened, None, date)?;
    let (data, tokenizer) = (reading.read(&args.data, &opened)?, reading.tokenizer.as_ref());
    if let Some(path) = &args.html {
        let shown = &data.examples[..args.records.min(data.examples.len())];
        let page = page::page(&args.data, &data.report, shown, tokenizer);
        atomic::write_bytes(path, page)?;
    }
    if args.json {
        return output::json(&as_json(args, &data, tokenizer));
    }
    told::tell("data", &data.report, tokenizer);
    if let Err(error) = told::refuse(&args.data, &data.report, tokenizer) {
        output::warn(format_args!("training refuses this: {error}"));
    }
    let colour = std::io::stdout().is_terminal();
    for example in data.examples.iter().take(args.records) {
        show(args, example, tokenizer, colour)?;
    }
    Ok(())
}

fn show(
    args: &InspectArgs,
    example: &Example,
    tokenizer: Option<&Tokenizer>,
    colour: bool,
) -> anyhow::Result<()> {
    let tokens = explain(example, tokenizer);
    let text = if colour { coloured(&tokens) } else { told::marked(&tokens) };
    output::result(format_args!(
        "{}: {} tokens, {} supervised\n{text}",
        example.origin.place(&args.data),
        tokens.len(),
        example.supervised_count()
    ))
}

/// Tokens with a gap between them, supervised ones green.
fn coloured(tokens: &[ExplainedToken]) -> String {
    let one = |token: &ExplainedToken| match (token.supervised, escape(&token.text)) {
        (true, text) => format!("\u{1b}[32m{text}\u{1b}[0m"),
        (false, text) => format!("\u{1b}[2m{text}\u{1b}[0m"),
    };
    tokens.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn as_json(args: &InspectArgs, data: &Dataset, tokenizer: Option<&Tokenizer>) -> Value {
    let shown = data.examples.iter().take(args.records);
    let records: Vec<_> = shown
        .map(|example| {
            let tokens = explain(example, tokenizer);
            json!({
                "place": example.origin.place(&args.data).to_string(),
                "tokens": tokens.iter().map(|token| &token.text).collect::<Vec<_>>(),
                "ids": example.tokens,
                "supervised": example.supervised,
            })
        })
        .collect();
    let mut result = totals(&data.report);
    let refusal = told::refuse(&args.data, &data.report, tokenizer);
    result["refused"] = refusal.err().map_or(Value::Null, |error| error.to_string().into());
    result["records_shown"] = records.into();
    result
}

fn totals(report: &DataReport) -> Value {
    let dropped = report.dropped.iter();
    let dropped: Vec<_> = dropped.map(|(place, why)| format!("{place}: {why}")).collect();
    json!({
        "records": report.records,
        "sequences": report.examples,
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "cut": report.cut.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "cut_tokens": report.cut_tokens,
        "dropped": dropped,
        "end_token_supervised": report.end_token_supervised,
        "kinds": report.kinds.iter().map(kind).collect::<Value>(),
        "begin_twice": report.begin_twice.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "begin_missing": report.begin_missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "split_borders": report.split_borders,
    })
}

fn kind((kind, counts): (&RecordKind, &Counts)) -> Value {
    json!({
        "kind": kind.name(),
        "records": counts.records,
        "sequences": counts.sequences,
        "tokens": counts.tokens,
        "supervised_tokens": counts.supervised,
        "end_token_supervised": counts.ends,
        "cut": counts.cut,
    })
}
