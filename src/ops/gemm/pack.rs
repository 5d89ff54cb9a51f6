//! Operands into panels, the order in which tiles read them; see [`super::tile`].
//!
//! A lane of a panel is a row of the result on the left, a column on the right. K runs along the
//! rows of the stored matrix or across them. Rows are read in place where they hold numbers of the
//! panel's type, otherwise they are widened or decoded into a small buffer first. Four-bit rows are
//! decoded in whole blocks, because a part of a block takes as long as a whole one.

use std::ops::Range;

use bytemuck::Zeroable;
use half::bf16;

use super::tile::Lanes;
use super::transpose::{self, transpose};
use super::{Content, Dense, Right, Weight};
use crate::device::{Address, Dtype, Simd};
use crate::ops::element::{Element, Real, per_simd};
use crate::ops::{slice, slice_mut};
use crate::quant::{self, BLOCK, NESTED_BLOCK};

/// Row buffers that packing needs: for the rows of a transposition, and for one more.
pub(super) const BUFFERS: usize = transpose::ROWS + 1;

/// Numbers that a row buffer holds beyond those of the panel: the rest of the first block and of the
/// last one.
pub(super) const SLACK: usize = 2 * BLOCK;

/// How the K of an operand lies in the stored matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// A lane is a row: K runs along it.
    Along,
    /// A lane is a column: K runs across the rows.
    Across,
}

/// An operand that is brought into panels.
pub(super) struct Packing<'a> {
    pub(super) source: Source<'a>,
    pub(super) direction: Direction,
    /// The type that four-bit weights are rounded to.
    pub(super) rounding: Dtype,
    pub(super) simd: Simd,
}

/// Where numbers come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Dense(&'a Dense),
    FourBit(quant::Kind, &'a Weight),
}

impl<'a> From<&'a Right> for Source<'a> {
    fn from(right: &'a Right) -> Self {
        match right.content {
            Content::Dense => Self::Dense(&right.dense),
            Content::Nf4 => Self::FourBit(quant::Kind::Nf4, &right.weight),
            Content::Fp4 => Self::FourBit(quant::Kind::Fp4, &right.weight),
        }
    }
}

/// Panels side by side.
pub(super) struct Panels<N> {
    pub(super) start: *mut N,
    /// Lanes of each.
    pub(super) width: usize,
    /// Numbers from one to the next.
    pub(super) pitch: usize,
}

/// [`BUFFERS`] row buffers, `pitch` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    pub(super) start: Address,
    pub(super) pitch: usize,
}

impl Buffers {
    fn row(self, index: usize) -> Address {
        self.start.offset(index * self.pitch)
    }

    /// Where numbers wait that are widened next.
    fn staging(self) -> Address {
        self.row(BUFFERS - 1)
    }
}

