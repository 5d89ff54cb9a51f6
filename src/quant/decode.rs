//! From four-bit codes back to values: `codebook[code] · scale` in f32, then one rounding.
//!
//! All paths give the same bits. The portable one scales the sixteen values of a block once and looks
//! each code up; `decode/avx512.rs` does the same with one permutation for 16 or 32 values.

#[cfg(target_arch = "x86_64")]
mod avx512;

use half::bf16;

use super::{BLOCK, Kind, code_bytes};

/// Writes the values `start .. start + out.len()` of a tensor, rounded to bf16.
///
/// `codes` are those of the whole tensor, or of a part that begins at a block, from which `start`
/// then counts. `scale_of(block)` is asked once for every block touched: a slice of scales
/// (`|block| scales[block]`) or [`DoubleQuantized::scale`](super::DoubleQuantized::scale).
/// Any start will do; a run of whole blocks is fastest.
///
/// # Panics
/// If the codes end before the run.
#[inline]
pub fn decode_bf16(
    kind: Kind,
    codes: &[u8],
    scale_of: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [bf16],
) {
    assert_in_codes(codes, start, out.len());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has both.
        return unsafe { avx512::decode_bf16(kind, codes, scale_of, start, out) };
    }
    decode_any(kind, codes, scale_of, start, out);
}

/// As [`decode_bf16`], without the rounding.
///
/// # Panics
/// If the codes end before the run.
#[inline]
pub fn decode_f32(
    kind: Kind,
    codes: &[u8],
    scale_of: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [f32],
) {
    assert_in_codes(codes, start, out.len());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has it.
        return unsafe { avx512::decode_f32(kind, codes, scale_of, start, out) };
    }
    decode_any(kind, codes, scale_of, start, out);
}

fn assert_in_codes(codes: &[u8], start: usize, len: usize) {
    let needed = code_bytes(start + len);
    let there = codes.len();
    assert!(needed <= there, "{len} values from {start} need {needed} bytes of codes, not {there}");
}

/// What values are decoded to.
trait Element: Copy {
    fn round(x: f32) -> Self;
}

