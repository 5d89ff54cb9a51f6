//! The whole program in one screen: read what was typed, run it, and say how it ended.
//!
//! Exit code 0: done. 1: it could not be done. 2: usage. 128 + signal: stopped by that signal after
//! what had been done was put in order.

mod cli;

use std::process::ExitCode;

use cli::{Refusal, output};
use qlora_train::Error;

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(Refusal::Usage(page)) => return usage(&page),
        Err(Refusal::Config(error)) => return failed(error.into()),
    };
    match cli::run(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}

fn usage(page: &clap::Error) -> ExitCode {
    // Nobody is left to be told when this cannot be written.
    let _ = page.print();
    if page.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

fn failed(error: anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { signal }) => {
            output::note(&error);
            return ExitCode::from(128 + *signal as u8);
        }
        Some(Error::OutOfMemory { .. }) => {
            output::failure(&error.context("free memory, or allow more with --memory-budget"));
        }
        _ => output::failure(&error),
    }
    ExitCode::from(1)
}