impl Packing<'_> {
    /// Brings `lanes` into panels, over `depth` of K. Lanes beyond the last become zero, and so does
    /// what is missing of the last group of K.
    ///
    /// # Safety
    /// The operand has such lanes and such a depth, and nobody else touches the panels and the
    /// buffers, which hold `depth` (or `lanes`, for [`Direction::Across`]) and [`SLACK`] numbers.
    pub(super) unsafe fn pack<L: Lanes>(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        to: &Panels<L::Number>,
        buffers: Buffers,
    ) {
        if !lanes.len().is_multiple_of(to.width) {
            let numbers = depth.len().div_ceil(L::GROUP) * L::GROUP * to.width;
            let last = lanes.len() / to.width * to.pitch;
            // SAFETY: the last panel is within what the caller vouches for.
            unsafe { to.start.add(last).write_bytes(0, numbers) };
        }
        // SAFETY: passed on from the caller.
        unsafe {
            match self.direction {
                Direction::Along => self.along::<L>(lanes, depth, to, buffers),
                Direction::Across => self.across::<L>(lanes, depth, to, buffers),
            }
        }
    }

    unsafe fn along<L: Lanes>(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        to: &Panels<L::Number>,
        buffers: Buffers,
    ) {
        for (panel, first) in lanes.clone().step_by(to.width).enumerate() {
            let end = lanes.end.min(first + to.width);
            for group in (first..end).step_by(transpose::ROWS) {
                let count = (end - group).min(transpose::ROWS);
                let mut rows = [std::ptr::null(); transpose::ROWS];
                // SAFETY: the caller vouches for the rows, and for the panel `panel`.
                unsafe {
                    for (r, row) in rows[..count].iter_mut().enumerate() {
                        *row = self.row(group + r, depth.clone(), buffers, r);
                    }
                    let start = panel * to.pitch + (group - first) * L::GROUP;
                    let start = to.start.add(start);
                    self.place::<L>(&rows[..count], depth.len(), start, to.width);
                }
            }
        }
    }

    /// Puts `len` numbers of each of `rows` into the lanes from `to` on.
    unsafe fn place<L: Lanes>(
        &self,
        rows: &[*const L::Number],
        len: usize,
        to: *mut L::Number,
        width: usize,
    ) {
        // SAFETY: the caller vouches for rows and lanes. A pair of numbers is moved as one element.
        unsafe {
            if L::GROUP == 1 {
                return transpose(self.simd, rows, len, to, width);
            }
            let mut pairs = [std::ptr::null::<[L::Number; 2]>(); transpose::ROWS];
            for (pair, row) in pairs.iter_mut().zip(rows) {
                *pair = row.cast();
            }
            let pairs = &pairs[..rows.len()];
            transpose(self.simd, pairs, len / 2, to.cast(), width);
            if len % 2 == 1 {
                for (lane, row) in rows.iter().enumerate() {
                    let last = to.add((len / 2 * width + lane) * 2);
                    *last = *row.add(len - 1);
                    *last.add(1) = L::Number::zeroed();
                }
            }
        }
    }

    unsafe fn across<L: Lanes>(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        to: &Panels<L::Number>,
        buffers: Buffers,
    ) {
        for (step, k) in depth.clone().step_by(L::GROUP).enumerate() {
            // SAFETY: the caller vouches for the rows `depth`, the panels and the buffers.
            unsafe {
                let first = self.row::<L::Number>(k, lanes.clone(), buffers, 0);
                let first = std::slice::from_raw_parts(first, lanes.len());
                let to = Panels { start: to.start.add(step * to.width * L::GROUP), ..*to };
                if L::GROUP == 1 {
                    spread(self.simd, first, &to);
                } else {
                    let second = if k + 1 < depth.end {
                        self.row(k + 1, lanes.clone(), buffers, 1)
                    } else {
                        zeros(buffers.row(1), lanes.len())
                    };
                    let second = std::slice::from_raw_parts(second, lanes.len());
                    interleave(self.simd, first, second, &to);
                }
            }
        }
    }

    /// The address of the numbers `range` of row `row`, in place or in the buffer `index`.
    #[inline]
    unsafe fn row<N: Element>(
        &self,
        row: usize,
        range: Range<usize>,
        buffers: Buffers,
        index: usize,
    ) -> *const N {
        let (to, len) = (buffers.row(index), range.len());
        // SAFETY: passed on from the caller.
        unsafe {
            match self.source {
                Source::Dense(dense) => {
                    let start = row * dense.stride as usize + range.start;
                    let from = dense.address.offset(start * dense.dtype.size());
                    self.widened(from, dense.dtype, len, to)
                }
                Source::FourBit(kind, weight) => {
                    let start = row * weight.cols as usize + range.start;
                    let whole = whole_blocks(start, len, weight.values as usize);
                    let skip = start - whole.start;
                    if self.rounding == N::DTYPE {
                        weight.decode(kind, whole, self.rounding, to);
                        return to.cast::<N>().add(skip);
                    }
                    weight.decode(kind, whole, self.rounding, buffers.staging());
                    let from = buffers.staging().offset(skip * self.rounding.size());
                    self.widened(from, self.rounding, len, to)
                }
            }
        }
    }

    /// `len` numbers of type `dtype` at `from`, in place or as `N` at `to`.
    unsafe fn widened<N: Element>(
        &self,
        from: Address,
        dtype: Dtype,
        len: usize,
        to: Address,
    ) -> *const N {
        if dtype == N::DTYPE {
            return from.cast();
        }
        // SAFETY: passed on from the caller.
        unsafe { widen(self.simd, from, dtype, slice_mut::<N>(to, 0, len)) };
        to.cast()
    }
}

