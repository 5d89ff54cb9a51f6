//! What is measured: the operations of a step of an 8B model, by their bytes or their multiplications.

use half::bf16;
use qlora_train::device::{Act, Buf, Device, Dtype, Pass};
use qlora_train::ops::adamw::{Hyper, State32, adamw};
use qlora_train::ops::attention::{self, Attention, Heads, Saved, Segment};
use qlora_train::ops::cross_entropy::{Gradient, cross_entropy};
use qlora_train::ops::gemm::{Epilogue, Form, FourBit, Operand, Scales, Term, matmul};
use qlora_train::ops::glu::{self, Activation};
use qlora_train::ops::rmsnorm::{self, Center, Norm};
use qlora_train::ops::sum_squares::sum_squares;
use qlora_train::ops::{Write, copy};
use qlora_train::quant;

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
    pub prepare: Box<dyn FnOnce() -> Box<dyn FnMut() + 'a> + 'a>,
}

impl<'a> Case<'a> {
    fn new<Run: FnMut() + 'a>(
        name: impl Into<String>,
        work: Work,
        prepare: impl FnOnce() -> Run + 'a,
    ) -> Self {
        Self { name: name.into(), work, prepare: Box::new(|| Box::new(prepare())) }
    }
}

/// Dimensions of the model, and tokens of a step.
#[derive(Clone, Copy)]
struct Size {
    tokens: usize,
    hidden: usize,
    feed_forward: usize,
    heads: Heads,
    vocab: usize,
    rank: usize,
}

const LLAMA_8B: Size = Size {
    tokens: 4096,
    hidden: 4096,
    feed_forward: 14_336,
    heads: Heads { heads: 32, kv_heads: 8, head_dim: 128 },
    vocab: 128_256,
    rank: 16,
};

/// As small as the emulator likes it.
const TINY: Size = Size {
    tokens: 64,
    hidden: 128,
    feed_forward: 192,
    heads: Heads { heads: 2, kv_heads: 1, head_dim: 64 },
    vocab: 320,
    rank: 8,
};

pub fn all(device: &Device, test: bool) -> Vec<Case<'_>> {
    let size = if test { TINY } else { LLAMA_8B };
    let mut cases = products(device, size);
    cases.extend(attentions(device, size));
    cases.extend(rows(device, size));
    cases.extend(optimizer(device, size));
    cases.extend(launches(device));
    cases
}

/// Kernels so small that their launches are what takes time: as many as a block has, one by one and gathered.
fn launches(device: &Device) -> Vec<Case<'_>> {
    const KERNELS: usize = 32;
    let case = |gathered: bool| {
        let how = if gathered { "gathered" } else { "one by one" };
        let work = Work::Bytes(KERNELS * 4 * 1024);
        Case::new(format!("launches/{KERNELS} {how}"), work, move || {
            let (x, mut out) = (uploaded(device, &[1e-3_f32; 1024]), uploaded(device, &[0.0_f64]));
            let mut run = move || (0..KERNELS).for_each(|_| sum_squares(device, &x, &mut out));
            move || match gathered {
                true => device.gather(Pass { name: "launches", block: 0, lane: 0 }, &mut run),
                false => run(),
            }
        })
    };
    [false, true].map(case).into()
}

fn products(device: &Device, size: Size) -> Vec<Case<'_>> {
    let Size { tokens, hidden: c, feed_forward: f, rank, .. } = size;
    let mut cases = Vec::new();
    for m in [tokens, tokens / 8, 1] {
        for (form, n, k) in [(Form::Nt, c, c), (Form::Nt, f, c), (Form::Nn, c, f)] {
            for right in [Right::Dense, Right::Nf4, Right::Nf4WithLora(rank)] {
                let name = format!("matmul {right:?} {form:?}/{m}x{n}x{k}");
                cases.push(Case::new(name, Work::Operations(2 * m * n * k), move || {
                    let mut product = Product::new(device, right, (m, n, k));
                    move || product.run(device, form)
                }));
            }
        }
    }
    let name = format!("matmul gradient of A Tn/{rank}x{c}x{tokens}");
    cases.push(Case::new(name, Work::Operations(2 * rank * c * tokens), move || {
        let (left, right) = (numbers(device, tokens * rank), numbers(device, tokens * c));
        let mut out = device.alloc_dense("bench", rank * c, Dtype::F32).expect("room");
        move || {
            let term = Term { left: left.view(tokens, rank), right: right.view(tokens, c).into() };
            let out = out.view_mut(rank, c);
            matmul(device, Form::Tn, &[term], Epilogue::default(), out, Write::Add);
        }
    }));
    cases
}

#[derive(Debug, Clone, Copy)]
enum Right {
    Dense,
    Nf4,
    Nf4WithLora(usize),
}

