//! Optimizer states in eight bits: blocks of 256 values with one f32 scale, coded by the nearest
//! entry of a dynamic map (the signed one for first moments, the unsigned one for second moments).
//! Zero comes back as zero exactly.

use super::dynamic::{Dynamic, encode_group};

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
    let blocks = values.chunks(STATE_BLOCK).zip(codes.chunks_mut(STATE_BLOCK));
    for ((block, codes), scale) in blocks.zip(scales) {
        *scale = encode_group(block, codes, |x| map.nearest(x));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{SIGNED, UNSIGNED};

    fn round_trip(map: &Dynamic, values: &[f32]) -> Vec<f32> {
        let (mut codes, mut scales) =
            (vec![9; values.len()], vec![f32::NAN; values.len().div_ceil(256)]);
        encode_states(map, values, &mut codes, &mut scales);
        let mut back = vec![f32::NAN; values.len()];
        decode_states(map, &codes, &scales, &mut back);
        back
    }

    #[test]
    fn zeros_and_the_largest_of_each_block_come_back_exactly() {
        for map in [&SIGNED, &UNSIGNED] {
            let mut values = [0.0; 700];
            (values[10], values[300], values[600]) = (3.5e-9, 7.0, 1e-38);
            assert_eq!(round_trip(map, &values), values);
            assert_eq!(round_trip(map, &[0.0; 257]), [0.0; 257]);
        }
    }

    #[test]
    fn zeros_beside_subnormal_values_stay_zero() {
        let values = [0.0, 1e-45, 0.0];
        let back = round_trip(&SIGNED, &values);
        assert_eq!((back[0], back[2]), (0.0, 0.0));
    }

    #[test]
    fn each_decade_is_read_back_within_half_its_intervals() {
        for decade in 0..7 {
            let unit = 10_f32.powi(decade - 6);
            let intervals = (2 << decade) as f32;
            let mut values: Vec<f32> =
                (1..=200).map(|i| unit * (0.1 + 0.0045 * i as f32)).collect();
            values.push(1.0);
            for (x, back) in values.iter().zip(round_trip(&UNSIGNED, &values)) {
                let allowed = 1.001 * unit * 0.45 / intervals;
                assert!((x - back).abs() <= allowed, "{x:e} came back as {back:e}");
            }
        }
    }
}
