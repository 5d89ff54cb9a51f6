//! What is measured: the operations of a step of an 8B model, by their bytes or their multiplications.
//!
//! A case's name is its key wherever it is spoken of: `operation/rows x columns [x depth]`, as `matmul Nf4
//! Nt/4096x14336x4096` or `attention forward/2048, 32 heads`. `scripts/gpu_anchors.py` measures other
//! libraries under the same names, and `kernels/predictions.json` has what was expected of them.

use qlora_train::device::{Device, Pass};
use qlora_train::error::Error;
use qlora_train::ops::adamw::{Hyper, State32, adamw};
use qlora_train::ops::attention::Heads;
use qlora_train::ops::cross_entropy::{Gradient, cross_entropy};
use qlora_train::ops::glu::{self, Activation};
use qlora_train::ops::rmsnorm::{self, Center, Norm};
use qlora_train::ops::sum_squares::sum_squares;
use qlora_train::ops::{Write, copy};

use super::inputs::{Rotation, activations, floats, logits, uploaded};
use super::{attention, products};

/// What the time of a case is held against.
pub enum Work {
    /// Floating-point operations.
    Operations(usize),
    /// Bytes read and written.
    Bytes(usize),
}

/// One operation on one shape.
pub struct Case<'a> {
    pub name: String,
    pub work: Work,
    /// Takes the memory, and gives what launches the operation.
    pub prepare: Box<dyn FnOnce() -> Result<Ready<'a>, Error> + 'a>,
}

/// A case with its memory.
pub struct Ready<'a> {
    /// One launch.
    pub run: Box<dyn FnMut() + 'a>,
    /// So many launches use each buffer once.
    pub round: usize,
}

impl<'a> Case<'a> {
    /// A case that launches `run` on buffers that `set` makes, in turn.
    pub fn new<Set: 'a>(
        bench: Bench<'a>,
        (name, work): (String, Work),
        set: impl FnMut() -> Result<Set, Error> + 'a,
        mut run: impl FnMut(&mut Set) + 'a,
    ) -> Self {
        let prepare = move || {
            let mut sets = Rotation::fill(bench.device, bench.size.cold_bytes, set)?;
            let round = sets.count();
            Ok(Ready { run: Box::new(move || run(sets.oldest())), round })
        };
        Self { name, work, prepare: Box::new(prepare) }
    }
}

/// The device that cases run on, and their size.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    pub device: &'a Device,
    pub size: Size,
}

/// Dimensions of the model, and tokens of a step.
#[derive(Clone, Copy)]
pub struct Size {
    pub tokens: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub heads: Heads,
    pub vocab: usize,
    pub rank: usize,
    /// Rows of logits that are computed together.
    pub head_rows: usize,
    /// Rows of a plain copy.
    pub copied_rows: usize,
    /// The buffers of a case are at least so long together, so that none of them is in a cache when its
    /// turn comes again.
    pub cold_bytes: u64,
}

pub const LLAMA_8B: Size = Size {
    tokens: 4096,
    hidden: 4096,
    feed_forward: 14_336,
    heads: Heads { heads: 32, kv_heads: 8, head_dim: 128 },
    vocab: 128_256,
    rank: 16,
    head_rows: 293,
    copied_rows: 65_536,
    // Four times the largest second-level cache of any card so far, 126 MB.
    cold_bytes: 512 << 20,
};

/// As small as the emulator likes it.
pub const TINY: Size = Size {
    tokens: 64,
    hidden: 128,
    feed_forward: 192,
    heads: Heads { heads: 2, kv_heads: 1, head_dim: 64 },
    vocab: 320,
    rank: 8,
    head_rows: 8,
    copied_rows: 256,
    cold_bytes: 64 << 10,
};

