//! Matrix products: of dense weights, of four-bit ones, and with an adapter beside them.

use qlora_train::device::{Act, Device, Dtype};
use qlora_train::error::Error;
use qlora_train::ops::Write;
use qlora_train::ops::gemm::{Epilogue, Form, FourBit, Operand, Scales, Term, matmul};
use qlora_train::quant;

use super::cases::{Bench, Case, Size, Work};
use super::inputs::{FourBitWeights, activations};

pub fn all(bench: Bench<'_>) -> Vec<Case<'_>> {
    let Size { tokens, hidden: c, feed_forward: f, vocab, rank, head_rows, .. } = bench.size;
    let mut cases = Vec::new();
    for m in [tokens, tokens / 2, tokens / 8] {
        for (form, n, k) in [(Form::Nt, c, c), (Form::Nt, f, c), (Form::Nn, c, f)] {
            for right in [Right::Dense, Right::Nf4, Right::Nf4WithLora(rank)] {
                cases.push(product(bench, right, form, (m, n, k)));
            }
        }
    }
    // x·Aᵀ of an adapter at the widest input, and what the head gives back for a chunk of rows.
    cases.push(product(bench, Right::Dense, Form::Nt, (tokens, rank, f)));
    cases.push(product(bench, Right::Dense, Form::Nn, (head_rows, c, vocab)));
    cases.push(gradient_of_a(bench));
    cases
}

fn product(
    bench: Bench<'_>,
    right: Right,
    form: Form,
    (m, n, k): (usize, usize, usize),
) -> Case<'_> {
    Case::new(
        bench,
        (format!("matmul {right:?} {form:?}/{m}x{n}x{k}"), Work::Operations(2 * m * n * k)),
        move || Product::new(bench.device, right, (m, n, k)),
        move |product| product.run(bench.device, form),
    )
}

fn gradient_of_a(bench: Bench<'_>) -> Case<'_> {
    let (Size { tokens, hidden, rank, .. }, device) = (bench.size, bench.device);
    Case::new(
        bench,
        (
            format!("matmul gradient of A Tn/{rank}x{hidden}x{tokens}"),
            Work::Operations(2 * rank * hidden * tokens),
        ),
        move || {
            let mut out = device.alloc_dense("bench", rank * hidden, Dtype::F32)?;
            device.zero(out.bytes_mut());
            let operands = [rank, hidden].map(|cols| activations(device, tokens * cols));
            let [left, right] = operands;
            Ok((left?, right?, out))
        },
        move |(left, right, out)| {
            let right = right.view(tokens, hidden).into();
            let term = Term { left: left.view(tokens, rank), right };
            let out = out.view_mut(rank, hidden);
            matmul(device, Form::Tn, &[term], Epilogue::default(), out, Write::Add);
        },
    )
}

/// The kind of the right operand; its name is part of the case's.
#[derive(Debug, Clone, Copy)]
enum Right {
    Dense,
    Nf4,
    Nf4WithLora(usize),
}

/// The memory of one product, m x n of depth k.
struct Product {
    shape: (usize, usize, usize),
    left: Act,
    right: Weights,
    /// The low-rank product: both operands, and its depth.
    low_rank: Option<([Act; 2], usize)>,
    out: Act,
}

enum Weights {
    Dense(Act),
    Nf4(Box<FourBitWeights>),
}

impl Product {
    fn new(device: &Device, right: Right, (m, n, k): (usize, usize, usize)) -> Result<Self, Error> {
        let low_rank = match right {
            Right::Nf4WithLora(rank) => {
                Some(([activations(device, m * rank)?, activations(device, n * rank)?], rank))
            }
            Right::Dense | Right::Nf4 => None,
        };
        let right = match right {
            Right::Dense => Weights::Dense(activations(device, n * k)?),
            _ => Weights::Nf4(FourBitWeights::new(device, n * k)?.into()),
        };
        let left = activations(device, m * k)?;
        let out = device.alloc_act("bench", m * n)?;
        Ok(Self { shape: (m, n, k), left, right, low_rank, out })
    }

    fn run(&mut self, device: &Device, form: Form) {
        let (m, n, k) = self.shape;
        let stored = |depth| if form == Form::Nt { (n, depth) } else { (depth, n) };
        let (rows, cols) = stored(k);
        let right = match &self.right {
            Weights::Dense(weights) => weights.view(rows, cols).into(),
            Weights::Nf4(weights) => Operand::FourBit(weights.matrix(rows, cols)),
        };
        let base = Term { left: self.left.view(m, k), right };
        let out = self.out.view_mut(m, n);
        let Some(([xa, b], rank)) = &self.low_rank else {
            return matmul(device, form, &[base], Epilogue::default(), out, Write::Set);
        };
        let (rows, cols) = stored(*rank);
        let update = Term { left: xa.view(m, *rank), right: b.view(rows, cols).into() };
        matmul(device, form, &[base, update], Epilogue::default(), out, Write::Set);
    }
}

impl FourBitWeights {
    fn matrix(&self, rows: usize, cols: usize) -> FourBit<'_> {
        let scales = Scales::Nested {
            absmax: &self.absmax,
            nested_absmax: &self.nested_absmax,
            offset: self.offset,
            map: &self.map,
        };
        FourBit { kind: quant::Kind::Nf4, rows, cols, codes: &self.codes, scales }
    }
}
