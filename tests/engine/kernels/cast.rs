//! From one element to another.

use half::bf16;
use qlora_train::ffi::Cast;

use super::near::assert_same;
use super::{Card, Grid, f32_bytes, orders};

/// Numbers that are rounded down, up, to even, to infinity, and none.
const NUMBERS: [f32; 8] =
    [0.0, -1.5, 1.003_906_2, 1.011_718_8, 2.645_751_3, 1e-40, f32::MAX, f32::NEG_INFINITY];

#[test]
fn every_pair_of_elements_and_rows_with_gaps() {
    for (rows, cols, gap) in [(1, 1, 0), (3, 257, 0), (2, 300, 5)] {
        for (from_wide, to_wide) in [(true, true), (true, false), (false, true), (false, false)] {
            check((rows, cols, gap), from_wide, to_wide);
        }
    }
}

fn check((rows, cols, gap): (usize, usize, usize), from_wide: bool, to_wide: bool) {
    let (len, stride) = (rows * (cols + gap), (cols + gap) as u64);
    let from: Vec<f32> = (0..len).map(|i| NUMBERS[i % 8] * (1 + i / 8) as f32).collect();
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    let stored: Vec<f32> = from.iter().map(|x| if from_wide { *x } else { rounded(*x) }).collect();
    for order in orders() {
        let mut card = Card::new();
        let bytes = match from_wide {
            true => f32_bytes(&from),
            false => super::bf16_bytes(&from),
        };
        let params = Cast {
            from: card.upload(&bytes),
            to: card.upload(&vec![0x11; len * 4]),
            rows: rows as u64,
            cols: cols as u64,
            from_stride: stride,
            to_stride: stride,
            from_wide: u32::from(from_wide),
            to_wide: u32::from(to_wide),
        };
        let blocks = [rows as u32, 1, 1];
        let (image, kernel) = ("cast", "cast");
        card.run(&Grid { image, kernel, blocks, threads: 256, shared_bytes: 0 }, &params, order);
        let found = if to_wide { card.f32(params.to, len) } else { card.bf16(params.to, len) };
        let expected = |i: usize| match (i % (cols + gap) < cols, to_wide) {
            (true, true) => stored[i],
            (true, false) => rounded(stored[i]),
            (false, true) => f32::from_bits(0x1111_1111),
            (false, false) => bf16::from_bits(0x1111).to_f32(),
        };
        let expected: Vec<f32> = (0..len).map(expected).collect();
        let what = format!("cast in {order:?}, from wide: {from_wide}, to wide: {to_wide}");
        assert_same(&found, &expected, cols + gap, &what);
    }
}
