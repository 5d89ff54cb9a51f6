//! Speed of every kernel on a GPU: `cargo bench --bench gpu [-- --output FILE]`.
//!
//! A time is the median of five runs of as many launches as take a tenth of a second, with one wait at the
//! end of each. Without a GPU it says so and measures nothing; `--test` runs every case once on small shapes.

mod cases;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use qlora_train::device::{Device, cuda};
use serde_json::{Value, json};

use cases::{Case, Work};
use support::clock::median;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let test = arguments.iter().any(|argument| argument == "--test");
    let mut output = arguments.iter().skip_while(|argument| *argument != "--output");
    let output = output.nth(1).map(PathBuf::from);
    let mut told = std::io::stdout();
    let (card, device) = match cuda::look(0).and_then(|card| Ok((card, Device::cuda(0, None)?))) {
        Ok(found) => found,
        Err(error) => return writeln!(told, "no GPU, nothing is measured: {error}"),
    };
    let mut measured = Vec::new();
    for case in cases::all(&device, test) {
        let result = measure(&device, case, test);
        let rates = if test { "runs".to_owned() } else { line(&result) };
        writeln!(told, "{:44} {rates}", result["case"].as_str().unwrap_or_default())?;
        measured.push(result);
    }
    let (major, minor) = card.capability;
    let table = json!({
        "device": card.name,
        "compute_capability": format!("{major}.{minor}"),
        "driver": card.driver,
        "cases": measured,
    });
    match output {
        Some(path) => std::fs::write(path, serde_json::to_string_pretty(&table)?),
        None => Ok(()),
    }
}

/// Seconds of one launch, and what they come to.
fn measure(device: &Device, case: Case, test: bool) -> Value {
    let Case { name, work, prepare } = case;
    let mut run = prepare();
    let mut seconds_of = |count: usize| {
        let begun = Instant::now();
        (0..count).for_each(|_| run());
        device.synchronize().unwrap_or_else(|error| panic!("{name}: {error}"));
        begun.elapsed().as_secs_f64()
    };
    let once = seconds_of(1).min(seconds_of(1));
    let count = if test { 1 } else { (0.1 / once).clamp(1.0, 10_000.0) as usize };
    let rounds = if test { 1 } else { 5 };
    let mut times: Vec<f64> = (0..rounds).map(|_| seconds_of(count) / count as f64).collect();
    let seconds = median(&mut times);
    let mut result = json!({ "case": name, "seconds": seconds });
    match work {
        Work::Operations(count) => result["tflops"] = json!(count as f64 / seconds / 1e12),
        Work::Bytes(count) => result["gb_per_s"] = json!(count as f64 / seconds / 1e9),
    }
    result
}

fn line(result: &Value) -> String {
    let number = |key: &str| result[key].as_f64();
    let micros = number("seconds").unwrap_or(f64::NAN) * 1e6;
    match (number("tflops"), number("gb_per_s")) {
        (Some(tflops), _) => format!("{micros:10.1} us {tflops:8.1} TFLOP/s"),
        (_, Some(rate)) => format!("{micros:10.1} us {rate:8.1} GB/s"),
        _ => format!("{micros:10.1} us"),
    }
}
