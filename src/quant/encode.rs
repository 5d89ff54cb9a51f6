//! From f32 values to four-bit codes and scales.
//!
//! The rule of a whole block: `x = w · (1 / absmax)`; of a short last block: `x = w / absmax`. The
//! code is found by counting the boundaries strictly below x, so a tie takes the lower value.
//!
//! One body serves all processors: fifteen comparisons a value, without a branch, which the compiler
//! turns into the vectors of whatever instruction set the wrapper around it enables.

use super::{BLOCK, BLOCK_BYTES, Kind, SMALLEST_DIVISOR, absmax, blocks, code_bytes};

/// Quantizes `values` to [`code_bytes`] codes and one scale for each of the [`blocks`].
///
/// Blocks do not depend on each other: threads may share the work if every piece but the last is a
/// multiple of [`BLOCK`] values. A value that is not finite makes the scale of its block not finite,
/// and the codes of that block meaningless; the caller looks at the scales.
///
/// # Panics
/// If `codes` or `scales` has another length.
pub fn encode(kind: Kind, values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    assert_eq!(codes.len(), code_bytes(values.len()), "bytes of codes");
    assert_eq!(scales.len(), blocks(values.len()), "scales");
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has both.
            return unsafe { encode_avx512(kind, values, codes, scales) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            return unsafe { encode_avx2(kind, values, codes, scales) };
        }
    }
    encode_any(kind, values, codes, scales);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn encode_avx512(kind: Kind, values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    encode_any(kind, values, codes, scales);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(kind: Kind, values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    encode_any(kind, values, codes, scales);
}

#[inline(always)]
fn encode_any(kind: Kind, values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    match kind {
        Kind::Nf4 => encode_blocks(const { &Kind::Nf4.boundaries() }, values, codes, scales),
        Kind::Fp4 => {
            encode_blocks(const { &Kind::Fp4.boundaries() }, values, codes, scales);
            ranks_to_fp4(codes);
        }
    }
}

/// Writes ranks (positions in ascending order of value) where the codes belong.
#[inline(always)]
fn encode_blocks(boundaries: &[f32; 15], values: &[f32], ranks: &mut [u8], scales: &mut [f32]) {
    let (whole, short) = values.as_chunks::<BLOCK>();
    let (whole_ranks, short_ranks) = ranks.split_at_mut(whole.len() * BLOCK_BYTES);
    let (whole_ranks, _) = whole_ranks.as_chunks_mut::<BLOCK_BYTES>();
    for ((block, ranks), scale) in whole.iter().zip(whole_ranks).zip(scales.iter_mut()) {
        *scale = absmax(block);
        let inverse = 1.0 / scale.max(SMALLEST_DIVISOR);
        *ranks = pack(boundaries, &block.map(|w| w * inverse));
    }
    if let ([_, ..], Some(scale)) = (short, scales.last_mut()) {
        *scale = absmax(short).max(SMALLEST_DIVISOR);
        let mut padded = [0.0; BLOCK];
        for (x, w) in padded.iter_mut().zip(short) {
            *x = w / *scale;
        }
        short_ranks.copy_from_slice(&pack(boundaries, &padded)[..short_ranks.len()]);
    }
}

#[inline(always)]
fn pack(boundaries: &[f32; 15], scaled: &[f32; BLOCK]) -> [u8; BLOCK_BYTES] {
    let mut ranks = [0_u8; BLOCK];
    for (rank, x) in ranks.iter_mut().zip(scaled) {
        let below: u32 = boundaries.iter().map(|b| u32::from(b < x)).sum();
        *rank = below as u8;
    }
    let mut packed = [0; BLOCK_BYTES];
    for (byte, pair) in packed.iter_mut().zip(ranks.as_chunks::<2>().0) {
        let pair = u16::from_le_bytes(*pair);
        *byte = (pair << 4 | pair >> 8) as u8;
    }
    packed
}

/// FP4's codes do not ascend with their values; two ranks are translated at a time.
#[inline(always)]
fn ranks_to_fp4(ranks: &mut [u8]) {
    const CODES_OF_RANKS: [u8; 256] = {
        let order = Kind::Fp4.ascending();
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = order[byte >> 4] << 4 | order[byte & 15];
            byte += 1;
        }
        table
    };
    for byte in ranks {
        *byte = CODES_OF_RANKS[usize::from(*byte)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: Kind, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let mut codes = vec![0xaa; code_bytes(values.len())];
        let mut scales = vec![f32::NAN; blocks(values.len())];
        encode(kind, values, &mut codes, &mut scales);
        (codes, scales)
    }

    fn nibbles(codes: &[u8]) -> Vec<u8> {
        codes.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect()
    }

    #[test]
    fn a_tie_takes_the_lower_value_and_the_next_float_the_upper_one() {
        for kind in [Kind::Nf4, Kind::Fp4] {
            let order = kind.ascending();
            let mut values = vec![0.0; BLOCK];
            values[0] = 1.0;
            let boundaries = kind.boundaries();
            values[1..16].copy_from_slice(&boundaries);
            values[16..31].copy_from_slice(&boundaries.map(f32::next_up));
            let got = nibbles(&encoded(kind, &values).0);
            assert_eq!(got[0], order[15]);
            assert_eq!(got[1..16], order[..15], "{kind:?}, ties");
            assert_eq!(got[16..31], order[1..], "{kind:?}, above the ties");
        }
    }

    #[test]
    fn every_code_stands_for_its_own_value() {
        for kind in [Kind::Nf4, Kind::Fp4] {
            let mut values = kind.values().to_vec();
            values.resize(BLOCK, 0.0);
            let mut codes: Vec<u8> = (0..16).collect();
            if kind == Kind::Fp4 {
                codes[8] = 0;
            }
            assert_eq!(nibbles(&encoded(kind, &values).0)[..16], codes, "{kind:?}");
        }
    }

    #[test]
    fn zeros_have_scale_0_in_a_whole_block_and_the_smallest_divisor_in_a_short_one() {
        for (kind, byte) in [(Kind::Nf4, 0x77), (Kind::Fp4, 0x00)] {
            let (codes, scales) = encoded(kind, &[0.0; 65]);
            assert_eq!(codes, [byte; 33], "{kind:?}");
            assert_eq!(scales, [0.0, SMALLEST_DIVISOR], "{kind:?}");
        }
    }

    #[test]
    fn an_odd_length_ends_in_the_code_of_zero() {
        assert_eq!(encoded(Kind::Nf4, &[-2.0]), (vec![0x07], vec![2.0]));
        assert_eq!(encoded(Kind::Fp4, &[-2.0]), (vec![0xb0], vec![2.0]));
    }

    #[test]
    fn no_value_at_all_is_nothing_to_write() {
        assert_eq!(encoded(Kind::Nf4, &[]), (vec![], vec![]));
    }

    #[test]
    fn a_short_block_divides_where_a_whole_one_multiplies() {
        let noise = noise(BLOCK * 40 + 63, 5);
        let (codes, scales) = encoded(Kind::Nf4, &noise);
        let got = nibbles(&codes);
        let boundaries = Kind::Nf4.boundaries();
        for (i, w) in noise.iter().enumerate() {
            let scale = scales[i / BLOCK];
            let x = if i / BLOCK < 40 { w * (1.0 / scale) } else { w / scale };
            let code = boundaries.iter().filter(|&&b| b < x).count();
            assert_eq!(usize::from(got[i]), code, "value {i}");
        }
    }

    #[test]
    fn pieces_of_whole_blocks_give_the_bytes_of_one_call() {
        let values = noise(BLOCK * 5 + 9, 11);
        let (low, high) = values.split_at(BLOCK * 3);
        let (mut codes, mut scales) = encoded(Kind::Fp4, low);
        let (high_codes, high_scales) = encoded(Kind::Fp4, high);
        codes.extend(high_codes);
        scales.extend(high_scales);
        assert_eq!((codes, scales), encoded(Kind::Fp4, &values));
    }

    #[test]
    fn every_instruction_set_writes_the_same_bytes() {
        for n in [1, 2, 63, 64, 65, 127, 128, 255, 256, 257, 4096 + 31] {
            let values = noise(n, n as u64);
            for kind in [Kind::Nf4, Kind::Fp4] {
                let mut codes = vec![0; code_bytes(n)];
                let mut scales = vec![0.0; blocks(n)];
                encode_any(kind, &values, &mut codes, &mut scales);
                assert_eq!(encoded(kind, &values), (codes, scales), "{kind:?}, {n} values");
            }
        }
    }

    /// About normal, by twelve uniform draws of a linear congruential generator.
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }
}
