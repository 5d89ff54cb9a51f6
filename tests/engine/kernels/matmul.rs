//! Products of matrices in three orientations.

use ptx_emu::Order;
use qlora_train::ffi::Matmul;

use super::card::is_left_out;
use super::near::assert_within;
use super::{Card, Grid, assert_near, bf16_bytes, f32_bytes, numbers, orders};

pub(super) const KERNELS: [&str; 6] = [
    "matmul_nt",
    "matmul_nn",
    "matmul_tn",
    "matmul_large_nt",
    "matmul_large_nn",
    "matmul_large_tn",
];

pub(super) fn grid(kernel: &'static str, m: usize, n: usize) -> Grid {
    let (tile, threads) = if kernel.contains("large") { (128, 256) } else { (64, 128) };
    Grid {
        image: "matmul",
        kernel,
        blocks: [n.div_ceil(tile) as u32, m.div_ceil(tile) as u32, 1],
        threads,
        // Three stages of both operands.
        shared_bytes: 3 * 2 * tile * 64 * 2,
    }
}

/// M, N and both depths: whole tiles, one more than that, one less, single rows, depths that end within a
/// tile or within eight numbers, and ranks that are no multiple of eight.
const SHAPES: [(usize, usize, [usize; 2]); 10] = [
    (64, 64, [64, 0]),
    (65, 63, [128, 16]),
    (1, 130, [72, 8]),
    (128, 72, [200, 0]),
    (129, 255, [320, 16]),
    (257, 136, [704, 80]),
    (40, 8, [16, 64]),
    (63, 65, [8, 3]),
    (7, 100, [33, 4]),
    (33, 5, [1, 65]),
];

/// What happens to the sum.
#[derive(Debug, Clone, Copy)]
struct After {
    add: bool,
    wide: bool,
    bias: bool,
    residual: bool,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    kernel: &'static str,
    m: usize,
    n: usize,
    k: [usize; 2],
    /// Rows begin at multiples of as many numbers.
    multiple: usize,
    after: After,
}

/// An operand as it is stored.
struct Stored {
    numbers: Vec<f32>,
    stride: usize,
}

impl Case {
    fn form(self) -> &'static str {
        self.kernel.rsplit('_').next().unwrap()
    }

    /// Rows and columns of the operands of product `i` as they are stored.
    fn stored(self, i: usize) -> [(usize, usize); 2] {
        let Self { m, n, k, .. } = self;
        match self.form() {
            "nt" => [(m, k[i]), (n, k[i])],
            "nn" => [(m, k[i]), (k[i], n)],
            _ => [(k[i], m), (k[i], n)],
        }
    }

    /// What sums in f32 may be off by, whatever the order within a tensor instruction: each of 16 products adds
    /// an error of a unit of the last place, as it may where numbers are cut off, of the largest sum there can be
    /// of products of numbers below 2; and so do the terms that come after it.
    fn error_of_sums(self) -> f64 {
        let depth: usize = self.k.iter().sum();
        let instructions = self.k.iter().map(|k| k.div_ceil(16)).sum::<usize>() + 3;
        // The sum of independent products of both signs stays within some roots of their number.
        let largest = 4.0 * 4.0 * (depth as f64).sqrt() + 4.0;
        instructions as f64 * largest * f64::from(f32::EPSILON)
    }

    /// Numbers between rows are no part of the matrix: they must change nothing.
    fn operand(self, seed: u64, (rows, cols): (usize, usize)) -> Stored {
        let stride = cols.next_multiple_of(self.multiple);
        Stored { numbers: numbers(seed, rows * stride), stride }
    }

    /// The number of a in row `i` of the result times that of b in column `j`, at depth `d`.
    fn product(self, [a, b]: &[Stored; 2], (i, j, d): (usize, usize, usize)) -> f64 {
        let (a_at, b_at) = match self.form() {
            "nt" => (i * a.stride + d, j * b.stride + d),
            "nn" => (i * a.stride + d, d * b.stride + j),
            _ => (d * a.stride + i, d * b.stride + j),
        };
        f64::from(a.numbers[a_at]) * f64::from(b.numbers[b_at])
    }
}

for_each_kernel!(products_are_those_of_f64: check_all(
    matmul_nt,
    matmul_nn,
    matmul_tn,
    matmul_large_nt,
    matmul_large_nn,
    matmul_large_tn,
));

