//! Double quantization: the scales of the blocks, less their mean, as eight-bit codes in groups of
//! 256 with an f32 scale for each group. That makes 0.127 bits a weight of 0.5.

use super::dynamic::SIGNED;
use super::{NESTED_BLOCK, absmax, nested_blocks};

/// Scales of a tensor in eight bits: what `codes`, `nested_absmax` and `offset` of a file mean.
#[derive(Debug, Clone, Copy)]
pub struct DoubleQuantized<'a> {
    /// One code of the signed dynamic map for each block.
    pub codes: &'a [u8],
    /// One scale for each 256 blocks.
    pub nested_absmax: &'a [f32],
    /// The mean of the scales.
    pub offset: f32,
}

impl DoubleQuantized<'_> {
    /// The scale of one block.
    ///
    /// # Panics
    /// If there is no such block.
    #[inline]
    pub fn scale(&self, block: usize) -> f32 {
        // Two roundings: a fused multiply-add would give other bits.
        SIGNED.value(self.codes[block]) * self.nested_absmax[block / NESTED_BLOCK] + self.offset
    }

    /// Writes the scales of the blocks from `first` on.
    ///
    /// # Panics
    /// If they end before `out`.
    pub fn scales(&self, first: usize, out: &mut [f32]) {
        for (i, scale) in out.iter_mut().enumerate() {
            *scale = self.scale(first + i);
        }
    }
}

/// Quantizes scales to one code each and one f32 for every [`NESTED_BLOCK`] of them. `offset` is the
/// [`mean`](super::mean) of *all* scales of the tensor; with it known, threads may share the work if
/// every piece but the last is a multiple of [`NESTED_BLOCK`] scales.
///
/// # Panics
/// If `codes` or `nested_absmax` has another length.
pub fn encode_scales(scales: &[f32], offset: f32, codes: &mut [u8], nested_absmax: &mut [f32]) {
    assert_eq!(codes.len(), scales.len(), "codes");
    assert_eq!(
        nested_absmax.len(),
        nested_blocks(scales.len()),
        "second-level scales"
    );
    let groups = scales
        .chunks(NESTED_BLOCK)
        .zip(codes.chunks_mut(NESTED_BLOCK));
    for ((group, codes), nested) in groups.zip(nested_absmax) {
        let mut centred = [0.0; NESTED_BLOCK];
        let centred = &mut centred[..group.len()];
        for (x, scale) in centred.iter_mut().zip(group) {
            *x = scale - offset;
        }
        *nested = absmax(centred);
        encode_group(centred, *nested, codes);
    }
}

fn encode_group(centred: &[f32], absmax: f32, codes: &mut [u8]) {
    if absmax == 0.0 {
        return codes.fill(0);
    }
    let inverse = 1.0 / absmax;
    for (code, x) in codes.iter_mut().zip(centred) {
        *code = SIGNED.nearest(snap(x * inverse));
    }
}

/// Moves x to the nearest of 65,536 equidistant points of -1 to 1, which bitsandbytes' CPU code does
/// to look the nearest entry up in a table. It is part of the format: without it, one scale in four
/// hundred gets the neighbouring code, and even 0 becomes 1.5e-5.
fn snap(x: f32) -> f32 {
    let point = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5).mul_add(65_535.0, 0.5) as u16;
    -1.0 + 2.0 * f32::from(point) / 65_535.0
}
