//! The sum of squares, in f64 and in one order.

use ptx_emu::Order;
use qlora_train::ffi::SumSquares;

use super::{Card, Grid, f32_bytes, numbers, orders};

/// Numbers of a partial sum.
const PIECE: usize = 16_384;

#[test]
pub(super) fn sums_are_those_of_f64_and_the_same_bits_in_every_order() {
    for len in [1, 255, 257, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 100] {
        let x: Vec<f32> = numbers(1, len).into_iter().map(|x| x * 1e-2).collect();
        let exact: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let sum = |order: Order| {
            let mut card = Card::new();
            let pieces = len.div_ceil(PIECE);
            let params = SumSquares {
                x: card.upload(&f32_bytes(&x)),
                partial: card.alloc(pieces * 8),
                out: card.alloc(8),
                len: len as u64,
            };
            for (kernel, blocks) in [("sum_squares", pieces), ("sum_squares_total", 1)] {
                let blocks = [blocks as u32, 1, 1];
                let (image, shared_bytes) = ("sum_squares", 256 * 8);
                let grid = Grid { image, kernel, blocks, threads: 256, shared_bytes };
                card.run(&grid, &params, order);
            }
            f64::from_le_bytes(card.read(params.out, 8).try_into().unwrap())
        };
        let sums: Vec<f64> = orders().map(sum).collect();
        assert!((sums[0] - exact).abs() <= 1e-13 * exact, "{len}: {} for {exact}", sums[0]);
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{len}: {sums:?}");
    }
}
