//! Four-bit storage of frozen weights: NF4 and FP4 blocks, their double-quantized scales, and the
//! eight-bit code of optimizer states. Pure functions on slices.
//!
//! A tensor of n values, read row by row, is cut into blocks of [`BLOCK`] values. A block is one
//! f32 scale (its largest magnitude) and one four-bit code per value, the earlier value of two in
//! the *high* half of the byte. Rows whose length is no multiple of 64 share blocks with their
//! neighbours, so a position is always an index into the whole tensor. The scales themselves are
//! quantized again, to eight bits in groups of [`NESTED_BLOCK`]: see [`DoubleQuantized`].
//!
//! Every byte written here equals the one that bitsandbytes 0.50.2 writes on a CPU, and every value
//! read back equals what it reads. Its own result changes in three cases, each told where it is
//! decided: with the number of threads ([`mean`]), without fused multiply-add (`quant/dynamic.rs`), and
//! in the sign of FP4's second zero, which is +0 here. Optimizer states take the exactly nearest entry,
//! as on its GPUs; its CPU code goes through a grid.
//!
//! This is not the place for files (`checkpoint`), nor for products with quantized weights (`ops`).
//! Read next: `quant/encode.rs` and `quant/decode.rs` for the blocks, `quant/double.rs` for the
//! scales, `quant/dynamic.rs` and `quant/eightbit.rs` for the eight-bit code.

mod decode;
mod double;
mod dynamic;
mod eightbit;
mod encode;
mod mean;

pub use decode::{decode_bf16, decode_f32};
pub use double::{DoubleQuantized, encode_scales};
pub use dynamic::{Dynamic, SIGNED, UNSIGNED};
pub use eightbit::{STATE_BLOCK, decode_states, encode_states};
pub use encode::encode;
pub use mean::mean;

/// Values that share one scale.
pub const BLOCK: usize = 64;

/// Scales that share one second-level scale.
pub const NESTED_BLOCK: usize = 256;

/// Bytes of codes of one block.
const BLOCK_BYTES: usize = BLOCK / 2;

/// Divisors below this one (f32, subnormal) are raised to it, so that a block of zeros divides.
/// A short last block also stores the raised scale; a whole block stores 0.
pub const SMALLEST_DIVISOR: f32 = 1e-38;

/// Which sixteen values the four-bit codes stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Quantiles of the normal distribution, with an exact zero.
    Nf4,
    /// One sign bit, two exponent bits, one mantissa bit.
    Fp4,
}

impl Kind {
    /// The name in files and flags: `nf4` or `fp4`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The kind of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Nf4, Self::Fp4].into_iter().find(|kind| kind.name() == name)
    }

    /// The value of each code, as a multiple of the block's scale.
    pub const fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The codes in the order of their values. FP4 has two zeros: 0 comes before 8.
    const fn ascending(self) -> &'static [u8; 16] {
        match self {
            Self::Nf4 => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            Self::Fp4 => &[11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
        }
    }

    /// The f32 midpoints between neighbouring values, ascending. FP4's middle one is 0, between its
    /// two zeros: values above it that round to zero get code 8, all others code 0.
    const fn boundaries(self) -> [f32; 15] {
        let (values, order) = (self.values(), self.ascending());
        let mut midpoints = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            midpoints[i] = (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.0;
            i += 1;
        }
        midpoints
    }
}

/// NormalFloat4: Dettmers et al., "QLoRA" (arXiv 2305.14314), appendix E, in the f32 digits that
/// bitsandbytes carries.
#[rustfmt::skip]
const NF4: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5,
    -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24,
    0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

/// FP4 with exponent bias 2 in the order of its bit patterns, divided by its largest value, 12.
#[rustfmt::skip]
const FP4: [f32; 16] = [
    0.0, 0.0625 / 12.0, 8.0 / 12.0, 1.0, 4.0 / 12.0, 6.0 / 12.0, 2.0 / 12.0, 3.0 / 12.0,
    0.0, -0.0625 / 12.0, -8.0 / 12.0, -1.0, -4.0 / 12.0, -6.0 / 12.0, -2.0 / 12.0, -3.0 / 12.0,
];

/// Bytes of codes of a tensor of `values` values; an odd last byte ends in the code of zero.
pub const fn code_bytes(values: usize) -> usize {
    values.div_ceil(2)
}

/// Scales of a tensor of `values` values.
pub const fn blocks(values: usize) -> usize {
    values.div_ceil(BLOCK)
}

/// Second-level scales of `blocks` scales.
pub const fn nested_blocks(blocks: usize) -> usize {
    blocks.div_ceil(NESTED_BLOCK)
}

/// Largest magnitude, with NaN above everything: a block that holds a NaN or an infinity gets a
/// scale that is not finite, which the caller can test, instead of losing it silently.
#[inline(always)]
fn absmax(values: &[f32]) -> f32 {
    // As integers, the bits of non-negative floats order like their values.
    let bits = values.iter().fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
    f32::from_bits(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_of_the_reference() {
        let nf4 = Kind::Nf4.values().map(f32::to_bits);
        #[rustfmt::skip]
        assert_eq!(nf4, [
            0xbf80_0000, 0xbf32_39b1, 0xbf06_6b30, 0xbeca_32a0,
            0xbe91_a24d, 0xbe3d_353f, 0xbdba_7871, 0x0000_0000,
            0x3da2_faff, 0x3e24_cae3, 0x3e7c_04dd, 0x3ead_033a,
            0x3ee1_a4b8, 0x3f10_07ab, 0x3f39_13b3, 0x3f80_0000,
        ]);
        let fp4 = Kind::Fp4.values().map(f32::to_bits);
        #[rustfmt::skip]
        assert_eq!(fp4, [
            0x0000_0000, 0x3baa_aaab, 0x3f2a_aaab, 0x3f80_0000,
            0x3eaa_aaab, 0x3f00_0000, 0x3e2a_aaab, 0x3e80_0000,
            0x0000_0000, 0xbbaa_aaab, 0xbf2a_aaab, 0xbf80_0000,
            0xbeaa_aaab, 0xbf00_0000, 0xbe2a_aaab, 0xbe80_0000,
        ]);
    }

    #[test]
    fn boundaries_ascend_or_a_code_can_never_be_chosen() {
        for kind in [Kind::Nf4, Kind::Fp4] {
            let boundaries = kind.boundaries();
            assert!(boundaries.is_sorted_by(|a, b| a < b), "{boundaries:?}");
        }
    }

    #[test]
    fn names_round_trip() {
        assert_eq!(Kind::from_name("nf4"), Some(Kind::Nf4));
        assert_eq!(Kind::from_name(Kind::Fp4.name()), Some(Kind::Fp4));
        assert_eq!(Kind::from_name("NF4"), None);
    }

    #[test]
    fn sizes_do_not_wrap_above_32_bits() {
        let values = (1 << 33) + 1;
        assert_eq!(code_bytes(values), (1 << 32) + 1);
        assert_eq!(blocks(values), (1 << 27) + 1);
        assert_eq!(nested_blocks(blocks(values)), (1 << 19) + 1);
    }

    #[test]
    fn a_nan_is_not_lost_in_the_maximum() {
        assert!(absmax(&[1.0, f32::NAN, -3.0]).is_nan());
        assert_eq!(absmax(&[1.0, f32::NEG_INFINITY]), f32::INFINITY);
        assert_eq!(absmax(&[-0.0, 0.5, -3.0]), 3.0);
    }
}
