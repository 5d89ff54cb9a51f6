//! Double quantization: the scales of the blocks, less their mean, as eight-bit codes in groups of
//! 256 with an f32 scale for each group. That makes 0.127 bits a weight of 0.5.

use super::dynamic::{SIGNED, encode_group};
use super::{NESTED_BLOCK, nested_blocks};

/// Scales of a tensor in eight bits: what `codes`, `nested_absmax` and `offset` of a file mean.
#[derive(Debug, Clone, Copy)]
pub struct DoubleQuantized<'a> {
    /// One code of the signed dynamic map for each block.
    pub codes: &'a [u8],
    /// One scale for each 256 blocks.
    pub nested_absmax: &'a [f32],
    /// The mean of the scales.
    pub offset: f32,
    /// What the codes stand for: the values of [`SIGNED`] for scales that this program quantized;
    /// a file carries its own.
    pub map: &'a [f32; 256],
}

impl DoubleQuantized<'_> {
    /// The scale of one block.
    ///
    /// # Panics
    /// If there is no such block.
    #[inline]
    pub fn scale(&self, block: usize) -> f32 {
        // Two roundings: a fused multiply-add would give other bits.
        self.map[usize::from(self.codes[block])] * self.nested_absmax[block / NESTED_BLOCK]
            + self.offset
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
    assert_eq!(nested_absmax.len(), nested_blocks(scales.len()), "second-level scales");
    let groups = scales.chunks(NESTED_BLOCK).zip(codes.chunks_mut(NESTED_BLOCK));
    for ((group, codes), nested) in groups.zip(nested_absmax) {
        let mut centred = [0.0; NESTED_BLOCK];
        let centred = &mut centred[..group.len()];
        for (x, scale) in centred.iter_mut().zip(group) {
            *x = scale - offset;
        }
        *nested = encode_group(centred, codes, |x| SIGNED.nearest(snap(x)));
    }
}

/// Moves x to the nearest of 65,536 equidistant points of -1 to 1, which bitsandbytes' CPU code does
/// to look the nearest entry up in a table. It is part of the format: about one scale in four hundred
/// gets the code beside that of the nearest entry, and 0 gets that of 2.1e-5.
fn snap(x: f32) -> f32 {
    let point = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5).mul_add(65_535.0, 0.5) as u16;
    -1.0 + 2.0 * f32::from(point) / 65_535.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::mean;

    fn encoded(scales: &[f32]) -> (Vec<u8>, Vec<f32>, f32) {
        let (mut codes, mut nested) =
            (vec![9; scales.len()], vec![f32::NAN; nested_blocks(scales.len())]);
        let offset = mean(scales);
        encode_scales(scales, offset, &mut codes, &mut nested);
        (codes, nested, offset)
    }

    #[test]
    fn equal_scales_are_kept_exactly() {
        let (codes, nested_absmax, offset) = encoded(&[0.375; 300]);
        assert_eq!((nested_absmax.as_slice(), offset), ([0.0; 2].as_slice(), 0.375));
        let double = DoubleQuantized {
            codes: &codes,
            nested_absmax: &nested_absmax,
            offset,
            map: SIGNED.values(),
        };
        let mut back = [0.0; 44];
        double.scales(256, &mut back);
        assert_eq!(back, [0.375; 44]);
    }

    #[test]
    fn each_group_of_256_is_read_with_its_own_scale() {
        let scales: Vec<f32> =
            (0..600).map(|i| (1 + i / 256) as f32 + (i % 7) as f32 / 64.0).collect();
        let (codes, nested_absmax, offset) = encoded(&scales);
        let double = DoubleQuantized {
            codes: &codes,
            nested_absmax: &nested_absmax,
            offset,
            map: SIGNED.values(),
        };
        for (block, scale) in scales.iter().enumerate() {
            // The widest gap between neighbouring codes is 0.0141 of the group's largest value.
            let allowed = nested_absmax[block / NESTED_BLOCK] * 0.0071;
            let back = double.scale(block);
            assert!((back - scale).abs() <= allowed, "block {block}: {scale} came back as {back}");
        }
    }

    #[test]
    fn pieces_of_whole_groups_give_the_bytes_of_one_call() {
        let scales: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32).collect();
        let (codes, nested, offset) = encoded(&scales);
        let (mut pieces, mut pieces_nested) = (vec![0; 1000], vec![0.0; 4]);
        let (low, high) = pieces.split_at_mut(512);
        let (nested_low, nested_high) = pieces_nested.split_at_mut(2);
        encode_scales(&scales[..512], offset, low, nested_low);
        encode_scales(&scales[512..], offset, high, nested_high);
        assert_eq!((pieces, pieces_nested), (codes, nested));
    }

    #[test]
    fn the_grid_has_no_point_at_zero() {
        assert_eq!((snap(1.0), snap(-1.0), snap(-7.0)), (1.0, -1.0, -1.0));
        assert_eq!(SIGNED.nearest(snap(0.0)), 131);
    }
}
