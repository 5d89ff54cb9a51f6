//! How the rows of a band go into panels.
//!
//! Where K runs along the rows, a row becomes a lane: 16 rows are transposed at a time. Where K runs
//! across them, a row (or the pairs of two) becomes a step, cut into the widths of the panels.

use bytemuck::Zeroable;

use super::tile::Lanes;
use super::transpose::transpose;
use crate::device::Simd;
use crate::ops::element::{Element, per_simd};

/// Panels side by side.
pub(super) struct Panels<N> {
    pub(super) start: *mut N,
    /// Lanes of each.
    pub(super) width: usize,
    /// Numbers from one to the next.
    pub(super) pitch: usize,
}

/// `len` numbers of each of some rows.
pub(super) struct Band<'a, N> {
    pub(super) rows: &'a [*const N],
    pub(super) len: usize,
    /// Bytes from each row to what will be read next.
    pub(super) ahead: usize,
}

/// Puts each row of a band into a lane of a panel, from `to` on.
///
/// # Safety
/// Rows and lanes are valid, and the machine has `simd`.
pub(super) unsafe fn put_lanes<L: Lanes>(
    simd: Simd,
    band: &Band<L::Number>,
    to: *mut L::Number,
    width: usize,
) {
    let Band { rows, len, ahead } = *band;
    // SAFETY: passed on from the caller. A pair of numbers is moved as one element.
    unsafe {
        if L::GROUP == 1 {
            return transpose(simd, rows, len, to, width, ahead);
        }
        transpose(simd, pairs(rows), len / 2, to.cast(), width, ahead);
        if len % 2 == 1 {
            for (lane, row) in rows.iter().enumerate() {
                let last = to.add((len / 2 * width + lane) * 2);
                *last = *row.add(len - 1);
                *last.add(1) = L::Number::zeroed();
            }
        }
    }
}

/// The same addresses, each of a pair.
fn pairs<N>(rows: &[*const N]) -> &[*const [N; 2]] {
    // SAFETY: pointers to different types are alike, and nothing is read through them here.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len()) }
}

/// Puts the rows of a band into the lanes of `to`, a group of rows in a step.
///
/// # Safety
/// Rows and panels are valid, and the machine has `simd`.
pub(super) unsafe fn put_steps<L: Lanes>(
    simd: Simd,
    band: &Band<L::Number>,
    to: &Panels<L::Number>,
) {
    // SAFETY: the caller vouches for the numbers of each row.
    let numbers = |row: *const L::Number| unsafe { std::slice::from_raw_parts(row, band.len) };
    for (step, group) in band.rows.chunks(L::GROUP).enumerate() {
        for row in group {
            prefetch(row.wrapping_byte_add(band.ahead).cast(), band.len * size_of::<L::Number>());
        }
        let start = to.start.wrapping_add(step * to.width * L::GROUP);
        let to = Panels { start, ..*to };
        match group {
            [row] if L::GROUP == 1 => spread(simd, numbers(*row), &to),
            [first, second] => interleave(simd, numbers(*first), numbers(*second), &to),
            [last] => pair_with_zeros(numbers(*last), &to),
            _ => unreachable!("groups of one or two"),
        }
    }
}

/// Asks memory for `bytes` bytes at `address`, which may be any.
pub(super) fn prefetch(address: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch of any address is allowed and changes no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, bytes);
}

per_simd! {
    /// Writes one step of all panels: `row` holds the numbers of their lanes.
    fn spread<E: Element>(row: &[E], to: &Panels<E>) {
        for (panel, row) in row.chunks(to.width).enumerate() {
            // SAFETY: the caller vouches for the panels.
            let lanes = unsafe {
                std::slice::from_raw_parts_mut(to.start.add(panel * to.pitch), row.len())
            };
            let (wholes, rest) = row.as_chunks::<8>();
            let (to_wholes, to_rest) = lanes.as_chunks_mut::<8>();
            for (to, from) in to_wholes.iter_mut().zip(wholes) {
                *to = *from;
            }
            for (to, from) in to_rest.iter_mut().zip(rest) {
                *to = *from;
            }
        }
    }
}

fn interleave<E: Element>(simd: Simd, first: &[E], second: &[E], to: &Panels<E>) {
    #[cfg(target_arch = "x86_64")]
    if simd >= Simd::Avx512 && size_of::<E>() == size_of::<u16>() {
        // SAFETY: a device has AVX-512 only where the machine has it, and the caller vouches for
        // the panels; any two bytes may be moved as a u16.
        return unsafe { interleave_avx512(first, second, to) };
    }
    let _ = simd;
    let rows = first.chunks(to.width).zip(second.chunks(to.width));
    for (panel, (first, second)) in rows.enumerate() {
        for (lane, pair) in first.iter().zip(second).enumerate() {
            // SAFETY: the caller vouches for the panels.
            unsafe {
                let start = to.start.add(panel * to.pitch).cast::<[E; 2]>();
                *start.add(lane) = [*pair.0, *pair.1];
            }
        }
    }
}

/// Two rows of 32 numbers of two bytes become 32 pairs by two permutations.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave_avx512<E>(first: &[E], second: &[E], to: &Panels<E>) {
    use std::arch::x86_64::*;
    // Pair i takes number i of the first row and number i of the second, whose indices begin at 32.
    let low = _mm512_add_epi32(
        _mm512_set1_epi32(32 << 16),
        _mm512_mullo_epi32(_mm512_set1_epi32(0x1_0001), counting()),
    );
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(0x10_0010));
    let rows = first.chunks(to.width).zip(second.chunks(to.width));
    for (panel, (first, second)) in rows.enumerate() {
        let start = to.start.wrapping_add(panel * to.pitch).cast::<i32>();
        for lane in (0..first.len()).step_by(32) {
            let count = (first.len() - lane).min(32);
            let there = u32::MAX >> (32 - count);
            // SAFETY: the masks leave out what is beyond the rows, and beyond the lanes.
            unsafe {
                let a = _mm512_maskz_loadu_epi16(there, first.as_ptr().add(lane).cast());
                let b = _mm512_maskz_loadu_epi16(there, second.as_ptr().add(lane).cast());
                let to = start.add(lane);
                let pairs = _mm512_permutex2var_epi16(a, low, b);
                _mm512_mask_storeu_epi32(to, there as u16, pairs);
                if count > 16 {
                    let pairs = _mm512_permutex2var_epi16(a, high, b);
                    _mm512_mask_storeu_epi32(to.add(16), (there >> 16) as u16, pairs);
                }
            }
        }
    }
}

/// 0 to 15.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn counting() -> std::arch::x86_64::__m512i {
    std::arch::x86_64::_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
}

/// The last row of an odd K.
fn pair_with_zeros<E: Element>(row: &[E], to: &Panels<E>) {
    for (panel, row) in row.chunks(to.width).enumerate() {
        for (lane, number) in row.iter().enumerate() {
            // SAFETY: the caller vouches for the panels.
            unsafe {
                let start = to.start.add(panel * to.pitch).cast::<[E; 2]>();
                *start.add(lane) = [*number, E::zeroed()];
            }
        }
    }
}
