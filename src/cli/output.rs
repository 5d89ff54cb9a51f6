//! The two streams: results on standard output, everything else on standard error.
//!
//! A reader of results that went away is an error like any other, which `main` recognizes
//! ([`is_closed`]); a reader of notes that went away is nobody's loss and never stops a run.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context;
use qlora_train::error::escape;

/// Writes a line of results.
///
/// # Errors
/// The stream is closed or full.
pub fn result(line: impl Display) -> anyhow::Result<()> {
    piece(format_args!("{line}\n"))
}

/// Writes a piece of a result at once.
///
/// # Errors
/// As [`result`].
pub fn piece(text: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = write!(out, "{text}").and_then(|()| out.flush());
    written.context("standard output")
}

/// Writes one JSON object as the result.
///
/// # Errors
/// As [`result`].
pub fn json(value: &serde_json::Value) -> anyhow::Result<()> {
    result(value)
}

/// Tells something worth a line.
pub fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Tells of something that may be a mistake.
pub fn warn(line: impl Display) {
    note(format_args!("warning: {line}"));
}

/// Tells why it could not be done: one line, whatever names from files hold.
pub fn failure(error: &anyhow::Error) {
    let mut text = String::new();
    for link in error.chain().map(ToString::to_string) {
        // An error that says its cause itself is not followed by it once more.
        if !text.ends_with(&link) {
            text += if text.is_empty() { "" } else { ": " };
            text += &link;
        }
    }
    let line: String = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let safe = |c: char| {
        if c.is_control() { escape(&c.to_string()) } else { c.to_string() }
    };
    note(format_args!("error: {}", line.chars().map(safe).collect::<String>()));
}

/// Whether `error` only says that nobody reads the results any more.
pub fn is_closed(error: &anyhow::Error) -> bool {
    let system = error.downcast_ref::<io::Error>();
    system.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
