//! A whole training step on synthetic weights, beside the peak of this machine measured in the same
//! run: `cargo bench --bench step [-- CASE] [--json] [--threads N]`.
//!
//! QLoRA as the program does it by default: NF4 with double quantization, bf16, rank 16 on every
//! linear map, every token supervised. `share_of_dot_peak` is the operations that a step needs, by
//! the time it took, over what a loop of bf16 dot products (f32 multiply-adds where the machine has
//! none) does on as many threads. With `--test` the smallest case alone runs, once.

#[path = "support/peak.rs"]
mod peak;
#[path = "support/synthetic.rs"]
mod synthetic;

use std::io::Write as _;
use std::time::Instant;

use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::{MicroBatch, Target};
use qlora_train::device::{Device, Dtype};
use qlora_train::error::Error;
use qlora_train::methods::lora::{self, Settings, Targets};
use qlora_train::model::load::{Quantization, load};
use qlora_train::model::tokens::Limits;
use qlora_train::model::workspace::{Keep, Purpose};
use qlora_train::ops::Write;
use qlora_train::ops::dropout::Draw;
use qlora_train::ops::gemm::{Epilogue, Form, Term, matmul};
use qlora_train::optim::adamw::{self, AdamW, Moments};
use qlora_train::train::session::Session;
use synthetic::Shape;

const QWEN: Shape = Shape {
    name: "qwen2.5-0.5b",
    hidden: 896,
    layers: 24,
    heads: 14,
    kv_heads: 2,
    feed_forward: 4864,
    vocab: 151_936,
    tied: true,
};

const SMALL: Shape = Shape {
    name: "small",
    hidden: 512,
    layers: 8,
    heads: 8,
    kv_heads: 4,
    feed_forward: 1408,
    vocab: 8192,
    tied: true,
};

const TINY: Shape = Shape {
    name: "tiny",
    hidden: 64,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    feed_forward: 172,
    vocab: 512,
    tied: true,
};

/// Shape, tokens of the sequence, what blocks keep.
const CASES: [(Shape, usize, Keep); 5] = [
    (TINY, 64, Keep::EVERYTHING),
    (SMALL, 512, Keep::EVERYTHING),
    (SMALL, 512, Keep::INPUTS),
    (QWEN, 512, Keep::EVERYTHING),
    (QWEN, 512, Keep::INPUTS),
];

const RANK: usize = 16;

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
    start_to_first_step_seconds: f64,
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let threads = args.iter().position(|arg| arg == "--threads").and_then(|i| args.get(i + 1));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.and_then(|n| n.parse().ok()).unwrap_or(cores);
    let wanted = args.iter().find(|arg| CASES.iter().any(|case| name(case).starts_with(*arg)));
    for case in &CASES {
        let skipped = wanted.is_some_and(|wanted| !name(case).starts_with(wanted));
        if skipped || has("--test") && case.0.name != TINY.name {
            continue;
        }
        let line = measure(case, threads, if has("--test") { 1 } else { 5 })?;
        print(&line, has("--json"));
    }
    Ok(())
}

fn name((shape, tokens, keep): &(Shape, usize, Keep)) -> String {
    let keep = if *keep == Keep::EVERYTHING { "kept" } else { "recomputed" };
    format!("{}/{tokens}/{keep}", shape.name)
}

