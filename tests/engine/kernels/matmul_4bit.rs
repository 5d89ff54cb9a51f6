//! Products with a weight in four-bit blocks, decoded on its way.

use half::bf16;
use ptx_emu::Order;
use qlora_train::ffi::{Matmul, Matmul4bit};
use qlora_train::quant::{
    Kind, SIGNED, blocks, code_bytes, decode_bf16, encode, encode_scales, nested_blocks,
};

use super::{Card, Grid, assert_near, bf16_bytes, f32_bytes, numbers, orders};

/// M, N, K and a rank: rows of the weight are whole blocks.
const SHAPES: [(usize, usize, usize, usize); 5] = [
    (1, 64, 64, 0),
    (33, 128, 192, 8),
    (64, 192, 128, 3),
    (65, 64, 320, 16),
    // As many rows as only some cards give to these kernels.
    (200, 128, 640, 16),
];

const OFFSET: f32 = 0.01;

/// A weight with nested scales, and its values.
struct Weight {
    codes: Vec<u8>,
    absmax: Vec<u8>,
    nested_absmax: Vec<f32>,
    values: Vec<bf16>,
}

impl Weight {
    fn new(kind: Kind, count: usize) -> Self {
        let blocks = blocks(count);
        let (mut codes, mut scales) = (vec![0; code_bytes(count)], vec![0.0; blocks]);
        encode(kind, &numbers(9, count), &mut codes, &mut scales);
        let (mut absmax, mut nested_absmax) = (vec![0; blocks], vec![0.0; nested_blocks(blocks)]);
        encode_scales(&scales, OFFSET, &mut absmax, &mut nested_absmax);
        let scale =
            |block: usize| SIGNED.value(absmax[block]) * nested_absmax[block / 256] + OFFSET;
        let mut values = vec![bf16::ZERO; count];
        decode_bf16(kind, &codes, scale, 0, &mut values);
        Self { codes, absmax, nested_absmax, values }
    }
}

for_each_kernel!(products_are_those_of_f64_over_the_decoded_weight:
    check_all(matmul_4bit_nt, matmul_4bit_nn));

fn check_all(kernel: &'static str) {
    let across = kernel.ends_with("nn");
    for (kind, (m, n, k, rank)) in
        [Kind::Nf4, Kind::Fp4].into_iter().flat_map(|kind| SHAPES.map(|shape| (kind, shape)))
    {
        // Rows of the stored matrix need be whole blocks, not the number of them.
        let shape = if across { (m, n, k + 7, rank) } else { (m, n + 7, k, rank) };
        check(kind, kernel, across, shape);
    }
}

/// A product with several tiles, and depths that end within one.
pub(super) fn exercise(kernel: &'static str) {
    check(Kind::Nf4, kernel, kernel.ends_with("nn"), (65, 128, 320, 16));
}

fn check(kind: Kind, kernel: &'static str, across: bool, shape: (usize, usize, usize, usize)) {
    let (m, n, k, rank) = shape;
    let weight = Weight::new(kind, n * k);
    let (x, xa, b) = (numbers(1, m * k), numbers(2, m * rank), numbers(3, n * rank));
    let at = |row: usize, depth: usize, of: usize| match across {
        true => depth * n + row,
        false => row * of + depth,
    };
    let exact = |i: usize, j: usize| -> f64 {
        let base = (0..k)
            .map(|d| f64::from(x[i * k + d]) * f64::from(weight.values[at(j, d, k)].to_f32()));
        let update = (0..rank).map(|d| f64::from(xa[i * rank + d]) * f64::from(b[at(j, d, rank)]));
        base.sum::<f64>() + update.sum::<f64>()
    };
    let exact: Vec<f64> = (0..m * n).map(|at| exact(at / n, at % n)).collect();
    for order in orders() {
        let mut card = Card::new();
        let found = run(&mut card, kind, (kernel, across), shape, &weight, [&x, &xa, &b], order);
        let what = format!("{kernel}, {kind:?} {shape:?} in {order:?}");
        assert_near(&found, &exact, 1.01, n, &what);
    }
}

fn run(
    card: &mut Card,
    kind: Kind,
    (kernel, across): (&'static str, bool),
    (m, n, k, rank): (usize, usize, usize, usize),
    weight: &Weight,
    [x, xa, b]: [&[f32]; 3],
    order: Order,
) -> Vec<f32> {
    let mut given = |numbers: &[f32]| match numbers {
        [] => 0,
        _ => card.upload(&bf16_bytes(numbers)),
    };
    let [x, xa, b] = [x, xa, b].map(&mut given);
    let product = Matmul {
        a: [x, xa],
        b: [card.upload(&weight.codes), b],
        out: card.alloc(m * n * 2),
        a_stride: [k as u64, rank as u64],
        b_stride: if across { [n as u64; 2] } else { [k as u64, rank as u64] },
        out_stride: n as u64,
        k: [k as u32, rank as u32],
        m: m as u32,
        n: n as u32,
        alpha: 1.0,
        ..Matmul::default()
    };
    let params = Matmul4bit {
        product,
        absmax: card.upload(&weight.absmax),
        nested_absmax: card.upload(&f32_bytes(&weight.nested_absmax)),
        map: card.upload(&f32_bytes(SIGNED.values())),
        offset: OFFSET,
        book: *kind.values(),
    };
    let grid = Grid {
        image: "matmul_4bit",
        kernel,
        blocks: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1],
        threads: 128,
        shared_bytes: 2 * 2 * 64 * 64 * 2,
    };
    card.run(&grid, &params, order);
    card.bf16(product.out, m * n)
}
