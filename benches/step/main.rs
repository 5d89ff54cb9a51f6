//! A whole training step on synthetic weights, beside the peak of this machine measured in the same
//! run: `cargo bench --bench step [-- CASE…] [--json] [--threads N] [--simd LEVEL]`.
//!
//! QLoRA as the program does it by default: NF4 with double quantization, rank 16 on every linear
//! map. A CASE is a name of [`cases`] or the beginning of some, a LEVEL `portable`, `avx2`, `avx512`
//! or `avx512-bf16`. Each case runs in a process of its own, on a store that the first process
//! wrote: its memory and its start are its own. With `--test` the smallest case runs alone, once.
//!
//! What is printed of a case:
//!
//! - `flops_per_token`: the operations that a step needs, those of recomputed blocks counted twice
//!   forward, since they have to be done.
//! - `dot_peak_gflops`: a loop of the multiply-adds that products are made of (bf16 dot products, or
//!   f32 for f32 activations), in registers, on as many threads, between steps; the median.
//! - `share_of_dot_peak`: the operations over the time of the median step, over that peak. With one
//!   thread time is the processor's, which other work on the machine does not enter.
//! - `peak_memory_bytes`: what was allocated at most; `peak_resident_bytes`: what the process had in
//!   memory at most, mapped weights included.
//! - `start_to_first_step_seconds`: from the first line of `main` until the first step begins.

mod cases;
#[path = "../support/mod.rs"]
mod support;
mod synthetic;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::MicroBatch;
use qlora_train::device::{Device, Simd};
use qlora_train::error::Error;
use qlora_train::methods::lora::{self, Settings, Targets};
use qlora_train::model::config::Config;
use qlora_train::model::load::{Quantization, Residence, load};
use qlora_train::model::tokens::Limits;
use qlora_train::model::workspace::Purpose;
use qlora_train::ops::Write;
use qlora_train::ops::dropout::Draw;
use qlora_train::ops::gemm::{Epilogue, Form, Term, matmul};
use qlora_train::optim::adamw::{self, AdamW, Moments};
use qlora_train::optim::shelf::Paging;
use qlora_train::train::session::Session;

use cases::Case;
use qlora_train::device::peak::Peak;
use support::clock::{median, resident_bytes, seconds};
use support::shapes::RANK;

/// What is printed of a case.
#[derive(serde::Serialize)]
struct Line {
    case: String,
    threads: usize,
    tokens_per_second: f64,
    flops_per_token: f64,
    dot_peak_gflops: f64,
    share_of_dot_peak: f64,
    gemm_gflops: f64,
    peak_memory_bytes: u64,
    peak_resident_bytes: u64,
    start_to_first_step_seconds: f64,
}