fn print(line: &Line, json: bool) {
    let text = match json {
        true => serde_json::to_string(line).expect("plain numbers"),
        false => format!(
            "{:28} {} threads  {:9.1} tokens/s  {:.3} of the dot peak of {:.0} GFLOP/s  \
             gemm {:.0} GFLOP/s  {:.2} GiB  first step after {:.2} s",
            line.case,
            line.threads,
            line.tokens_per_second,
            line.share_of_dot_peak,
            line.dot_peak_gflops,
            line.gemm_gflops,
            line.peak_memory_bytes as f64 / f64::from(1 << 30),
            line.start_to_first_step_seconds,
        ),
    };
    // A closed pipe ends the run elsewhere; there is nobody left to tell.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn measure(case: &(Shape, usize, Keep), threads: usize, steps: usize) -> Result<Line, Error> {
    let (shape, tokens, keep) = *case;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = shape.write(folder.path())?;
    let begun = Instant::now();
    let device = Device::cpu(threads, Dtype::Bf16, u64::MAX);
    let weights = Weights::single(&folder.path().join("model.safetensors"))?;
    let mut decoder = load(&device, config, Some(&weights), Quantization::None)?;
    let settings = Settings { rank: RANK, alpha: 32.0, dropout: 0.0, targets: Targets::AllLinear };
    let attached = lora::attach(&mut decoder, &settings)?;
    let limits = Limits { tokens, sequences: 1, targets: tokens - 1 };
    let purpose = Purpose::Training(keep);
    let mut session = Session::new(device.clone(), decoder, attached.index, limits, purpose)?;
    lora::initialize(&device, &mut session.params, 42);
    let adamw = adamw::Settings {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
    };
    let mut optimizer = session.optimizer(adamw, Moments::F32)?;
    let window = [batch(shape, tokens)];
    step(&mut session, &mut optimizer, &window, 1)?;
    let first = begun.elapsed().as_secs_f64();
    let mut seconds: Vec<f64> = Vec::with_capacity(steps);
    let mut peaks = Vec::with_capacity(steps);
    for number in 0..steps {
        peaks.push(dot_peak(threads));
        let begun = Instant::now();
        step(&mut session, &mut optimizer, &window, 2 + number as u64)?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let flops = shape.flops_per_token(tokens, RANK)
        + match keep == Keep::EVERYTHING {
            true => 0.0,
            false => shape.recomputed_flops_per_token(tokens, RANK),
        };
    let rate = tokens as f64 / median(&mut seconds);
    let peak = median(&mut peaks);
    Ok(Line {
        case: name(case),
        threads,
        tokens_per_second: rate,
        flops_per_token: flops,
        dot_peak_gflops: peak,
        share_of_dot_peak: rate * flops / 1e9 / peak,
        gemm_gflops: gemm(&session, tokens),
        peak_memory_bytes: device.report().total.peak,
        start_to_first_step_seconds: first,
    })
}

fn step(
    session: &mut Session,
    optimizer: &mut AdamW,
    window: &[MicroBatch],
    number: u64,
) -> Result<(), Error> {
    session.gradient(window, Draw { seed: 42, stream: 0 });
    let device = session.device.clone();
    optimizer.step(&device, &mut session.params, 2e-4, number)?;
    Ok(())
}

fn batch(shape: Shape, tokens: usize) -> MicroBatch {
    let id = |i: usize| (i * 7919 % shape.vocab) as u32;
    let target = |i: usize| Target { row: i as u32, id: id(i + 1), segment: 0 };
    MicroBatch {
        tokens: (0..tokens).map(id).collect(),
        positions: (0..tokens as u32).collect(),
        segments: vec![0..tokens as u32],
        targets: (0..tokens - 1).map(target).collect(),
    }
}

/// GFLOP/s of the widest dot product of the machine, in registers, on `threads` threads.
fn dot_peak(threads: usize) -> f64 {
    let Some((_, operations, run)) = peak::peaks().pop() else { return f64::NAN };
    let begun = Instant::now();
    peak::on_threads(threads, run);
    operations as f64 * threads as f64 / begun.elapsed().as_secs_f64() / 1e9
}

/// GFLOP/s of the product of `tokens` rows with the first block's output map, from its NF4 blocks.
fn gemm(session: &Session, tokens: usize) -> f64 {
    let linear = &session.decoder.layers[0].down;
    let (n, k) = (linear.weight.rows, linear.weight.cols);
    let device = &session.device;
    let x = device.alloc_act("bench", tokens * k).expect("room for a bench");
    let mut y = device.alloc_act("bench", tokens * n).expect("room for a bench");
    let mut seconds = Vec::new();
    for _ in 0..9 {
        let term = Term { left: x.view(tokens, k), right: linear.weight.operand() };
        let begun = Instant::now();
        let out = y.view_mut(tokens, n);
        matmul(device, Form::Nt, &[term], Epilogue::default(), out, Write::Set);
        seconds.push(begun.elapsed().as_secs_f64());
    }
    2.0 * (tokens * n * k) as f64 / median(&mut seconds) / 1e9
}

fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