/// The memory of one product, m x n of depth k.
struct Product {
    right: Right,
    shape: (usize, usize, usize),
    left: Act,
    dense: Act,
    /// Both operands of the low-rank product.
    low_rank: [Act; 2],
    codes: Buf<u8>,
    absmax: Buf<u8>,
    nested_absmax: Buf<f32>,
    map: Buf<f32>,
    out: Act,
}

impl Product {
    fn new(device: &Device, right: Right, (m, n, k): (usize, usize, usize)) -> Self {
        let blocks = quant::blocks(n * k);
        let rank = if let Right::Nf4WithLora(rank) = right { rank } else { 0 };
        let dense = if matches!(right, Right::Dense) { n * k } else { 0 };
        let codes: Vec<u8> = (0..quant::code_bytes(n * k)).map(|i| (i * 167) as u8).collect();
        Self {
            right,
            shape: (m, n, k),
            left: numbers(device, m * k),
            dense: numbers(device, dense),
            low_rank: [m, n].map(|rows| numbers(device, rows * rank)),
            codes: uploaded(device, &codes),
            absmax: uploaded(device, &codes[..blocks]),
            nested_absmax: uploaded(device, &vec![0.01; quant::nested_blocks(blocks)]),
            map: uploaded(device, quant::SIGNED.values()),
            out: numbers(device, m * n),
        }
    }

    fn run(&mut self, device: &Device, form: Form) {
        let (m, n, k) = self.shape;
        let stored = |depth| if form == Form::Nt { (n, depth) } else { (depth, n) };
        let (rows, cols) = stored(k);
        let scales = Scales::Nested {
            absmax: &self.absmax,
            nested_absmax: &self.nested_absmax,
            offset: 0.02,
            map: &self.map,
        };
        let weight = FourBit { kind: quant::Kind::Nf4, rows, cols, codes: &self.codes, scales };
        let left = self.left.view(m, k);
        let base = match self.right {
            Right::Dense => Term { left, right: self.dense.view(rows, cols).into() },
            _ => Term { left, right: Operand::FourBit(weight) },
        };
        let out = self.out.view_mut(m, n);
        let Right::Nf4WithLora(rank) = self.right else {
            return matmul(device, form, &[base], Epilogue::default(), out, Write::Set);
        };
        let (rows, cols) = stored(rank);
        let [xa, b] = &self.low_rank;
        let update = Term { left: xa.view(m, rank), right: b.view(rows, cols).into() };
        matmul(device, form, &[base, update], Epilogue::default(), out, Write::Set);
    }
}

fn attentions(device: &Device, size: Size) -> Vec<Case<'_>> {
    let Size { tokens, heads, .. } = size;
    // Half of all pairs are seen; a product is one multiplication and one addition.
    let product = heads.heads * heads.head_dim * tokens * tokens;
    let way = |name: &str, products: usize, backward: bool| {
        let name = format!("attention {name}/{tokens}, {} heads", heads.heads);
        Case::new(name, Work::Operations(products * product), move || {
            let mut memory = Heard::new(device, size);
            memory.forward(device);
            move || if backward { memory.backward(device) } else { memory.forward(device) }
        })
    };
    vec![way("forward", 2, false), way("backward", 5, true)]
}

/// The memory of attention over one record.
struct Heard {
    size: Size,
    segments: Buf<Segment>,
    q: Act,
    k: Act,
    v: Act,
    o: Act,
    lse: Act,
    gradients: [Act; 4],
}

impl Heard {
    fn new(device: &Device, size: Size) -> Self {
        let Size { tokens, heads: Heads { heads, kv_heads, head_dim }, .. } = size;
        let len = tokens as u32;
        let segment = Segment { q_start: 0, q_len: len, k_start: 0, k_len: len };
        let (q, k) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        Self {
            size,
            segments: uploaded(device, &[segment]),
            q: numbers(device, q),
            k: numbers(device, k),
            v: numbers(device, k),
            o: numbers(device, q),
            lse: device.alloc_dense("bench", tokens * heads, Dtype::F32).expect("room"),
            gradients: [q, q, k, k].map(|len| numbers(device, len)),
        }
    }

    fn forward(&mut self, device: &Device) {
        let Size { tokens, heads, .. } = self.size;
        let (q_cols, k_cols) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        attention::forward(
            device,
            &over(&self.segments, self.size),
            self.q.view(tokens, q_cols),
            self.k.view(tokens, k_cols),
            self.v.view(tokens, k_cols),
            self.o.view_mut(tokens, q_cols),
            self.lse.view_mut(tokens, heads.heads),
        );
    }

