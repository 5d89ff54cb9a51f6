//! Speed of every kernel on a GPU: `cargo bench --bench gpu [-- --output FILE] [-- --only TEXT]`.
//!
//! A time is the median of five runs of as many launches as take a twentieth of a second, with one wait at
//! the end of each. Without a GPU it says so and measures nothing; `--test` runs every case once on small
//! shapes.
//!
//! A case that fails is a result like any other, and the next one follows. Where the device is lost or does
//! not come back, this process can do no more: it ends with the status [`AGAIN`], and one more call with the
//! same `--output` measures what is left. Files: `cases.rs` says what is measured, `inputs.rs` on what.

mod attention;
mod cases;
mod inputs;
mod products;
mod results;
#[path = "../support/mod.rs"]
mod support;

use std::any::Any;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qlora_train::device::{Device, cuda};
use qlora_train::error::Error;
use serde_json::{Value, json};

use cases::{Bench, Case, LLAMA_8B, TINY, Work};
use results::Results;
use support::clock::median;

/// The status of a process that needs another one to go on.
const AGAIN: u8 = 3;

/// The longest that a case may take, with making its inputs.
const LIMIT: Duration = Duration::from_secs(10);

/// The flags of the bench.
struct Arguments {
    test: bool,
    output: Option<PathBuf>,
    only: String,
}

impl Arguments {
    fn read() -> Self {
        let given: Vec<String> = std::env::args().skip(1).collect();
        let behind = |flag: &str| {
            given.iter().skip_while(|argument| *argument != flag).nth(1).map(String::to_owned)
        };
        Self {
            test: given.iter().any(|argument| argument == "--test"),
            output: behind("--output").map(PathBuf::from),
            only: behind("--only").unwrap_or_default(),
        }
    }
}

fn main() -> std::io::Result<ExitCode> {
    let arguments = Arguments::read();
    let mut told = std::io::stdout();
    let (card, device) = match cuda::look(0).and_then(|card| Ok((card, Device::cuda(0, None)?))) {
        Ok(found) => found,
        Err(error) => {
            writeln!(told, "no GPU, nothing is measured: {error}")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let size = if arguments.test { TINY } else { LLAMA_8B };
    let mut cases = cases::all(Bench { device: &device, size });
    cases.retain(|case| case.name.contains(&arguments.only));
    let planned: Vec<&str> = cases.iter().map(|case| &*case.name).collect();
    let results = Results::open(arguments.output.clone(), &card, &planned);
    let results = Arc::new(Mutex::new(results));
    for case in cases {
        if locked(&results).has(&case.name) {
            continue;
        }
        let watched = Watch::over(&case.name, &results);
        let result = guarded(&device, case, arguments.test);
        drop(watched);
        writeln!(told, "{}", line(&result, arguments.test))?;
        let failed = result.get("failed").is_some();
        locked(&results).add(result)?;
        if failed && is_lost(&device) {
            return Ok(ExitCode::from(AGAIN));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn locked(results: &Mutex<Results>) -> std::sync::MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process if a case does not end: a call into the driver that hangs cannot be left otherwise.
struct Watch {
    /// Dropped when the case has ended.
    _ended: Sender<()>,
}

impl Watch {
    fn over(case: &str, results: &Arc<Mutex<Results>>) -> Self {
        let (ended, end) = channel();
        let case = case.to_owned();
        let results = results.clone();
        thread::spawn(move || {
            if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                let why = format!("not done within {} s", LIMIT.as_secs());
                // Without a file to write there is nothing to save.
                let _ = locked(&results).add(json!({ "case": case, "failed": why }));
                // SAFETY: ends the process at once, without destructors that would wait for the device.
                unsafe { libc::_exit(i32::from(AGAIN)) }
            }
        });
        Self { _ended: ended }
    }
}

/// The result of a case: what it measured, or why it did not.
fn guarded(device: &Device, case: Case, test: bool) -> Value {
    let name = case.name.clone();
    let why = match catch_unwind(AssertUnwindSafe(|| measure(device, case, test))) {
        Ok(Ok(result)) => return result,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => spoken(&*panic),
    };
    json!({ "case": name, "failed": why })
}

fn spoken(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_default())
}

/// Whether nothing can be done on the device any more.
fn is_lost(device: &Device) -> bool {
    let works = || {
        let mut probe = device.alloc::<u32>("bench", 1)?;
        device.zero(&mut probe);
        device.synchronize()
    };
    works().is_err()
}

/// Seconds of one launch, and what they come to.
fn measure(device: &Device, case: Case, test: bool) -> Result<Value, Error> {
    let Case { name, work, prepare } = case;
    let mut ready = prepare()?;
    let mut seconds_of = |count: usize| {
        let begun = Instant::now();
        (0..count).for_each(|_| (ready.run)());
        device.synchronize()?;
        Ok::<f64, Error>(begun.elapsed().as_secs_f64())
    };
    // Every buffer is touched before the clock runs.
    let warm = seconds_of(ready.round)? / ready.round as f64;
    let count = if test { 1 } else { (0.05 / warm).clamp(1.0, 10_000.0) as usize };
    let rounds = if test { 1 } else { 5 };
    let times: Result<Vec<f64>, Error> =
        (0..rounds).map(|_| Ok(seconds_of(count)? / count as f64)).collect();
    let seconds = median(&mut times?);
    let mut result = json!({ "case": name, "seconds": seconds });
    match work {
        Work::Operations(count) => result["tflops"] = json!(count as f64 / seconds / 1e12),
        Work::Bytes(count) => result["gb_per_s"] = json!(count as f64 / seconds / 1e9),
    }
    Ok(result)
}

fn line(result: &Value, test: bool) -> String {
    let number = |key: &str| result[key].as_f64();
    let micros = number("seconds").unwrap_or(f64::NAN) * 1e6;
    let told = match (result["failed"].as_str(), number("tflops"), number("gb_per_s")) {
        (Some(why), ..) => format!("FAILED: {why}"),
        _ if test => "runs".to_owned(),
        (_, Some(tflops), _) => format!("{micros:10.1} us {tflops:8.1} TFLOP/s"),
        (.., Some(rate)) => format!("{micros:10.1} us {rate:8.1} GB/s"),
        _ => format!("{micros:10.1} us"),
    };
    format!("{:48} {told}", result["case"].as_str().unwrap_or_default())
}
