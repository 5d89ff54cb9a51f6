//! What the tests of operations share: numbers to test with, and gradients by finite differences.

use half::bf16;

use crate::device::{Act, Device, Dtype};

/// `count` standard normal numbers that depend on `seed` only (sum of twelve uniform ones, less 6).
pub fn normal(seed: u64, count: usize) -> impl Iterator<Item = f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count).map(move |_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0)
}

/// The scaled error max|a − n| / max|a| between the gradient that `backward(x, dy)` gives for a
/// random dy and central differences of Σ dy·forward(x), step 1e-5, all in f64.
pub fn gradient_error(
    x: &[f64],
    forward: impl Fn(&[f64]) -> Vec<f64>,
    backward: impl Fn(&[f64], &[f64]) -> Vec<f64>,
) -> f64 {
    const STEP: f64 = 1e-5;
    let dy: Vec<f64> = normal(77, forward(x).len()).collect();
    let loss = |x: &[f64]| forward(x).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
    let analytic = backward(x, &dy);
    let mut worst = 0.0f64;
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        moved[i] = x[i] + STEP;
        let above = loss(&moved);
        moved[i] = x[i] - STEP;
        let numeric = (above - loss(&moved)) / (2.0 * STEP);
        moved[i] = x[i];
        worst = worst.max((analytic[i] - numeric).abs());
    }
    worst / analytic.iter().fold(0.0f64, |m, a| m.max(a.abs()))
}

/// max|a − b| / max|b|; NaN where anything is not a number.
pub fn scaled_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "as many numbers as expected");
    let greatest = |m: f64, x: f64| if x <= m { m } else { x };
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, greatest);
    worst / b.iter().map(|b| b.abs()).fold(0.0, greatest)
}

/// The nearest bf16 number.
pub fn to_bf16(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

/// Activations with the content of `numbers`.
pub fn upload(device: &Device, numbers: &[f64], dtype: Dtype) -> Act {
    let mut act = device.alloc_dense("test", numbers.len(), dtype).unwrap();
    let bytes: Vec<u8> = match dtype {
        Dtype::Bf16 => numbers.iter().flat_map(|x| bf16::from_f64(*x).to_ne_bytes()).collect(),
        Dtype::F32 => numbers.iter().flat_map(|x| (*x as f32).to_ne_bytes()).collect(),
        Dtype::F64 => numbers.iter().flat_map(|x| x.to_ne_bytes()).collect(),
    };
    device.upload(&bytes, act.bytes_mut());
    act
}

/// The content of `act`.
pub fn download(device: &Device, act: &Act) -> Vec<f64> {
    let mut bytes = vec![0u8; act.bytes().len()];
    device.download(act.bytes(), &mut bytes);
    let read = |x: &[u8]| match act.dtype() {
        Dtype::Bf16 => bf16::from_ne_bytes(x.try_into().unwrap()).to_f64(),
        Dtype::F32 => f64::from(f32::from_ne_bytes(x.try_into().unwrap())),
        Dtype::F64 => f64::from_ne_bytes(x.try_into().unwrap()),
    };
    bytes.chunks_exact(act.dtype().size()).map(read).collect()
}
