//! Products of matrices in three orientations.

use ptx_emu::Order;
use qlora_train::ffi::Matmul;

use super::{Card, Grid, ORDERS, assert_near, bf16_bytes, numbers};

/// Bytes of two stages of two tiles.
const SHARED_BYTES: usize = 4 * 64 * 64 * 2;

const KERNELS: [&str; 3] = ["matmul_nt", "matmul_nn", "matmul_tn"];

/// M, N, K: whole tiles, one more than that, one less, single rows, and depths that end within a tile.
const SHAPES: [(usize, usize, usize); 6] =
    [(64, 64, 64), (65, 63, 128), (1, 130, 72), (128, 72, 200), (40, 8, 16), (63, 65, 8)];

#[derive(Debug, Clone, Copy)]
struct Case {
    kernel: &'static str,
    m: usize,
    n: usize,
    k: usize,
    add: bool,
    wide: bool,
}

impl Case {
    /// Rows and columns of a and b as they are stored.
    fn stored(self) -> [(usize, usize); 2] {
        let Self { m, n, k, .. } = self;
        match self.kernel {
            "matmul_nt" => [(m, k), (n, k)],
            "matmul_nn" => [(m, k), (k, n)],
            _ => [(k, m), (k, n)],
        }
    }

    /// The number of a in row `i` of the result and depth `d`, that of b in column `j`.
    fn pair(self, a: &[f32], b: &[f32], (i, j, d): (usize, usize, usize)) -> (f32, f32) {
        let [a_stride, b_stride] = self.stored().map(|(_, cols)| padded(cols));
        match self.kernel {
            "matmul_nt" => (a[i * a_stride + d], b[j * b_stride + d]),
            "matmul_nn" => (a[i * a_stride + d], b[d * b_stride + j]),
            _ => (a[d * a_stride + i], b[d * b_stride + j]),
        }
    }
}

/// Rows begin at 16 bytes.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(8)
}

#[test]
fn products_are_those_of_f64_in_every_orientation() {
    for kernel in KERNELS {
        for (m, n, k) in SHAPES {
            for (add, wide) in [(false, false), (true, true)] {
                for order in ORDERS {
                    check(Case { kernel, m, n, k, add, wide }, order);
                }
            }
        }
    }
}

/// What is beyond a row's end within its last chunk is read, and must be zero where it is depth.
fn operand(seed: u64, (rows, cols): (usize, usize)) -> Vec<f32> {
    let mut numbers = numbers(seed, rows * padded(cols));
    for row in numbers.chunks_mut(padded(cols)) {
        row[cols..].fill(0.0);
    }
    numbers
}

fn check(case: Case, order: Order) {
    const ALPHA: f32 = 0.5;
    let Case { m, n, k, add, wide, .. } = case;
    let [a, b] = [0, 1].map(|i| operand(i as u64 + 1, case.stored()[i]));
    let before = numbers(3, m * n);
    let mut card = Card::new();
    let bytes = |numbers: &[f32]| match wide {
        true => super::f32_bytes(numbers),
        false => bf16_bytes(numbers),
    };
    let params = Matmul {
        a: [card.upload(&bf16_bytes(&a)), 0],
        b: [card.upload(&bf16_bytes(&b)), 0],
        out: card.upload(&bytes(&before)),
        bias: 0,
        residual: 0,
        a_stride: [padded(case.stored()[0].1) as u64, 0],
        b_stride: [padded(case.stored()[1].1) as u64, 0],
        residual_stride: 0,
        out_stride: n as u64,
        m: m as u32,
        n: n as u32,
        k: [k as u32, 0],
        alpha: ALPHA,
        add: u32::from(add),
        wide: u32::from(wide),
    };
    let grid = Grid {
        image: "matmul",
        kernel: case.kernel,
        blocks: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1],
        threads: 128,
        shared_bytes: SHARED_BYTES,
    };
    card.run(&grid, &params, order);
    let exact = |i: usize| {
        let pairs = (0..k).map(|d| case.pair(&a, &b, (i / n, i % n, d)));
        let sum: f64 = pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum();
        sum * f64::from(ALPHA) + if add { f64::from(before[i]) } else { 0.0 }
    };
    let exact: Vec<f64> = (0..m * n).map(exact).collect();
    if wide {
        let found = card.f32(params.out, m * n);
        assert_near(&found, &exact, 1e-3, &format!("{case:?}"));
    } else {
        assert_near(&card.bf16(params.out, m * n), &exact, 1.01, &format!("{case:?}"));
    }
}

#[test]
fn no_two_rows_of_a_tile_share_a_bank() {
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
        let (blocks, shared_bytes) = ([2, 2, 1], SHARED_BYTES);
        let grid = Grid { image: "matmul", kernel, blocks, threads: 128, shared_bytes };
        card.run(&grid, &params, Order::Forward);
        let counters = card.counters;
        assert_eq!(counters.shared_passes, counters.shared_passes_at_best, "{kernel}");
    }
}