    fn backward(&mut self, device: &Device) {
        let Size { tokens, heads, .. } = self.size;
        let (q_cols, k_cols) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let saved = Saved {
            q: self.q.view(tokens, q_cols),
            k: self.k.view(tokens, k_cols),
            v: self.v.view(tokens, k_cols),
            o: self.o.view(tokens, q_cols),
            lse: self.lse.view(tokens, heads.heads),
        };
        let [d_o, dq, dk, dv] = &mut self.gradients;
        attention::backward(
            device,
            &over(&self.segments, self.size),
            saved,
            d_o.view(tokens, q_cols),
            dq.view_mut(tokens, q_cols),
            dk.view_mut(tokens, k_cols),
            dv.view_mut(tokens, k_cols),
        );
    }
}

fn over(segments: &Buf<Segment>, size: Size) -> Attention<'_> {
    Attention {
        heads: size.heads,
        scale: 0.1,
        window: None,
        soft_cap: None,
        segments,
        segment_count: 1,
        longest: size.tokens,
    }
}

fn rows(device: &Device, size: Size) -> Vec<Case<'_>> {
    let Size { tokens: n, hidden: c, feed_forward: f, vocab, .. } = size;
    let logits = n / 8 * vocab;
    vec![
        Case::new(format!("copy/{n}x{c}"), Work::Bytes(4 * n * c), move || {
            let (from, mut to) = (numbers(device, n * c), numbers(device, n * c));
            move || copy::copy(device, from.view(n, c), to.view_mut(n, c))
        }),
        Case::new(format!("rmsnorm forward/{n}x{c}"), Work::Bytes(4 * n * c), move || {
            let weight = uploaded(device, &vec![1.0_f32; c]);
            let (x, mut y) = (numbers(device, n * c), numbers(device, n * c));
            move || {
                let norm = Norm { weight: &weight, eps: 1e-5, center: Center::Zero };
                rmsnorm::forward(device, x.view(n, c), norm, y.view_mut(n, c), Write::Set);
            }
        }),
        Case::new(format!("rmsnorm backward/{n}x{c}"), Work::Bytes(6 * n * c), move || {
            let weight = uploaded(device, &vec![1.0_f32; c]);
            let [x, dy, mut dx] = [(); 3].map(|()| numbers(device, n * c));
            move || {
                let norm = Norm { weight: &weight, eps: 1e-5, center: Center::Zero };
                let (x, dy) = (x.view(n, c), dy.view(n, c));
                rmsnorm::backward(device, x, norm, dy, dx.view_mut(n, c), Write::Set);
            }
        }),
        Case::new(format!("swiglu forward/{n}x{f}"), Work::Bytes(6 * n * f), move || {
            let (gate_up, mut h) = (numbers(device, 2 * n * f), numbers(device, n * f));
            move || {
                let gate_up = gate_up.view(n, 2 * f);
                glu::forward(device, gate_up, Activation::Silu, h.view_mut(n, f));
            }
        }),
        Case::new(
            format!("cross-entropy and gradient/{}x{vocab}", n / 8),
            Work::Bytes(6 * logits),
            move || {
                let mut logits = device.alloc_dense("bench", logits, Dtype::F32).expect("room");
                let targets = uploaded(device, &vec![7_u32; n / 8]);
                let mut losses = uploaded(device, &vec![0.0_f32; n / 8]);
                move || {
                    let (logits, how) = (logits.view_mut(n / 8, vocab), Gradient::Scale(1.0));
                    cross_entropy(device, logits, &targets, 0, None, &mut losses, how);
                }
            },
        ),
    ]
}

fn optimizer(device: &Device, size: Size) -> Vec<Case<'_>> {
    let len = size.hidden * size.hidden;
    let floats = move || uploaded(device, &vec![1e-3_f32; len]);
    vec![
        Case::new(format!("adamw/{len}"), Work::Bytes(28 * len), move || {
            let [mut values, grads, mut m, mut v] = [(); 4].map(|()| floats());
            move || {
                let state = State32 { m: &mut m, v: &mut v, start: 0 };
                adamw(device, &mut values, &grads, state, 0..len, &HYPER);
            }
        }),
        Case::new(format!("sum of squares/{len}"), Work::Bytes(4 * len), move || {
            let (x, mut out) = (floats(), uploaded(device, &[0.0_f64]));
            move || sum_squares(device, &x, &mut out)
        }),
    ]
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

fn numbers(device: &Device, len: usize) -> Act {
    let mut act = device.alloc_act("bench", len).expect("room for a bench");
    let values: Vec<bf16> =
        (0..len).map(|i| bf16::from_f32((i % 17) as f32 / 17.0 - 0.5)).collect();
    device.upload(bytemuck::cast_slice(&values), act.bytes_mut());
    act
}

fn uploaded<T: bytemuck::Pod>(device: &Device, values: &[T]) -> Buf<T> {
    let mut buf = device.alloc("bench", values.len()).expect("room for a bench");
    device.upload(values, &mut buf);
    buf
}
