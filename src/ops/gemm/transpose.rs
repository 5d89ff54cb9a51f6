//! Rows into lanes: the transposition within packing.

use crate::device::Simd;

/// Rows that are transposed at a time.
pub(super) const ROWS: usize = 16;

/// Writes element i of row r to element `i · pitch + r` of `out`, for `len` elements of all `rows`
/// (1 to [`ROWS`]). What lies `ahead` bytes from each row is asked for from memory meanwhile.
///
/// # Safety
/// The rows are valid for reads of `len` elements, of any alignment; `out` for what is written.
pub(super) unsafe fn transpose<U: Copy>(
    simd: Simd,
    rows: &[*const U],
    len: usize,
    out: *mut U,
    pitch: usize,
    ahead: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if simd >= Simd::Avx512 && size_of::<U>() == size_of::<u32>() {
        // Missing rows are the first one again: their lanes are not written.
        let from = std::array::from_fn(|r| rows.get(r).unwrap_or(&rows[0]).cast::<i32>());
        // SAFETY: passed on from the caller; a device has AVX-512 only where the machine has it,
        // and any four bytes may be moved as an i32.
        return unsafe { avx512(&from, lower_bits(rows.len()), len, out.cast(), pitch, ahead) };
    }
    let _ = (simd, ahead);
    for i in 0..len {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: passed on from the caller.
            unsafe { *out.add(i * pitch + r) = row.add(i).read_unaligned() };
        }
    }
}

/// 16 x 16 elements at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(
    rows: &[*const i32; ROWS],
    lanes: u16,
    len: usize,
    out: *mut i32,
    pitch: usize,
    ahead: usize,
) {
    use std::arch::x86_64::*;
    let squares = len / 16;
    for start in (0..squares * 16).step_by(16) {
        // SAFETY: the caller vouches for `len` elements of each row and one of each lane; a prefetch
        // of any address is allowed.
        unsafe {
            for row in rows {
                _mm_prefetch::<_MM_HINT_T0>(
                    row.wrapping_add(start).wrapping_byte_add(ahead).cast(),
                );
            }
            let mut square = [_mm512_setzero_si512(); ROWS];
            for (line, row) in square.iter_mut().zip(rows) {
                *line = _mm512_loadu_si512(row.add(start).cast());
            }
            let square = transpose_square(square);
            let out = out.add(start * pitch);
            if lanes == u16::MAX {
                for (i, line) in square.into_iter().enumerate() {
                    _mm512_storeu_si512(out.add(i * pitch).cast(), line);
                }
            } else {
                for (i, line) in square.into_iter().enumerate() {
                    _mm512_mask_storeu_epi32(out.add(i * pitch), lanes, line);
                }
            }
        }
    }
    let (start, rest) = (squares * 16, len % 16);
    if rest == 0 {
        return;
    }
    // SAFETY: as above; the mask leaves out what is beyond.
    unsafe {
        let mut square = [_mm512_setzero_si512(); ROWS];
        for (line, row) in square.iter_mut().zip(rows) {
            *line = _mm512_maskz_loadu_epi32(lower_bits(rest), row.add(start));
        }
        for (i, line) in transpose_square(square).iter().enumerate().take(rest) {
            _mm512_mask_storeu_epi32(out.wrapping_add((start + i) * pitch), lanes, *line);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn lower_bits(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

/// Transposes 16 x 16 elements: within pairs of rows, within fours, then fours of lanes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_square(rows: [std::arch::x86_64::__m512i; 16]) -> [std::arch::x86_64::__m512i; 16] {
    use std::arch::x86_64::*;
    /// Lanes 0 and 2 of both operands, and lanes 1 and 3.
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut pairs = rows;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Lane l of fours[4q + c] holds column 4l + c of the rows 4q to 4q + 3.
    let mut fours = rows;
    for q in (0..16).step_by(4) {
        fours[q] = _mm512_unpacklo_epi64(pairs[q], pairs[q + 2]);
        fours[q + 1] = _mm512_unpackhi_epi64(pairs[q], pairs[q + 2]);
        fours[q + 2] = _mm512_unpacklo_epi64(pairs[q + 1], pairs[q + 3]);
        fours[q + 3] = _mm512_unpackhi_epi64(pairs[q + 1], pairs[q + 3]);
    }
    let mut columns = rows;
    for c in 0..4 {
        let (low, high) = ((fours[c], fours[c + 4]), (fours[c + 8], fours[c + 12]));
        let even = _mm512_shuffle_i32x4::<EVEN>(low.0, low.1);
        let odd = _mm512_shuffle_i32x4::<ODD>(low.0, low.1);
        let even_high = _mm512_shuffle_i32x4::<EVEN>(high.0, high.1);
        let odd_high = _mm512_shuffle_i32x4::<ODD>(high.0, high.1);
        columns[c] = _mm512_shuffle_i32x4::<EVEN>(even, even_high);
        columns[c + 4] = _mm512_shuffle_i32x4::<EVEN>(odd, odd_high);
        columns[c + 8] = _mm512_shuffle_i32x4::<ODD>(even, even_high);
        columns[c + 12] = _mm512_shuffle_i32x4::<ODD>(odd, odd_high);
    }
    columns
}
