//! The sum of squares, in f64 and in one order: of pieces, and of their sums.

use ptx_emu::Order;
use qlora_train::ffi::SumSquares;

use super::{Card, Grid, f32_bytes, numbers, orders};

/// Numbers of a partial sum.
const PIECE: usize = 16_384;

for_each_kernel!(sums_are_those_of_f64: check_all(sum_squares, sum_squares_total));

pub(super) fn check_all(kernel: &'static str) {
    let is_total = kernel == "sum_squares_total";
    // The last has more pieces than a block has threads, which only the total need go through.
    let many = is_total.then_some(300 * PIECE);
    for len in [1, 255, 257, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 100].into_iter().chain(many) {
        for order in orders() {
            match is_total {
                true => check_total(len, order),
                false => check_pieces(len, order),
            }
        }
    }
}

fn check_pieces(len: usize, order: Order) {
    let x: Vec<f32> = numbers(1, len).into_iter().map(|x| x * 1e-2).collect();
    let mut card = Card::new();
    let pieces = len.div_ceil(PIECE);
    let params = SumSquares {
        x: card.upload(&f32_bytes(&x)),
        partial: card.alloc(pieces * 8),
        out: 0,
        len: len as u64,
    };
    card.run(&grid("sum_squares", pieces), &params, order);
    let squares = |some: &[f32]| some.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    // In parts, so that few roundings are added up.
    let parts = |piece: &[f32]| piece.chunks(128).map(squares).sum();
    let exact: Vec<f64> = x.chunks(PIECE).map(parts).collect();
    check_sums(&card, params.partial, &exact, &format!("sum_squares of {len} in {order:?}"));
}

fn check_total(len: usize, order: Order) {
    let partial: Vec<f64> =
        numbers(1, len.div_ceil(PIECE)).iter().map(|x| f64::from(x.abs()) / 3.0).collect();
    let mut card = Card::new();
    let bytes: Vec<u8> = partial.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    let params =
        SumSquares { x: 0, partial: card.upload(&bytes), out: card.alloc(8), len: len as u64 };
    card.run(&grid("sum_squares_total", 1), &params, order);
    let exact = [partial.iter().sum()];
    check_sums(&card, params.out, &exact, &format!("sum_squares_total of {len} in {order:?}"));
}

fn grid(kernel: &'static str, blocks: usize) -> Grid {
    let (image, shared_bytes) = ("sum_squares", 256 * 8);
    Grid { image, kernel, blocks: [blocks as u32, 1, 1], threads: 256, shared_bytes }
}

/// Sums of positive numbers, each of them exact: what is off are less than 512 roundings, a kernel's
/// (64 numbers of a thread and eight times a pair) and those of the sums here.
fn check_sums(card: &Card, address: u64, exact: &[f64], what: &str) {
    let bytes = card.read(address, exact.len() * 8);
    for (i, (found, exact)) in bytes.chunks_exact(8).zip(exact).enumerate() {
        let found = f64::from_le_bytes(found.try_into().unwrap());
        let bound = 512.0 * f64::EPSILON / 2.0 * exact;
        assert!((found - exact).abs() <= bound, "{what}: sum {i} is {found}, not {exact}");
    }
}
