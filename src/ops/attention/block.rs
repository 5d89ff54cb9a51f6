//! What forward and backward share: a block of queries against a block of keys.
//!
//! Scores are kept transposed, one row for each key and one lane for each query, so that whatever
//! is done for each query (maximum, sum, exponential) is done to whole vectors of queries.

use super::product::{LANES, Product};
use super::{Params, Segment};
use crate::device::Address;
use crate::ops::{Element, Real, Write, slice, slice_mut};

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
    #[inline(always)]
    pub(super) fn lanes(self) -> usize {
        self.count.next_multiple_of(LANES)
    }

    /// The blocks of keys that some query of the block sees: position of the first key, and count.
    #[inline(always)]
    pub(super) fn key_blocks(self) -> impl Iterator<Item = (usize, usize)> {
        let end = self.position + self.count;
        let first_seen = (self.position + 1).saturating_sub(self.window);
        (first_seen / KEYS * KEYS..end)
            .step_by(KEYS)
            .map(move |key| (key, KEYS.min(end - key)))
    }

    /// Puts `value` into the lanes of the queries that do not see the key.
    #[inline(always)]
    pub(super) fn mask<R: Real>(self, key: usize, row: &mut [R], value: R) {
        let lanes = row.len();
        let first = key.saturating_sub(self.position).min(lanes);
        let end = key
            .saturating_add(self.window)
            .saturating_sub(self.position)
            .min(lanes);
        row[..first].fill(value);
        row[end.max(first)..].fill(value);
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
        let start = row * self.stride as usize + self.head * self.head_dim;
        // SAFETY: the caller vouches for it.
        unsafe { slice(self.address, start, self.head_dim) }
    }

    /// Widens `count` rows from row `first` on, times `factor`, into rows of [`width`] numbers.
    ///
    /// # Safety
    /// As for [`row`](Self::row).
    #[inline(always)]
    pub(super) unsafe fn load<E: Element>(
        self,
        first: usize,
        count: usize,
        factor: E::Real,
        out: &mut [E::Real],
    ) {
        for (i, out) in out
            .chunks_exact_mut(width(self.head_dim))
            .take(count)
            .enumerate()
        {
            // SAFETY: the caller vouches for all rows.
            let row = unsafe { self.row::<E>(first + i) };
            let (numbers, rest) = out.split_at_mut(self.head_dim);
            for (out, x) in numbers.iter_mut().zip(row) {
                *out = x.real() * factor;
            }
            rest.fill(E::Real::ZERO);
        }
    }
}

/// Rows of heads turned into one row of lanes for each of the D numbers; lanes without a row get 0.
#[inline(always)]
pub(super) fn transpose<R: Real>(rows: &[R], count: usize, head_dim: usize, out: &mut [R]) {
    for (d, out) in out.chunks_exact_mut(QUERIES).take(head_dim).enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            *out = if i < count {
                rows[i * width(head_dim) + d]
            } else {
                R::ZERO
            };
        }
    }
}

/// out [keys, lanes] = rows [keys, D] · lanes [D, lanes]: q·k of every pair, or dO·v.
#[inline(always)]
pub(super) fn inner<R: Real>(
    rows: &[R],
    lanes: &[R],
    head_dim: usize,
    keys: usize,
    queries: Queries,
    out: &mut [R],
) {
    let product = Product {
        a: rows,
        a_strides: [width(head_dim), 1],
        b: lanes,
        b_stride: QUERIES,
        rows: keys,
        cols: queries.lanes(),
        depth: head_dim,
    };
    product.put(Write::Set, out, QUERIES);
}

/// Caps the scores of one key.
#[inline(always)]
pub(super) fn cap<R: Real>(row: &mut [R], soft_cap: f32) {
    if soft_cap != 0.0 {
        let cap = R::from_f64(f64::from(soft_cap));
        for s in row {
            *s = cap * (*s / cap).tanh();
        }
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
    pub(super) unsafe fn take<'a, R: Real>(&mut self, count: usize) -> &'a mut [R] {
        let start = self.address;
        self.address = start.offset(count * size_of::<R>());
        // SAFETY: the caller vouches for it.
        unsafe { slice_mut(start, 0, count) }
    }
}
