//! Losses of rows of logits, and their gradient in place.

use qlora_train::ffi::CrossEntropy;

use super::near::assert_same;
use super::{Card, Grid, assert_near, f32_bytes, numbers, orders};

const SCALE: f32 = 0.125;

/// Loss and gradient of a row.
fn exact(logits: &[f32], target: usize, cap: f32) -> (f64, Vec<f64>) {
    let cap = f64::from(cap);
    let capped = |z: &f32| match cap {
        0.0 => f64::from(*z),
        cap => cap * (f64::from(*z) / cap).tanh(),
    };
    let y: Vec<f64> = logits.iter().map(capped).collect();
    let max = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = y.iter().map(|y| (y - max).exp()).sum();
    let slope = |y: f64| if cap == 0.0 { 1.0 } else { 1.0 - (y / cap).powi(2) };
    let gradient = y.iter().enumerate().map(|(i, y)| {
        let label = f64::from(u8::from(i == target));
        ((y - max).exp() / sum - label) * f64::from(SCALE) * slope(*y)
    });
    (sum.ln() + max - y[target], gradient.collect())
}

#[test]
pub(super) fn losses_and_gradients_are_those_of_f64() {
    for (rows, vocabulary) in [(1, 1), (2, 255), (3, 256), (2, 1030)] {
        for cap in [0.0, 5.0] {
            for has_gradient in [false, true] {
                check((rows, vocabulary), cap, has_gradient);
            }
        }
    }
}

fn check((rows, vocabulary): (usize, usize), soft_cap: f32, has_gradient: bool) {
    let logits: Vec<f32> = numbers(1, rows * vocabulary).iter().map(|z| z * 6.0).collect();
    let targets: Vec<usize> = (0..rows).map(|row| (row * 7919 + 5) % vocabulary).collect();
    let bytes: Vec<u8> = targets.iter().flat_map(|t| (*t as u32).to_le_bytes()).collect();
    for order in orders() {
        let mut card = Card::new();
        let params = CrossEntropy {
            logits: card.upload(&f32_bytes(&logits)),
            targets: card.upload(&bytes),
            losses: card.alloc(rows * 4),
            stride: vocabulary as u64,
            vocabulary: vocabulary as u32,
            soft_cap,
            scale: SCALE,
            has_gradient: u32::from(has_gradient),
        };
        let blocks = [rows as u32, 1, 1];
        let (image, kernel) = ("cross_entropy", "cross_entropy");
        card.run(&Grid { image, kernel, blocks, threads: 256, shared_bytes: 64 }, &params, order);
        let losses = card.f32(params.losses, rows);
        for (row, target) in targets.iter().enumerate() {
            let (loss, gradient) =
                exact(&logits[row * vocabulary..][..vocabulary], *target, soft_cap);
            let error = (f64::from(losses[row]) - loss).abs();
            // Of exponents up to 24 log2(e), the last place is 2⁻¹⁹; it is the error of each exponential, which
            // the approximation adds less than 2⁻²¹ to, and of the logarithm of their sum. A loss has two such errors.
            let bound = 4.0 * 2.0_f64.powi(-19) * loss.max(1.0);
            let what =
                format!("cross_entropy, {rows} x {vocabulary}, cap {soft_cap}: loss of row {row}");
            assert!(error <= bound, "{what}: {}, not {loss} ± {bound:e}", losses[row]);
            let start = params.logits + (row * vocabulary * 4) as u64;
            if has_gradient {
                let what =
                    format!("gradient of row {row} of {rows} x {vocabulary}, cap {soft_cap}");
                assert_near(&card.bf16(start, vocabulary), &gradient, 1.01, vocabulary, &what);
            } else {
                let left = card.f32(start, vocabulary);
                let given = &logits[row * vocabulary..][..vocabulary];
                assert_same(&left, given, vocabulary, "logits that should stay");
            }
        }
    }
}
