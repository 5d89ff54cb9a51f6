//! What can go wrong, in three kinds.
//!
//! - The user's mistake is [`Error::Input`]: it names the place (file, line, field, tensor or flag)
//!   and says what to do.
//! - The machine's failure is [`Error::Io`], [`Error::Device`] or [`Error::OutOfMemory`]; the last is
//!   typed so that the caller can print the memory plan beside it.
//! - The programmer's mistake is an assertion with both values, never an `Error`.
//!
//! A stop by signal is [`Error::Interrupted`]: not a failure, but an end that the exit code tells.

use std::fmt;
use std::path::{Path, PathBuf};

/// Everything that a library call can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's mistake: where it stands, what is wrong and what to do.
    #[error("{place}: {what}")]
    Input {
        /// Where the mistake stands.
        place: Place,
        /// What is wrong and what to do, without a closing full stop.
        what: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", escape(&.path.display().to_string()))]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// The system's own word.
        source: std::io::Error,
    },
    /// A device has less memory than an allocation asked for.
    #[error("{device}: out of memory: {label} needs {bytes} bytes, {available} are left")]
    OutOfMemory {
        /// The device, as `doctor` names it.
        device: String,
        /// The label of the allocation.
        label: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes left.
        available: u64,
    },
    /// A device cannot do what it was asked for, or failed at it.
    #[error("{device}: {what}")]
    Device {
        /// The device, as `--device` names it.
        device: String,
        /// What went wrong, and what to do where something can be done.
        what: String,
    },
    /// SIGINT or SIGTERM arrived and the work was put in order before the stop.
    #[error("stopped by signal {signal}")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
}

impl Error {
    /// The user's mistake at `place`; `what` also says what to do.
    pub fn input(place: impl Into<Place>, what: impl Into<String>) -> Self {
        Self::Input { place: place.into(), what: what.into() }
    }

    /// Adapter for `map_err` on file-system calls.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

/// The place of a mistake, from the outside in: `FILE: line N: field F` or `--flag`.
///
/// ```
/// use qlora_train::error::Place;
/// let place = Place::file("data.jsonl").line(3).field("messages[0].role");
/// assert_eq!(place.to_string(), "data.jsonl: line 3: field messages[0].role");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(Vec<String>);

impl Place {
    /// A file or folder.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self(vec![escape(&path.as_ref().display().to_string())])
    }

    /// A command-line flag, written as typed (`--lora-r`).
    pub fn flag(name: &str) -> Self {
        Self(vec![escape(name)])
    }

    /// A physical line of the file, from 1.
    pub fn line(self, line: usize) -> Self {
        self.push(format!("line {line}"))
    }

    /// A field of a JSON or TOML object, as a path (`messages[0].role`).
    pub fn field(self, field: &str) -> Self {
        self.push(format!("field {}", escape(field)))
    }

    /// A tensor of the file.
    pub fn tensor(self, name: &str) -> Self {
        self.push(format!("tensor {}", escape(name)))
    }

    fn push(mut self, part: String) -> Self {
        self.0.push(part);
        self
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::file(path)
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Self::file(path)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(": "))
    }
}

/// Longest name quoted in a message; the rest of a longer one is cut.
const LONGEST_NAME: usize = 200;

/// Makes text from a file safe for a terminal: control characters escaped, length bounded.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(LONGEST_NAME));
    for c in text.chars().take(LONGEST_NAME) {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(LONGEST_NAME).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_write_to_the_terminal() {
        let place = Place::file("a\u{1b}[31m").tensor("x\ny");
        assert_eq!(place.to_string(), "a\\u{1b}[31m: tensor x\\ny");
        assert_eq!(escape(&"n".repeat(500)).chars().count(), LONGEST_NAME + 1);
    }
}