impl Element for f32 {
    fn round(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    fn round(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

fn decode_any<E: Element>(
    kind: Kind,
    codes: &[u8],
    scale_of: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [E],
) {
    let run = Run::new(start, out.len());
    let (head, rest) = out.split_at_mut(run.head);
    decode_part(kind, codes, &scale_of, start, head);
    for (i, part) in rest.chunks_mut(BLOCK).enumerate() {
        decode_part(kind, codes, &scale_of, (run.first_whole + i) * BLOCK, part);
    }
}

/// How a run of values lies on the blocks: `head` values end the block it begins in, if it does not
/// begin with one; what follows begins at block `first_whole`.
#[derive(Debug, PartialEq)]
struct Run {
    head: usize,
    first_whole: usize,
}

impl Run {
    fn new(start: usize, len: usize) -> Self {
        let first_whole = start.div_ceil(BLOCK);
        Self { head: (first_whole * BLOCK - start).min(len), first_whole }
    }
}

/// Decodes values of one block only, from `start` on.
fn decode_part<E: Element>(
    kind: Kind,
    codes: &[u8],
    scale_of: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [E],
) {
    if out.is_empty() {
        return;
    }
    let scale = scale_of(start / BLOCK);
    let table = kind.values().map(|value| E::round(value * scale));
    let value = |code: u8| table[usize::from(code & 15)];
    let (odd, out) = out.split_at_mut(start % 2);
    let bytes = &codes[start / 2..];
    for x in &mut *odd {
        *x = value(bytes[0]);
    }
    let (pairs, last) = out.as_chunks_mut::<2>();
    let bytes = &bytes[odd.len()..];
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [value(byte >> 4), value(*byte)];
    }
    for x in last {
        *x = value(bytes[pairs.len()] >> 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{blocks, encode};

    /// Codes that hold every byte, and scales of many magnitudes, subnormal products included.
    fn tensor(n: usize) -> (Vec<u8>, Vec<f32>) {
        let codes = (0..code_bytes(n)).map(|i| (i * 167 + i / 256) as u8).collect();
        let scales =
            (0..blocks(n)).map(|i| (1.0 + i as f32 / 7.0) * 10_f32.powi(i as i32 % 9 * 5 - 39));
        (codes, scales.collect())
    }

    fn one(kind: Kind, codes: &[u8], scales: &[f32], index: usize) -> f32 {
        let byte = codes[index / 2];
        let code = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        kind.values()[usize::from(code)] * scales[index / BLOCK]
    }

    #[test]
    fn every_path_gives_the_bits_of_the_rule_from_any_start() {
        let (codes, scales) = tensor(1000);
        for kind in [Kind::Nf4, Kind::Fp4] {
            for start in (0..67).chain([128, 255, 640, 937]) {
                for len in [0, 1, 2, 3, 31, 60, 63] {
                    assert_run(kind, &codes, &scales, start, len);
                }
            }
            for (start, len) in [(0, 1000), (64, 512), (1, 999), (63, 257), (128, 255), (32, 64)] {
                assert_run(kind, &codes, &scales, start, len);
            }
        }
    }

    fn assert_run(kind: Kind, codes: &[u8], scales: &[f32], start: usize, len: usize) {
        let rule: Vec<f32> = (start..start + len).map(|i| one(kind, codes, scales, i)).collect();
        let what = format!("{kind:?}, {len} values from {start}");
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let scale_of = |block: usize| scales[block];
        let (mut dispatched, mut portable) = (vec![9.0; len], vec![9.0; len]);
        decode_f32(kind, codes, scale_of, start, &mut dispatched);
        decode_any(kind, codes, scale_of, start, &mut portable);
        assert_eq!(bits(&dispatched), bits(&rule), "f32, {what}");
        assert_eq!(bits(&portable), bits(&rule), "portable f32, {what}");
        let rounded: Vec<u16> = rule.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
        let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let (mut dispatched, mut portable) = (vec![bf16::MAX; len], vec![bf16::MAX; len]);
        decode_bf16(kind, codes, scale_of, start, &mut dispatched);
        decode_any(kind, codes, scale_of, start, &mut portable);
        assert_eq!(bits(&dispatched), rounded, "bf16, {what}");
        assert_eq!(bits(&portable), rounded, "portable bf16, {what}");
    }

    #[test]
    fn a_scale_that_is_not_finite_stays_so() {
        let mut out = [bf16::ZERO; BLOCK];
        decode_bf16(Kind::Nf4, &[0; 32], |_| f32::NAN, 0, &mut out);
        assert!(out.iter().all(|x| x.is_nan()), "{out:?}");
        decode_bf16(Kind::Nf4, &[0; 32], |_| f32::INFINITY, 0, &mut out);
        assert_eq!(out, [bf16::NEG_INFINITY; BLOCK]);
    }

    #[test]
    fn rows_that_share_a_block_are_read_with_its_scale() {
        let values: Vec<f32> = (0..192).map(|i| if i < 64 { 1.0 } else { 8.0 }).collect();
        let (mut codes, mut scales) = (vec![0; 96], vec![0.0; 3]);
        encode(Kind::Nf4, &values, &mut codes, &mut scales);
        let mut row = [0.0; 48];
        decode_f32(Kind::Nf4, &codes, |block| scales[block], 48, &mut row);
        assert_eq!(row.as_slice(), &values[48..96]);
    }

    #[test]
    fn positions_above_32_bits_find_their_block() {
        let start = (1 << 33) + 5;
        assert_eq!(Run::new(start, 100), Run { head: 59, first_whole: (1 << 27) + 1 });
        assert_eq!(Run::new(start, 7), Run { head: 7, first_whole: (1 << 27) + 1 });
        assert_eq!(Run::new(1 << 33, 7), Run { head: 0, first_whole: 1 << 27 });
    }

    #[test]
    #[should_panic(expected = "2 values from 63 need 33 bytes of codes, not 32")]
    fn a_run_past_the_codes_is_refused() {
        decode_f32(Kind::Nf4, &[0; 32], |_| 1.0, 63, &mut [0.0; 2]);
    }
}