fn main() -> ExitCode {
    let started = Instant::now();
    let done = Arguments::read(std::env::args().skip(1)).and_then(|arguments| {
        match &arguments.store {
            Some(folder) => measure(&arguments, Path::new(folder), started),
            None => run_each(&arguments),
        }
        .map_err(|error| error.to_string())
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was asked for.
struct Arguments {
    cases: Vec<Case>,
    threads: usize,
    simd: Simd,
    json: bool,
    test: bool,
    /// Where the one case of this process has its model.
    store: Option<String>,
}

const LEVELS: [(&str, Simd); 4] = [
    ("portable", Simd::Portable),
    ("avx2", Simd::Avx2),
    ("avx512", Simd::Avx512),
    ("avx512-bf16", Simd::Avx512Bf16),
];

impl Arguments {
    fn read(mut given: impl Iterator<Item = String>) -> Result<Self, String> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (cases, simd) = (Vec::new(), Simd::detect());
        let mut all = Self { cases, threads, simd, json: false, test: false, store: None };
        while let Some(argument) = given.next() {
            let mut value = || given.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--json" => all.json = true,
                "--test" => all.test = true,
                // Cargo adds it.
                "--bench" => (),
                "--threads" => all.threads = threads_of(&value()?)?,
                "--simd" => all.simd = simd_of(&value()?)?,
                "--store" => all.store = Some(value()?),
                name => match cases::named(name) {
                    found if found.is_empty() => return Err(format!("no case begins with {name}")),
                    found => all.cases.extend(found),
                },
            }
        }
        if all.cases.is_empty() {
            all.cases = cases::named("");
        }
        if all.test {
            all.cases.truncate(1);
        }
        Ok(all)
    }
}

fn threads_of(given: &str) -> Result<usize, String> {
    match given.parse() {
        Ok(threads @ 1..) => Ok(threads),
        _ => Err(format!("{given} is no number of threads")),
    }
}

fn simd_of(given: &str) -> Result<Simd, String> {
    let known = LEVELS.into_iter().find(|(name, _)| *name == given);
    let (_, simd) =
        known.ok_or(format!("{given} is none of portable, avx2, avx512, avx512-bf16"))?;
    if simd > Simd::detect() {
        return Err(format!("this machine has no {given}"));
    }
    Ok(simd)
}

/// Runs this program once for each case.
fn run_each(arguments: &Arguments) -> Result<(), Error> {
    for case in &arguments.cases {
        let folder = tempfile::tempdir().expect("a temporary folder");
        case.shape.write(folder.path())?;
        let level = LEVELS.iter().find(|(_, simd)| *simd == arguments.simd);
        let (level, _) = level.expect("every level has a name");
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(program);
        command.arg(case.to_string()).arg("--store").arg(folder.path());
        command.args(["--threads", &arguments.threads.to_string(), "--simd", level]);
        command.args(arguments.json.then_some("--json"));
        command.args(arguments.test.then_some("--test"));
        let status = command.status().expect("this program starts again");
        assert!(status.success(), "{case} failed");
    }
    Ok(())
}

/// Measures the first case on the store in `folder` and prints its line.
fn measure(arguments: &Arguments, folder: &Path, started: Instant) -> Result<(), Error> {
    let (case, threads) = (&arguments.cases[0], arguments.threads);
    let device = Device::cpu_with(threads, arguments.simd, case.dtype, u64::MAX);
    let (mut session, mut optimizer) = open(case, folder, &device)?;
    let window = [case.batch()];
    let start = started.elapsed().as_secs_f64();
    step(&mut session, &mut optimizer, &window, 1)?;
    let peak = Peak::of(arguments.simd, case.dtype);
    let (rounds, steps) = (5, case.steps());
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    for number in 0..if arguments.test { 1 } else { rounds * steps } {
        if number % steps == 0 {
            peaks.push(
                peak.map_or(f64::NAN, |peak| peak.measure(threads, || seconds(threads)) / 1e9),
            );
        }
        let begun = seconds(threads);
        step(&mut session, &mut optimizer, &window, 2 + number)?;
        times.push(seconds(threads) - begun);
    }
    let (flops, peak) = (case.flops_per_token(), median(&mut peaks));
    let rate = case.tokens as f64 / median(&mut times);
    let (planned, resident) = (device.report().total.peak, resident_bytes());
    let line = Line {
        case: case.to_string(),
        threads,
        tokens_per_second: rate,
        flops_per_token: flops,
        dot_peak_gflops: peak,
        share_of_dot_peak: rate * flops / 1e9 / peak,
        gemm_gflops: gemm(&session, case.tokens, threads),
        peak_memory_bytes: planned,
        peak_resident_bytes: resident,
        start_to_first_step_seconds: start,
    };
    print(&line, arguments.json);
    Ok(())
}

fn open(case: &Case, folder: &Path, device: &Device) -> Result<(Session, AdamW), Error> {
    let config = Config::read(&folder.join("config.json"))?;
    let weights = Weights::single(&folder.join("model.safetensors"))?;
    let mut decoder =
        load(device, config, Some(&weights), Quantization::None, Residence::Resident)?;
    let settings = Settings { rank: RANK, alpha: 32.0, dropout: 0.0, targets: Targets::AllLinear };
    let attached = lora::attach(&mut decoder, &settings)?;
    let limits = Limits { tokens: case.tokens, sequences: 1, targets: case.targets() };
    let purpose = Purpose::Training(case.keep);
    let mut session = Session::new(device.clone(), decoder, attached.index, limits, purpose)?;
    lora::initialize(device, &mut session.params, 42);
    let adamw = adamw::Settings {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
    };
    let optimizer = session.optimizer(adamw, Moments::F32, Paging::Resident)?;
    Ok((session, optimizer))
}

fn step(
    session: &mut Session,
    optimizer: &mut AdamW,
    window: &[MicroBatch],
    number: u64,
) -> Result<(), Error> {
    session.gradient(window, Draw { seed: 42, stream: 0 })?;
    let device = session.device.clone();
    optimizer.step(&device, &mut session.params, 2e-4, number)?;
    Ok(())
}

/// GFLOP/s of the product of `tokens` rows with the first block's output map, from its NF4 blocks.
fn gemm(session: &Session, tokens: usize, threads: usize) -> f64 {
    let linear = &session.decoder.layers[0].down;
    let (n, k) = (linear.weight.rows, linear.weight.cols);
    let device = &session.device;
    let x = device.alloc_act("bench", tokens * k).expect("room for a bench");
    let mut y = device.alloc_act("bench", tokens * n).expect("room for a bench");
    let mut times = Vec::new();
    for _ in 0..9 {
        let term = Term { left: x.view(tokens, k), right: linear.weight.operand() };
        let begun = seconds(threads);
        let out = y.view_mut(tokens, n);
        matmul(device, Form::Nt, &[term], Epilogue::default(), out, Write::Set);
        times.push(seconds(threads) - begun);
    }
    2.0 * (tokens * n * k) as f64 / median(&mut times) / 1e9
}

fn print(line: &Line, json: bool) {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let text = match json {
        true => serde_json::to_string(line).expect("plain numbers"),
        false => format!(
            "{:32} {} threads  {:9.1} tokens/s  {:.3} of the dot peak of {:.0} GFLOP/s  \
             gemm {:.0} GFLOP/s  {:.2} GiB planned  {:.2} GiB resident  first step after {:.2} s",
            line.case,
            line.threads,
            line.tokens_per_second,
            line.share_of_dot_peak,
            line.dot_peak_gflops,
            line.gemm_gflops,
            gib(line.peak_memory_bytes),
            gib(line.peak_resident_bytes),
            line.start_to_first_step_seconds,
        ),
    };
    // A closed pipe ends the run elsewhere; there is nobody left to tell.
    let _ = writeln!(std::io::stdout(), "{text}");
}