fn check_all(kernel: &'static str) {
    let plain = After { add: false, wide: false, bias: false, residual: false };
    let afters = [
        plain,
        After { add: true, wide: true, ..plain },
        After { bias: true, residual: true, ..plain },
        After { add: true, ..plain },
    ];
    for (m, n, k) in SHAPES {
        if kernel.contains("large") && m.max(n) <= 64 {
            continue;
        }
        for (number, after) in afters.into_iter().enumerate() {
            // Rows at multiples of 16 bytes, and rows as they come.
            let multiple = [8, 1][number % 2];
            check(Case { kernel, m, n, k, multiple, after });
        }
    }
}

/// A product with several tiles, and depths that end within one.
pub(super) fn exercise(kernel: &'static str) {
    let after = After { add: true, wide: false, bias: true, residual: true };
    check(Case { kernel, m: 129, n: 135, k: [320, 16], multiple: 8, after });
}

fn check(case: Case) {
    let Case { m, n, k, after, .. } = case;
    let operands: [[Stored; 2]; 2] = [0, 1].map(|i| {
        let [a, b] = case.stored(i);
        [case.operand(2 * i as u64 + 1, a), case.operand(2 * i as u64 + 2, b)]
    });
    let (before, residual, bias) = (numbers(5, m * n), numbers(6, m * n), numbers(7, n));
    let exact = |at: usize| {
        let (i, j) = (at / n, at % n);
        let sum_of = |term: usize| -> f64 {
            (0..k[term]).map(|d| case.product(&operands[term], (i, j, d))).sum()
        };
        let mut value = (sum_of(0) + sum_of(1)) * f64::from(ALPHA);
        let terms =
            [(after.bias, bias[j]), (after.residual, residual[at]), (after.add, before[at])];
        for (_, term) in terms.into_iter().filter(|(is_there, _)| *is_there) {
            value += f64::from(term);
        }
        value
    };
    let exact: Vec<f64> = (0..m * n).map(exact).collect();
    for order in orders() {
        let mut card = Card::new();
        let found = run(&mut card, case, &operands, [&before, &residual, &bias], order);
        let what = format!("{case:?} in {order:?}");
        match after.wide {
            true => assert_within(&found, &exact, case.error_of_sums(), n, &what),
            false => assert_near(&found, &exact, 1.01, n, &what),
        }
    }
}

const ALPHA: f32 = 0.5;

/// The result of a case.
fn run(
    card: &mut Card,
    case: Case,
    operands: &[[Stored; 2]; 2],
    [before, residual, bias]: [&[f32]; 3],
    order: Order,
) -> Vec<f32> {
    let Case { m, n, k, after, .. } = case;
    let given = |card: &mut Card, is_given: bool, bytes: &[u8]| match is_given {
        true => card.upload(bytes),
        false => 0,
    };
    let mut place = |i: usize, side: usize| {
        let bytes = bf16_bytes(&operands[i][side].numbers);
        given(card, !bytes.is_empty(), &bytes)
    };
    let [a, b] = [0, 1].map(|side| [place(0, side), place(1, side)]);
    let stride = |side: usize| [0, 1].map(|i| operands[i][side].stride as u64);
    let out = if after.wide { f32_bytes(before) } else { bf16_bytes(before) };
    let params = Matmul {
        a,
        b,
        out: card.upload(&out),
        bias: given(card, after.bias, &f32_bytes(bias)),
        residual: given(card, after.residual, &bf16_bytes(residual)),
        a_stride: stride(0),
        b_stride: stride(1),
        out_stride: n as u64,
        residual_stride: n as u64,
        k: k.map(|k| k as u32),
        m: m as u32,
        n: n as u32,
        alpha: ALPHA,
        add: u32::from(after.add),
        wide: u32::from(after.wide),
    };
    card.run(&grid(case.kernel, m, n), &params, order);
    if after.wide { card.f32(params.out, m * n) } else { card.bf16(params.out, m * n) }
}

#[test]
fn no_two_rows_of_a_tile_share_a_bank() {
    if is_left_out("a driver does not count passes over shared memory") {
        return;
    }
    for kernel in KERNELS {
        let mut card = Card::new();
        let zeros = vec![0; 128 * 128 * 2];
        let params = Matmul {
            a: [card.upload(&zeros), 0],
            b: [card.upload(&zeros), 0],
            out: card.upload(&zeros),
            a_stride: [128, 0],
            b_stride: [128, 0],
            out_stride: 128,
            m: 128,
            n: 128,
            k: [128, 0],
            alpha: 1.0,
            ..Matmul::default()
        };
        card.run(&grid(kernel, 128, 128), &params, Order::Forward);
        let counters = card.counters;
        assert_eq!(counters.shared_passes, counters.shared_passes_at_best, "{kernel}");
    }
}
