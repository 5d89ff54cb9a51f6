//! Products with frozen weights forward (NT) and backward (NN), from bf16, f32 and 4-bit blocks, so
//! that the cost of decoding shows; those of LoRA; and one row, as in generation.

use qlora_train::device::{Act, Buf, Device, Dtype};
use qlora_train::ops::Write;
use qlora_train::ops::gemm::{Epilogue, Form, FourBit, Operand, Scales, Term, matmul};
use qlora_train::quant;

use crate::measure::{Measured, Work, numbers, uploaded};
use crate::support::shapes::{QWEN, RANK, SMALL, Shape, TINYLLAMA};

pub fn all(device: &Device, measured: &mut Measured) {
    for shape in [SMALL, QWEN, TINYLLAMA] {
        for tokens in [512, 2048] {
            // Each weight in all elements side by side: its decoding is what differs.
            for (form, m, n, k) in weights(&shape, tokens) {
                for right in [Right::Bf16, Right::Nf4, Right::F32, Right::Nf4F32] {
                    product(device, measured, form, right, (m, n, k));
                }
            }
        }
    }
    let (c, f, r) = (QWEN.hidden, QWEN.feed_forward, RANK);
    for (form, shape) in [
        (Form::Nt, (512, r, c)),
        (Form::Nn, (512, r, f)),
        (Form::Tn, (f, r, 512)),
        (Form::Tn, (r, c, 512)),
    ] {
        product(device, measured, form, Right::Bf16, shape);
        product(device, measured, form, Right::F32, shape);
    }
    for shape in [(1, f, c), (1, c, f)] {
        product(device, measured, Form::Nt, Right::Nf4, shape);
    }
}

/// M, N, K of the products with the three kinds of weights of a block, forward and backward.
fn weights(shape: &Shape, tokens: usize) -> Vec<(Form, usize, usize, usize)> {
    let (c, f) = (shape.hidden, shape.feed_forward);
    let maps = [(c, c), (f, c), (c, f)];
    let forward = maps.map(|(n, k)| (Form::Nt, tokens, n, k));
    let backward = maps.map(|(n, k)| (Form::Nn, tokens, k, n));
    forward.into_iter().chain(backward).collect()
}

fn product(
    device: &Device,
    measured: &mut Measured,
    form: Form,
    right: Right,
    (m, n, k): (usize, usize, usize),
) {
    let name = format!("{right:?} {form:?}/{m}x{n}x{k}");
    let work = Work::Operations(2 * m * n * k, right.left());
    measured.run(&name, work, || {
        let mut product = Product::new(device, right, (m, n, k));
        move || product.run(device, form, right, (m, n, k))
    });
}

/// What the right operand is stored in.
#[derive(Debug, Clone, Copy)]
enum Right {
    Bf16,
    F32,
    /// Four bits with double quantization, and bf16 on the left.
    Nf4,
    /// The same with f32 on the left.
    Nf4F32,
}

/// The memory of one product.
struct Product {
    left: Act,
    dense: Act,
    codes: Buf<u8>,
    absmax: Buf<u8>,
    nested_absmax: Buf<f32>,
    map: Buf<f32>,
    out: Act,
}

impl Right {
    /// The element of the left operand.
    fn left(self) -> Dtype {
        match self {
            Self::Bf16 | Self::Nf4 => Dtype::Bf16,
            Self::F32 | Self::Nf4F32 => Dtype::F32,
        }
    }
}

impl Product {
    fn new(device: &Device, right: Right, (m, n, k): (usize, usize, usize)) -> Self {
        let dtype = right.left();
        let blocks = quant::blocks(n * k);
        let codes: Vec<u8> = (0..quant::code_bytes(n * k)).map(|i| (i * 167) as u8).collect();
        let nested = vec![0.01; quant::nested_blocks(blocks)];
        Self {
            left: numbers(device, dtype, m * k),
            dense: numbers(device, dtype, n * k),
            codes: uploaded(device, &codes),
            absmax: uploaded(device, &codes[..blocks]),
            nested_absmax: uploaded(device, &nested),
            map: uploaded(device, quant::SIGNED.values()),
            out: numbers(device, dtype, m * n),
        }
    }

    fn run(&mut self, device: &Device, form: Form, right: Right, shape: (usize, usize, usize)) {
        let (m, n, k) = shape;
        let (rows, cols) = if form == Form::Nt { (n, k) } else { (k, n) };
        let weight = FourBit {
            kind: quant::Kind::Nf4,
            rows,
            cols,
            codes: &self.codes,
            scales: Scales::Nested {
                absmax: &self.absmax,
                nested_absmax: &self.nested_absmax,
                offset: 0.02,
                map: &self.map,
            },
        };
        let term = Term {
            left: match form {
                Form::Tn => self.left.view(k, m),
                _ => self.left.view(m, k),
            },
            right: match right {
                Right::Bf16 | Right::F32 => self.dense.view(rows, cols).into(),
                Right::Nf4 | Right::Nf4F32 => Operand::FourBit(weight),
            },
        };
        let out = self.out.view_mut(m, n);
        matmul(device, form, &[term], Epilogue::default(), out, Write::Set);
    }
}
