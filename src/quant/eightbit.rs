//! Optimizer states in eight bits: blocks of 256 values with one f32 scale, coded by the nearest
//! entry of a dynamic map (the signed one for first moments, the unsigned one for second moments).
//! Zero comes back as zero exactly.

use super::dynamic::Dynamic;
use super::{SMALLEST_DIVISOR, absmax};

/// Optimizer states that share one scale.
pub const STATE_BLOCK: usize = 256;

/// Quantizes `values` to one code each and one scale for every [`STATE_BLOCK`] of them. Threads may
/// share the work if every piece but the last is a multiple of [`STATE_BLOCK`] values. A value that
/// is not finite makes the scale of its block not finite.
///
/// # Panics
/// If `codes` or `scales` has another length.
pub fn encode_states(map: &Dynamic, values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    assert_lengths(values, codes, scales);
    let blocks = values
        .chunks(STATE_BLOCK)
        .zip(codes.chunks_mut(STATE_BLOCK));
    for ((block, codes), scale) in blocks.zip(scales) {
        *scale = absmax(block);
        let inverse = 1.0 / scale.max(SMALLEST_DIVISOR);
        for (code, x) in codes.iter_mut().zip(block) {
            *code = map.nearest(x * inverse);
        }
    }
}

/// Writes `map[code] · scale` for every code.
///
/// # Panics
/// If `out` or `scales` has another length.
pub fn decode_states(map: &Dynamic, codes: &[u8], scales: &[f32], out: &mut [f32]) {
    assert_lengths(out, codes, scales);
    let blocks = codes.chunks(STATE_BLOCK).zip(out.chunks_mut(STATE_BLOCK));
    for ((codes, block), scale) in blocks.zip(scales) {
        for (x, code) in block.iter_mut().zip(codes) {
            *x = map.value(*code) * scale;
        }
    }
}

fn assert_lengths(values: &[f32], codes: &[u8], scales: &[f32]) {
    assert_eq!(codes.len(), values.len(), "codes");
    assert_eq!(scales.len(), values.len().div_ceil(STATE_BLOCK), "scales");
}
