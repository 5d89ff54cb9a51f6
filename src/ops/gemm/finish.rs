//! From sums to the result: α, bias, residual, and one rounding.

use std::ops::Range;

use half::bf16;

use super::panel::prefetch;
use super::{Dense, Params};
use crate::device::Dtype;
use crate::ops::element::{Element, Real, per_simd};
use crate::ops::{slice, slice_mut};

/// Rows and columns whose sums are complete, as the product is cut.
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// Sums from one row to the next.
    pub(super) stride: usize,
}

/// Most rows of a part, and the most sums of a turned one that are written at a time.
const MOST_ROWS: usize = 16;

impl Part {
    /// Asks memory for what [`finish`] will write and what it will add.
    pub(super) fn prefetch(&self, p: &Params) {
        for matrix in [&p.out, &p.residual] {
            if matrix.address.is_null() {
                continue;
            }
            for row in self.rows.clone() {
                let start = row * matrix.stride as usize + self.columns.start;
                let address = matrix.address.offset(start * matrix.dtype.size());
                prefetch(address.cast(), self.columns.len() * matrix.dtype.size());
            }
        }
    }
}

per_simd! {
    /// Turns the sums of a part into numbers of the result.
    pub(super) fn finish<S: Real>(p: &Params, part: &Part, sums: &mut [S]) {
        for (row, sums) in part.rows.clone().zip(sums.chunks_exact_mut(part.stride)) {
            finish_row(p, row, part.columns.start, &mut sums[..part.columns.len()]);
        }
    }
}

per_simd! {
    /// The same where the product was turned around: a column of the part is a piece of a row.
    pub(super) fn finish_turned<S: Real>(p: &Params, part: &Part, sums: &mut [S]) {
        let mut numbers = [S::ZERO; MOST_ROWS];
        let numbers = &mut numbers[..part.rows.len()];
        for (i, column) in part.columns.clone().enumerate() {
            for (number, sums) in numbers.iter_mut().zip(sums.chunks_exact(part.stride)) {
                *number = sums[i];
            }
            finish_row(p, column, part.rows.start, numbers);
        }
    }
}

/// Scales `sums`, adds bias and residual, and writes them from `column` of row `row` on.
#[inline(always)]
fn finish_row<S: Real>(p: &Params, row: usize, column: usize, sums: &mut [S]) {
    let alpha = S::from_f64(f64::from(p.alpha));
    for sum in sums.iter_mut() {
        *sum *= alpha;
    }
    // SAFETY: the caller vouches for bias, residual and result, and owns the part.
    unsafe {
        if !p.bias.is_null() {
            add(slice::<f32>(p.bias, column, sums.len()), sums);
        }
        if !p.residual.address.is_null() {
            add_residual(&p.residual, row, column, sums);
        }
        write(p, row, column, sums);
    }
}

#[inline(always)]
unsafe fn add_residual<S: Real>(residual: &Dense, row: usize, column: usize, sums: &mut [S]) {
    let (address, start) = (residual.address, row * residual.stride as usize + column);
    // SAFETY: passed on from the caller.
    unsafe {
        match residual.dtype {
            Dtype::Bf16 => add(slice::<bf16>(address, start, sums.len()), sums),
            Dtype::F32 => add(slice::<f32>(address, start, sums.len()), sums),
            Dtype::F64 => add(slice::<f64>(address, start, sums.len()), sums),
        }
    }
}

#[inline(always)]
fn add<S: Real, E: Element>(numbers: &[E], sums: &mut [S]) {
    for (sum, number) in sums.iter_mut().zip(numbers) {
        *sum += S::from_f64(number.real().to_f64());
    }
}

#[inline(always)]
unsafe fn write<S: Real>(p: &Params, row: usize, column: usize, sums: &[S]) {
    let (address, start) = (p.out.address, row * p.out.stride as usize + column);
    // SAFETY: passed on from the caller.
    unsafe {
        match p.out.dtype {
            Dtype::Bf16 => put(p, sums, slice_mut::<bf16>(address, start, sums.len())),
            Dtype::F32 => put(p, sums, slice_mut::<f32>(address, start, sums.len())),
            Dtype::F64 => put(p, sums, slice_mut::<f64>(address, start, sums.len())),
        }
    }
}

#[inline(always)]
fn put<S: Real, E: Element>(p: &Params, sums: &[S], out: &mut [E]) {
    for (place, sum) in out.iter_mut().zip(sums) {
        p.write.put(place, E::Real::from_f64(sum.to_f64()));
    }
}
