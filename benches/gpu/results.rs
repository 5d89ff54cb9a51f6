//! The file of results: whole after every case, and gone on with by the next process.
//!
//! ```json
//! { "device": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "driver": 13000,
//!   "planned": ["matmul Dense Nt/4096x4096x4096", ...],
//!   "cases": [{ "case": "copy/65536x4096", "seconds": 4e-4, "gb_per_s": 2684.3 },
//!             { "case": "adamw/16777216", "failed": "not done within 10 s" }] }
//! ```
//!
//! A case has `tflops` or `gb_per_s`. What is planned and not among the cases was not reached.

use std::fs;
use std::io;
use std::path::PathBuf;

use qlora_train::device::cuda::Card;
use serde_json::{Value, json};

/// The results so far.
pub struct Results {
    /// Nowhere if nobody asked for a file.
    path: Option<PathBuf>,
    table: Value,
}

impl Results {
    /// An empty table of `card`, or what an earlier process left at `path`.
    pub fn open(path: Option<PathBuf>, card: &Card, planned: &[&str]) -> Self {
        let earlier = path.as_ref().and_then(|path| fs::read(path).ok());
        let earlier = earlier.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (major, minor) = card.capability;
        let fresh = || {
            json!({
                "device": card.name,
                "compute_capability": format!("{major}.{minor}"),
                "driver": card.driver,
                "planned": planned,
                "cases": [],
            })
        };
        Self { path, table: earlier.unwrap_or_else(fresh) }
    }

    /// Whether this case has a result, be it that it failed.
    pub fn has(&self, case: &str) -> bool {
        let cases = self.table["cases"].as_array();
        cases.is_some_and(|cases| cases.iter().any(|result| result["case"] == case))
    }

    /// Adds a result and writes the file, atomically.
    pub fn add(&mut self, result: Value) -> io::Result<()> {
        self.table["cases"].as_array_mut().expect("a list of cases").push(result);
        let Some(path) = &self.path else { return Ok(()) };
        let unfinished = path.with_extension("part");
        fs::write(&unfinished, serde_json::to_string_pretty(&self.table)?)?;
        fs::rename(unfinished, path)
    }
}
