//! What was typed becomes what is meant: one file per command.
//!
//! [`parse`] reads the command line, and the file of `--config` under it ([`config_file`]); [`run`]
//! hands over to a command. Results go to standard output, everything else to standard error
//! ([`output`]). Nothing is computed here: commands put together the parts of the library.
//!
//! Read [`train`] first: the other commands use parts of its way. `flags` and `values` say what can
//! be typed, `opened` finds the model, `machine` the device, `told` what is said of the data.

mod card;
mod check;
mod config_file;
mod copies;
mod corpus;
mod demo;
mod disk;
mod doctor;
mod eval;
mod flags;
mod generate;
mod identity;
mod inspect;
mod job;
mod machine;
mod merge;
mod opened;
pub mod output;
mod page;
mod plan;
mod profile;
mod progress;
mod quantize;
mod resolved;
mod run_folder;
mod signals;
mod table;
mod told;
mod train;
mod values;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use qlora_train::Error;

/// Fine-tunes a language model on a machine you own: QLoRA in one binary.
#[derive(Debug, Parser)]
#[command(name = "qlora-train", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(override_usage = "qlora-train MODEL DATA... [FLAGS]\n       qlora-train COMMAND ...")]
#[command(after_help = "The first word is a command or a MODEL; a model called like a command is \
                        written ./eval.\nMODEL is a .safetensors file, a Hugging Face folder, or \
                        org/name in the local cache. DATA is .jsonl, .json or .txt.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: train::TrainArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Loss and perplexity over the supervised tokens, several adapters side by side
    Eval(eval::EvalArgs),
    /// Let the model write
    Generate(generate::GenerateArgs),
    /// What will be learned, token by token
    Inspect(inspect::InspectArgs),
    /// Prove on MODEL and DATA that gradients are right, however they are computed
    Check(check::CheckArgs),
    /// The memory of a run, without loading anything
    Plan(Box<plan::PlanArgs>),
    /// Write the model in four bits, as a folder that is a MODEL itself
    Quantize(quantize::QuantizeArgs),
    /// Write base and adapter as one model in bf16
    Merge(merge::MergeArgs),
    /// What this machine has and what of it will be used
    Doctor(doctor::DoctorArgs),
    /// Train a very small model that comes with the program, and show what it learned
    Demo(demo::DemoArgs),
}

/// A command with its flags, ready to run.
pub struct Invocation(Cli);

/// Why there is nothing to run.
pub enum Refusal {
    /// Usage, or a page that was asked for (`--help`, `--version`).
    Usage(clap::Error),
    /// The file of `--config`.
    Config(Error),
}

/// Reads the command line and the file of `--config`.
///
/// # Errors
/// What the user is to be told instead.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Refusal> {
    let arguments = arguments.into_iter().collect();
    let mut matches = config_file::matches(program(), arguments)?;
    Cli::from_arg_matches_mut(&mut matches).map(Invocation).map_err(Refusal::Usage)
}

/// The commands with what holds for all flags: the last of several wins, and a number below zero is
/// a value, whose range the flag then tells.
fn program() -> clap::Command {
    fn lenient(command: clap::Command) -> clap::Command {
        let command = command.args_override_self(true);
        command.mut_args(|arg| match arg.get_action().takes_values() && !arg.is_positional() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    }
    lenient(Cli::command()).mut_subcommands(lenient)
}

/// Runs a command to its end.
///
/// # Errors
/// Why it could not be done; a stop by signal is [`Error::Interrupted`] in the chain.
pub fn run(Invocation(cli): Invocation) -> anyhow::Result<()> {
    match cli.command {
        None => train::run(&cli.train),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Plan(args)) => plan::run(&args),
        Some(Command::Quantize(args)) => quantize::run(&args),
        Some(Command::Merge(args)) => merge::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Demo(args)) => demo::run(&args),
    }
}
