//! What forward and backward share: a block of queries against a block of keys.
//!
//! Scores are kept transposed, one row for each key and one lane for each query, so that whatever
//! is done for each query (maximum, sum, exponential) is done to whole vectors of queries. In which
//! form blocks go into products is the matter of `math.rs`.

use bytemuck::Pod;

use super::math::Math;
use super::product::{Factor, LANES, Product};
use super::{Params, Segment};
use crate::device::{Address, Simd};
use crate::ops::element::per_simd;
use crate::ops::{Element, Real, slice, slice_mut};

/// Queries of a block: lanes of a row of scores.
pub(super) const QUERIES: usize = 64;
/// Keys of a block.
pub(super) const KEYS: usize = 64;

/// Distance between rows of a block of heads: D, and then nothing up to whole vectors.
pub(super) const fn width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// One block of queries of one head.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    /// Row of the first among all queries.
    pub(super) row: usize,
    /// Count, at most [`QUERIES`].
    pub(super) count: usize,
    /// Key position of the first within the segment.
    pub(super) position: usize,
    /// A query sees keys less than this far back.
    window: usize,
}

impl Queries {
    /// The queries of `segment` from the query `first` on.
    pub(super) fn of(p: &Params, segment: Segment, first: usize) -> Self {
        Self {
            row: segment.q_start as usize + first,
            count: QUERIES.min(segment.q_len as usize - first),
            position: (segment.k_len - segment.q_len) as usize + first,
            window: usize::try_from(p.window).unwrap_or(usize::MAX),
        }
    }

    /// Count of lanes that are computed.
    pub(super) fn lanes(self) -> usize {
        self.count.next_multiple_of(LANES)
    }

    /// The blocks of keys that some query of the block sees: position of the first key, and count.
    pub(super) fn key_blocks(self) -> impl Iterator<Item = (usize, usize)> {
        let end = self.position + self.count;
        let first_seen = (self.position + 1).saturating_sub(self.window);
        (first_seen / KEYS * KEYS..end).step_by(KEYS).map(move |key| (key, KEYS.min(end - key)))
    }

    /// Puts `value` where a query does not see a key, in the scores of the keys from `first` on.
    pub(super) fn mask<R: Real>(self, first: usize, scores: &mut [R], value: R) {
        for (j, row) in scores.chunks_exact_mut(QUERIES).enumerate() {
            let key = first + j;
            let start = key.saturating_sub(self.position).min(QUERIES);
            let end = key.saturating_add(self.window).saturating_sub(self.position).min(QUERIES);
            row[..start].fill(value);
            row[end.max(start)..].fill(value);
        }
    }
}

/// Rows of one head of a matrix in memory.
#[derive(Clone, Copy)]
pub(super) struct HeadRows {
    pub(super) address: Address,
    pub(super) stride: u64,
    pub(super) head: usize,
    pub(super) head_dim: usize,
}

impl HeadRows {
    /// The D numbers of row `row`.
    ///
    /// # Safety
    /// The row must be valid for reads of `E` and not be written meanwhile.
    #[inline(always)]
    pub(super) unsafe fn row<'a, E: Element>(self, row: usize) -> &'a [E] {
        // SAFETY: the caller vouches for it.
        unsafe { slice(self.address, self.start(row), self.head_dim) }
    }

    /// The D numbers of row `row`, for writing.
    ///
    /// # Safety
    /// The row must be valid for writes of `E` and not be touched otherwise meanwhile.
    #[inline(always)]
    pub(super) unsafe fn row_mut<'a, E: Element>(self, row: usize) -> &'a mut [E] {
        // SAFETY: the caller vouches for it.
        unsafe { slice_mut(self.address, self.start(row), self.head_dim) }
    }

    #[inline(always)]
    fn start(self, row: usize) -> usize {
        row * self.stride as usize + self.head * self.head_dim
    }
}

/// A left factor of `count` rows of [`width`] numbers, `groups` to a row, turned into the right
/// factor of as many lanes; lanes without a row get 0.
pub(super) fn transpose<F: Factor>(rows: &[F], count: usize, groups: usize, out: &mut [F]) {
    for (d, out) in out.chunks_exact_mut(QUERIES).take(groups).enumerate() {
        let (lanes, rest) = out.split_at_mut(count);
        for (lane, row) in lanes.iter_mut().zip(rows.chunks_exact(groups)) {
            *lane = row[d];
        }
        rest.fill(F::zeroed());
    }
}

per_simd! {
    /// Scales and caps scores.
    pub(super) fn cap<R: Real, const FUSED: bool>(scores: &mut [R], scale: R, cap: R) {
        for s in scores {
            *s = cap * (*s * scale / cap).tanh::<FUSED>();
        }
    }
}

/// The soft cap as a number to compute with.
pub(super) fn soft_cap<R: Real>(p: &Params) -> Option<R> {
    (p.soft_cap != 0.0).then(|| R::from_f64(f64::from(p.soft_cap)))
}

/// The factor of q·k as a number to compute with.
pub(super) fn scale<R: Real>(p: &Params) -> R {
    R::from_f64(f64::from(p.scale))
}

/// rows [keys, D] · lanes [D, lanes]: q·k of every pair, or dO·v.
pub(super) fn inner<'a, M: Math>(
    simd: Simd,
    rows: &'a [M::Factor],
    lanes: &'a [M::Factor],
    head_dim: usize,
    keys: usize,
    queries: Queries,
) -> Product<'a, M::Factor> {
    Product {
        simd,
        a: rows,
        a_strides: [width(head_dim) / M::GROUP, 1],
        b: lanes,
        b_stride: QUERIES,
        rows: keys,
        cols: queries.lanes(),
        depth: head_dim.div_ceil(M::GROUP),
    }
}

/// to_queries [queries, keys] · rows [keys, D]: Pᵀ·V, or dS·K.
pub(super) fn outer<'a, M: Math>(
    simd: Simd,
    to_queries: &'a [M::Factor],
    rows: &'a [M::Factor],
    head_dim: usize,
    keys: usize,
    queries: Queries,
) -> Product<'a, M::Factor> {
    Product {
        simd,
        a: to_queries,
        a_strides: [1, QUERIES],
        b: rows,
        b_stride: width(head_dim),
        rows: queries.count,
        cols: width(head_dim),
        depth: keys.div_ceil(M::GROUP),
    }
}

/// Cuts the scratch of a thread into arrays.
pub(super) struct Carver {
    address: Address,
}

impl Carver {
    pub(super) fn new(address: Address) -> Self {
        Self { address }
    }

    /// The next `count` numbers.
    ///
    /// # Safety
    /// The scratch must be the caller's alone and hold all that is taken.
    pub(super) unsafe fn take<'a, T: Pod>(&mut self, count: usize) -> &'a mut [T] {
        let start = self.address;
        self.address = start.offset(count * size_of::<T>());
        // SAFETY: the caller vouches for it.
        unsafe { slice_mut(start, 0, count) }
    }
}
