//! Whole blocks by AVX-512: the sixteen scaled values of a block fill a register, and one permutation
//! looks up 32 codes (bf16) or 16 (f32). Parts of blocks go the portable way.

use std::arch::x86_64::*;

use half::bf16;

use super::{Element, Run, decode_part};
use crate::quant::{BLOCK, BLOCK_BYTES, Kind};

/// See [`super::decode_bf16`].
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn decode_bf16(
    kind: Kind,
    codes: &[u8],
    scale_of: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [bf16],
) {
    let values = codebook(kind);
    by_blocks(kind, codes, scale_of, start, out, |bytes, scale, out| {
        let scaled = round_to_bf16(_mm512_mul_ps(values, _mm512_set1_ps(scale)));
        // Twice the sixteen values: the permutation reads five bits, of which the fifth is noise.
        let table = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(scaled));
        for (bytes, out) in bytes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            // SAFETY: 16 bytes are read from an array of 16.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            let wide = _mm512_cvtepu8_epi32(bytes);
            let codes =
                _mm512_or_si512(_mm512_srli_epi32::<4>(wide), _mm512_slli_epi32::<16>(wide));
            let values = _mm512_permutexvar_epi16(codes, table);
            // SAFETY: 64 bytes are written to an array of 32 values of two bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), values) };
        }
    });
}

/// See [`super::decode_f32`].
#[target_feature(enable = "avx512f")]
pub(super) fn decode_f32(
    kind: Kind,
    codes: &[u8],
    scale_of: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [f32],
) {
    let values = codebook(kind);
    by_blocks(kind, codes, scale_of, start, out, |bytes, scale, out| {
        let table = _mm512_mul_ps(values, _mm512_set1_ps(scale));
        for (bytes, out) in bytes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            let wide = _mm512_cvtepu8_epi64(_mm_set_epi64x(0, i64::from_le_bytes(*bytes)));
            let codes =
                _mm512_or_si512(_mm512_srli_epi64::<4>(wide), _mm512_slli_epi64::<32>(wide));
            let values = _mm512_permutexvar_ps(codes, table);
            // SAFETY: 64 bytes are written to an array of 16 values of four bytes.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
        }
    });
}

/// Calls `whole(codes, scale, values)` for every whole block of the run.
#[inline(always)]
fn by_blocks<E: Element>(
    kind: Kind,
    codes: &[u8],
    scale_of: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [E],
    whole: impl Fn(&[u8; BLOCK_BYTES], f32, &mut [E; BLOCK]),
) {
    let run = Run::new(start, out.len());
    let (head, rest) = out.split_at_mut(run.head);
    if !head.is_empty() {
        decode_part(kind, codes, &scale_of, start, head);
    }
    let (blocks, tail) = rest.as_chunks_mut::<BLOCK>();
    let mut block = run.first_whole;
    let bytes = codes.as_chunks::<BLOCK_BYTES>().0.get(block..).unwrap_or_default();
    for (bytes, values) in bytes.iter().zip(blocks) {
        whole(bytes, scale_of(block), values);
        block += 1;
    }
    if !tail.is_empty() {
        decode_part(kind, codes, &scale_of, block * BLOCK, tail);
    }
}

#[target_feature(enable = "avx512f")]
fn codebook(kind: Kind) -> __m512 {
    // SAFETY: 64 bytes are read from an array of 16 values of four bytes.
    unsafe { _mm512_loadu_ps(kind.values().as_ptr()) }
}

/// To nearest, ties to even, in the low half of each lane. The instruction of AVX512-BF16 would
/// flush subnormal values to zero, which the portable path does not.
#[target_feature(enable = "avx512f")]
fn round_to_bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
    let quiet_nan = _mm512_or_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(0x40));
    _mm512_mask_blend_epi32(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), rounded, quiet_nan)
}
