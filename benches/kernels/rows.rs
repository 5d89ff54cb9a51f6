//! What goes over rows of numbers: bound by memory, or by exponentials.

use qlora_train::device::{Act, Device, Dtype};
use qlora_train::ops::cross_entropy::{Gradient, cross_entropy};
use qlora_train::ops::dropout::{Draw, dropout};
use qlora_train::ops::glu::{self, Activation};
use qlora_train::ops::rmsnorm::{self, Center, Norm};
use qlora_train::ops::rope::{self, Direction};
use qlora_train::ops::{Write, copy, embedding, rows};

use crate::measure::{self, Measured, Work, uploaded};
use crate::support::shapes::{QWEN, Shape, TINYLLAMA};

const TOKENS: usize = 512;

pub fn all(device: &Device, measured: &mut Measured) {
    for shape in [QWEN, TINYLLAMA] {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let bench = &mut Bench { device, measured, shape, dtype };
            norms(bench);
            rotation(bench);
            gates(bench);
            sums(bench);
            moves(bench);
        }
        losses(device, measured, &shape);
    }
}

/// What every case is measured with.
struct Bench<'a, 'b> {
    device: &'a Device,
    measured: &'a mut Measured<'b>,
    shape: Shape,
    dtype: Dtype,
}

impl Bench<'_, '_> {
    /// Measures a kernel that reads and writes `moved` numbers in all; `prepare` is given what makes
    /// numbers of the element.
    fn run<Run: FnMut()>(
        &mut self,
        name: &str,
        moved: usize,
        prepare: impl FnOnce(&dyn Fn(usize) -> Act) -> Run,
    ) {
        let (device, dtype) = (self.device, self.dtype);
        let name = format!("{name} {dtype:?}/{}", self.shape.name);
        let bytes = Work::Bytes(moved * dtype.size());
        self.measured.run(&name, bytes, || prepare(&|len| measure::numbers(device, dtype, len)));
    }
}

fn norms(bench: &mut Bench) {
    let (device, cols) = (bench.device, bench.shape.hidden);
    let weight = &uploaded(device, &vec![1.0_f32; cols]);
    let norm = Norm { weight, eps: 1e-6, center: Center::Zero };
    let count = TOKENS * cols;
    bench.run("rmsnorm forward", 2 * count, |numbers| {
        let (x, mut y) = (numbers(count), numbers(count));
        move || {
            let out = y.view_mut(TOKENS, cols);
            rmsnorm::forward(device, x.view(TOKENS, cols), norm, out, Write::Set);
        }
    });
    bench.run("rmsnorm backward", 4 * count, |numbers| {
        let (x, dy, mut dx) = (numbers(count), numbers(count), numbers(count));
        move || {
            let (x, dy) = (x.view(TOKENS, cols), dy.view(TOKENS, cols));
            rmsnorm::backward(device, x, norm, dy, dx.view_mut(TOKENS, cols), Write::Add);
        }
    });
}

fn rotation(bench: &mut Bench) {
    let (device, cols) = (bench.device, bench.shape.hidden);
    let head_dim = bench.shape.head_dim();
    bench.run("rope", 2 * TOKENS * cols, |numbers| {
        let tables = measure::numbers(device, Dtype::F32, TOKENS * head_dim);
        let mut x = numbers(TOKENS * cols);
        move || {
            let x = x.view_mut(TOKENS, cols);
            rope::rotate(device, x, head_dim, tables.view(TOKENS, head_dim), Direction::Forward);
        }
    });
}

fn gates(bench: &mut Bench) {
    let (device, cols) = (bench.device, bench.shape.feed_forward);
    let count = TOKENS * cols;
    bench.run("swiglu forward", 3 * count, |numbers| {
        let (gate_up, mut out) = (numbers(2 * count), numbers(count));
        move || {
            let out = out.view_mut(TOKENS, cols);
            glu::forward(device, gate_up.view(TOKENS, 2 * cols), Activation::Silu, out);
        }
    });
    bench.run("swiglu backward", 6 * count, |numbers| {
        let (gate_up, mut dh) = (numbers(2 * count), numbers(count));
        let mut d_gate_up = numbers(2 * count);
        move || {
            let gate_up = gate_up.view(TOKENS, 2 * cols);
            let (dh, d_gate_up) = (dh.view_mut(TOKENS, cols), d_gate_up.view_mut(TOKENS, 2 * cols));
            glu::backward(device, gate_up, Activation::Silu, dh, d_gate_up);
        }
    });
}

fn sums(bench: &mut Bench) {
    let (device, cols) = (bench.device, bench.shape.hidden);
    let count = TOKENS * cols;
    bench.run("add", 3 * count, |numbers| {
        let (a, b, mut out) = (numbers(count), numbers(count), numbers(count));
        move || {
            let (a, b) = (a.view(TOKENS, cols), b.view(TOKENS, cols));
            copy::add(device, a, b, out.view_mut(TOKENS, cols));
        }
    });
    bench.run("dropout", 2 * count, |numbers| {
        let (x, mut out) = (numbers(count), numbers(count));
        move || {
            let out = out.view_mut(TOKENS, cols);
            let draw = Draw { seed: 42, stream: 0 };
            dropout(device, x.view(TOKENS, cols), draw, 0.1, out, Write::Set);
        }
    });
}

/// Over a chunk of logits, which are read in f32 and replaced by a gradient in bf16.
fn losses(device: &Device, measured: &mut Measured, shape: &Shape) {
    const CHUNK: usize = 128;
    let count = CHUNK * shape.vocab;
    measured.run(&format!("cross-entropy/{}", shape.name), Work::Bytes(6 * count), || {
        let target = |row: usize| (row * 7919 % shape.vocab) as u32;
        let targets = uploaded(device, &(0..CHUNK).map(target).collect::<Vec<_>>());
        let mut losses = uploaded(device, &[0.0; CHUNK]);
        let mut logits = measure::numbers(device, Dtype::F32, count);
        move || {
            let logits = logits.view_mut(CHUNK, shape.vocab);
            let gradient = Gradient::Scale(1.0);
            cross_entropy(device, logits, &targets, 0, None, &mut losses, gradient);
        }
    });
}

fn moves(bench: &mut Bench) {
    let (device, cols) = (bench.device, bench.shape.hidden);
    let (count, vocab) = (TOKENS * cols, bench.shape.vocab);
    let tokens: Vec<u32> = (0..TOKENS).map(|row| (row * 7919 % vocab) as u32).collect();
    let tokens = &uploaded(device, &tokens);
    bench.run("embedding", 2 * count, |numbers| {
        let (table, mut out) = (numbers(vocab * cols), numbers(count));
        move || {
            let out = out.view_mut(TOKENS, cols);
            embedding::lookup(device, table.view(vocab, cols), tokens, 1.0, out);
        }
    });
    let index = (0..TOKENS as u32).rev().collect::<Vec<_>>();
    let index = &uploaded(device, &index);
    bench.run("gather", 2 * count, |numbers| {
        let (x, mut out) = (numbers(count), numbers(count));
        move || {
            rows::gather(device, x.view(TOKENS, cols), index, out.view_mut(TOKENS, cols));
        }
    });
    bench.run("scatter", 2 * count, |numbers| {
        let (x, mut out) = (numbers(count), numbers(count));
        move || {
            rows::scatter(device, x.view(TOKENS, cols), index, out.view_mut(TOKENS, cols));
        }
    });
}