/// The values of all blocks that `len` values from `start` on touch.
fn whole_blocks(start: usize, len: usize, values: usize) -> Range<usize> {
    start / BLOCK * BLOCK..(start + len).next_multiple_of(BLOCK).min(values)
}

impl Weight {
    /// Writes `values`, which begin with a block, to `to` as `dtype`: bf16 or f32.
    #[inline]
    unsafe fn decode(&self, kind: quant::Kind, values: Range<usize>, dtype: Dtype, to: Address) {
        let (start, len) = (values.start, values.len());
        // SAFETY: the caller vouches for the buffers of the weight, whose lengths were checked, and
        // for `to`.
        unsafe {
            let codes = std::slice::from_raw_parts(
                self.codes.cast::<u8>(),
                quant::code_bytes(self.values as usize),
            );
            let scale = |block| self.scale(block);
            if dtype == Dtype::Bf16 {
                quant::decode_bf16(kind, codes, scale, start, slice_mut::<bf16>(to, 0, len));
            } else {
                quant::decode_f32(kind, codes, scale, start, slice_mut::<f32>(to, 0, len));
            }
        }
    }

    /// # Safety
    /// The weight has such a block.
    #[inline(always)]
    unsafe fn scale(&self, block: usize) -> f32 {
        // SAFETY: the caller vouches for the block, and a map has 256 entries.
        unsafe {
            if self.nested_absmax.is_null() {
                return *self.absmax.cast::<f32>().add(block);
            }
            let code = *self.absmax.cast::<u8>().add(block);
            let value = *self.map.cast::<f32>().add(usize::from(code));
            value * *self.nested_absmax.cast::<f32>().add(block / NESTED_BLOCK) + self.offset
        }
    }
}

/// `len` zeros at `to`.
unsafe fn zeros<N: Element>(to: Address, len: usize) -> *const N {
    // SAFETY: the caller vouches for `len` numbers.
    unsafe { slice_mut::<N>(to, 0, len) }.fill(N::zeroed());
    to.cast()
}

per_simd! {
    fn widen<E: Element>(from: Address, dtype: Dtype, to: &mut [E]) {
        // SAFETY: the caller vouches for as many numbers at `from` as `to` has.
        unsafe {
            match dtype {
                Dtype::Bf16 => convert(slice::<bf16>(from, 0, to.len()), to),
                Dtype::F32 => convert(slice::<f32>(from, 0, to.len()), to),
                Dtype::F64 => convert(slice::<f64>(from, 0, to.len()), to),
            }
        }
    }
}

#[inline(always)]
fn convert<A: Element, B: Element>(from: &[A], to: &mut [B]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = B::from_real(Real::from_f64(from.real().to_f64()));
    }
}

per_simd! {
    /// Writes one step of all panels: `row` holds the numbers of their lanes.
    fn spread<E: Element>(row: &[E], to: &Panels<E>) {
        for (panel, row) in row.chunks(to.width).enumerate() {
            // SAFETY: the caller vouches for the panels.
            unsafe {
                let lanes = to.start.add(panel * to.pitch);
                lanes.copy_from_nonoverlapping(row.as_ptr(), row.len());
            }
        }
    }
}

per_simd! {
    /// The same of two values of K to a lane.
    fn interleave<E: Element>(first: &[E], second: &[E], to: &Panels<E>) {
        let rows = first.chunks(to.width).zip(second.chunks(to.width));
        for (panel, (first, second)) in rows.enumerate() {
            // SAFETY: the caller vouches for the panels.
            let lanes = unsafe {
                let start = to.start.add(panel * to.pitch).cast::<[E; 2]>();
                std::slice::from_raw_parts_mut(start, first.len())
            };
            for ((lane, a), b) in lanes.iter_mut().zip(first).zip(second) {
                *lane = [*a, *b];
            }
        }
    }
}
