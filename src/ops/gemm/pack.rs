//! Operands into panels, the order in which tiles read them; see [`super::tile`].
//!
//! A lane of a panel is a row of the result on the left, a column on the right. K runs along the
//! rows of the stored matrix or across them. Either way a band of stored rows is brought at a time,
//! a chunk of each: read in place where it holds numbers of the panel's type, otherwise widened or
//! decoded into a small buffer that stays in the L1 cache. Four-bit rows are decoded in whole blocks,
//! because a part of a block takes as long as a whole one. While a band goes into its panel
//! (`gemm/panel.rs`, `gemm/transpose.rs`), the next one is on its way from memory.

use std::ops::Range;

use half::bf16;

use super::panel::{Band, Panels, prefetch, put_lanes, put_steps};
use super::tile::Lanes;
use super::transpose;
use super::{Content, Dense, Right, Weight};
use crate::device::{Address, Dtype, Simd};
use crate::ops::element::{Element, Real, per_simd};
use crate::ops::{slice, slice_mut};
use crate::quant::{self, BLOCK, NESTED_BLOCK};

/// Rows of the stored matrix that are brought into panels together.
pub(super) const BAND: usize = transpose::ROWS;

/// Numbers of a row that are brought at a time: those of a band stay in the L1 cache between decoding
/// and their panel. Lanes that are columns are never more than this.
pub(super) const CHUNK: usize = 256;

/// Row buffers that packing needs: for the rows of a band, and for one more.
pub(super) const BUFFERS: usize = BAND + 1;

/// Numbers that a row buffer holds: a chunk, and the rest of the first block and of the last one.
pub(super) const BUFFER: usize = CHUNK + 2 * BLOCK;

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
    /// The operand has such lanes (at most [`CHUNK`] for [`Direction::Across`]) and such a depth, and
    /// nobody else touches the panels and the buffers, which hold [`BUFFER`] numbers.
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
        let width = to.width;
        for (panel, first) in lanes.clone().step_by(width).enumerate() {
            let end = lanes.end.min(first + width);
            for group in (first..end).step_by(BAND) {
                let rows = group..end.min(group + BAND);
                for start in depth.clone().step_by(CHUNK) {
                    let chunk = start..depth.end.min(start + CHUNK);
                    let next = match chunk.end < depth.end {
                        true => (group, chunk.end),
                        false => (rows.end, depth.start),
                    };
                    let lane = (start - depth.start) * width + (group - first) * L::GROUP;
                    // SAFETY: the caller vouches for the rows, and for the panel `panel`.
                    unsafe {
                        let mut addresses = [std::ptr::null(); BAND];
                        let band = self.band(rows.clone(), chunk, next, buffers, &mut addresses);
                        let to = to.start.add(panel * to.pitch + lane);
                        put_lanes::<L>(self.simd, &band, to, width);
                    }
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
        for start in depth.clone().step_by(BAND) {
            let rows = start..depth.end.min(start + BAND);
            let next = (rows.end, lanes.start);
            // SAFETY: the caller vouches for the rows `depth`, the panels and the buffers.
            unsafe {
                let to = Panels { start: to.start.add((start - depth.start) * to.width), ..*to };
                let mut addresses = [std::ptr::null(); BAND];
                let band = self.band(rows, lanes.clone(), next, buffers, &mut addresses);
                put_steps::<L>(self.simd, &band, &to);
            }
        }
    }

    /// The numbers `range` of the stored rows `rows`, in place or in the buffers. The next band
    /// begins at row and number `next`: what of it is not read in place is asked for from memory.
    unsafe fn band<'b, N: Element>(
        &self,
        rows: Range<usize>,
        range: Range<usize>,
        next: (usize, usize),
        buffers: Buffers,
        addresses: &'b mut [*const N; BAND],
    ) -> Band<'b, N> {
        let addresses = &mut addresses[..rows.len()];
        let (here, there) = (self.stored(rows.start, range.start), self.stored(next.0, next.1));
        for (r, (address, row)) in addresses.iter_mut().zip(rows).enumerate() {
            if let Source::FourBit(..) = self.source {
                let next = self.stored(next.0 + r, next.1);
                prefetch(next.cast(), quant::code_bytes(range.len()));
            }
            // SAFETY: passed on from the caller.
            *address = unsafe { self.row(row, range.clone(), buffers, r) };
        }
        let ahead = there.cast::<u8>().addr().wrapping_sub(here.cast::<u8>().addr());
        Band { rows: addresses, len: range.len(), ahead }
    }

    /// Where number `number` of row `row` is stored; neither need exist.
    fn stored(&self, row: usize, number: usize) -> Address {
        match self.source {
            Source::Dense(dense) => {
                let index = row * dense.stride as usize + number;
                dense.address.offset(index * dense.dtype.size())
            }
            Source::FourBit(_, weight) => {
                weight.codes.offset((row * weight.cols as usize + number) / 2)
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