/// All cases, those that matter most first.
pub fn all(bench: Bench<'_>) -> Vec<Case<'_>> {
    let mut cases = products::all(bench);
    cases.extend(attention::all(bench));
    cases.extend(rows(bench));
    cases.extend(optimizer(bench));
    cases.extend(launches(bench.device));
    cases
}

fn rows(bench: Bench<'_>) -> [Case<'_>; 5] {
    [plain_copy(bench), rmsnorm_forward(bench), rmsnorm_backward(bench), swiglu(bench), loss(bench)]
}

fn plain_copy(bench: Bench<'_>) -> Case<'_> {
    let (n, c, device) = (bench.size.copied_rows, bench.size.hidden, bench.device);
    Case::new(
        bench,
        (format!("copy/{n}x{c}"), Work::Bytes(4 * n * c)),
        move || Ok((activations(device, n * c)?, device.alloc_act("bench", n * c)?)),
        move |(from, to)| copy::copy(device, from.view(n, c), to.view_mut(n, c)),
    )
}

fn rmsnorm_forward(bench: Bench<'_>) -> Case<'_> {
    let (Size { tokens: n, hidden: c, .. }, device) = (bench.size, bench.device);
    Case::new(
        bench,
        (format!("rmsnorm forward/{n}x{c}"), Work::Bytes(4 * n * c)),
        move || {
            let y = device.alloc_act("bench", n * c)?;
            Ok((floats(device, c)?, activations(device, n * c)?, y))
        },
        move |(weight, x, y)| {
            let norm = Norm { weight, eps: 1e-5, center: Center::Zero };
            rmsnorm::forward(device, x.view(n, c), norm, y.view_mut(n, c), Write::Set);
        },
    )
}

fn rmsnorm_backward(bench: Bench<'_>) -> Case<'_> {
    let (Size { tokens: n, hidden: c, .. }, device) = (bench.size, bench.device);
    Case::new(
        bench,
        (format!("rmsnorm backward/{n}x{c}"), Work::Bytes(6 * n * c)),
        move || {
            let x = activations(device, n * c)?;
            let dy = activations(device, n * c)?;
            Ok((floats(device, c)?, x, dy, device.alloc_act("bench", n * c)?))
        },
        move |(weight, x, dy, dx)| {
            let norm = Norm { weight, eps: 1e-5, center: Center::Zero };
            let dx = dx.view_mut(n, c);
            rmsnorm::backward(device, x.view(n, c), norm, dy.view(n, c), dx, Write::Set);
        },
    )
}

fn swiglu(bench: Bench<'_>) -> Case<'_> {
    let (Size { tokens: n, feed_forward: f, .. }, device) = (bench.size, bench.device);
    Case::new(
        bench,
        (format!("swiglu forward/{n}x{f}"), Work::Bytes(6 * n * f)),
        move || Ok((activations(device, 2 * n * f)?, device.alloc_act("bench", n * f)?)),
        move |(gate_up, h)| {
            glu::forward(device, gate_up.view(n, 2 * f), Activation::Silu, h.view_mut(n, f));
        },
    )
}

/// The gradient takes the place of the logits: from the second launch on a set of buffers, the numbers are
/// other ones, and as many.
fn loss(bench: Bench<'_>) -> Case<'_> {
    let (Size { head_rows: n, vocab, .. }, device) = (bench.size, bench.device);
    Case::new(
        bench,
        (format!("cross-entropy and gradient/{n}x{vocab}"), Work::Bytes(6 * n * vocab)),
        move || {
            let targets = uploaded(device, &vec![7_u32; n])?;
            Ok((logits(device, n * vocab)?, targets, uploaded(device, &vec![0.0_f32; n])?))
        },
        move |(logits, targets, losses)| {
            let logits = logits.view_mut(n, vocab);
            cross_entropy(device, logits, targets, 0, None, losses, Gradient::Scale(1.0));
        },
    )
}

fn optimizer(bench: Bench<'_>) -> [Case<'_>; 2] {
    let (len, device) = (bench.size.hidden * bench.size.hidden, bench.device);
    let moments = vec![1e-3_f32; len];
    let step = Case::new(
        bench,
        (format!("adamw/{len}"), Work::Bytes(28 * len)),
        move || {
            let moment = || uploaded(device, &moments);
            Ok((floats(device, len)?, floats(device, len)?, moment()?, moment()?))
        },
        move |(values, grads, m, v)| {
            adamw(device, values, grads, State32 { m, v, start: 0 }, 0..len, &HYPER);
        },
    );
    let norm = Case::new(
        bench,
        (format!("sum of squares/{len}"), Work::Bytes(4 * len)),
        move || Ok((floats(device, len)?, uploaded(device, &[0.0_f64])?)),
        move |(x, out)| sum_squares(device, x, out),
    );
    [step, norm]
}

/// Kernels so small that their launches are what takes time: as many as a block has, one by one and gathered.
fn launches(device: &Device) -> [Case<'_>; 2] {
    const KERNELS: usize = 32;
    let case = |gathered: bool| {
        let how = if gathered { "gathered" } else { "one by one" };
        let prepare = move || {
            let x = uploaded(device, &[1e-3_f32; 1024])?;
            let mut out = uploaded(device, &[0.0_f64])?;
            let mut all = move || (0..KERNELS).for_each(|_| sum_squares(device, &x, &mut out));
            let run = move || match gathered {
                true => device.gather(Pass { name: "launches", block: 0, lane: 0 }, &mut all),
                false => all(),
            };
            Ok(Ready { run: Box::new(run) as Box<dyn FnMut()>, round: 1 })
        };
        Case {
            name: format!("launches/{KERNELS} {how}"),
            work: Work::Bytes(KERNELS * 4 * 1024),
            prepare: Box::new(prepare),
        }
    };
    [case(false), case(true)]
}

const HYPER: Hyper = Hyper {
    learning_rate: 1e-4,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    clip: 1.0,
    step: 1,
};
