//! Small matrix products: the inner loops of attention, between blocks that lie in the cache.

use crate::ops::{Real, Write};

/// The product of a block a [rows, depth] and a block b [depth, cols].
#[derive(Clone, Copy)]
pub(super) struct Product<'a, R> {
    /// Left factor.
    pub(super) a: &'a [R],
    /// Distances in `a` from a row to the next and from a column to the next.
    pub(super) a_strides: [usize; 2],
    /// Right factor, row-major.
    pub(super) b: &'a [R],
    /// Distance in `b` from a row to the next.
    pub(super) b_stride: usize,
    /// Rows of the product.
    pub(super) rows: usize,
    /// Columns of the product, a multiple of [`LANES`].
    pub(super) cols: usize,
    /// Columns of `a` and rows of `b`.
    pub(super) depth: usize,
}

/// Columns come in multiples of this.
pub(super) const LANES: usize = 16;

/// Rows whose sums are held in registers at the same time.
const ROWS: usize = 8;

impl<R: Real> Product<'_, R> {
    /// c [rows, cols] (=|+=) a·b, every number summed in the order of the depth.
    #[inline(always)]
    pub(super) fn put(self, write: Write, c: &mut [R], c_stride: usize) {
        self.check(c, c_stride);
        for row in (0..self.rows).step_by(ROWS) {
            let mut col = 0;
            while col + 2 * LANES <= self.cols {
                self.tile::<{ 2 * LANES }>(row, col, write, c, c_stride);
                col += 2 * LANES;
            }
            if col < self.cols {
                self.tile::<LANES>(row, col, write, c, c_stride);
            }
        }
    }

    #[inline(always)]
    fn check(&self, c: &[R], c_stride: usize) {
        let last = |count: usize, stride: usize| count.saturating_sub(1) * stride;
        let a_end = last(self.rows, self.a_strides[0]) + last(self.depth, self.a_strides[1]);
        assert!(
            self.rows == 0 || self.depth == 0 || a_end < self.a.len(),
            "a ends at {a_end}"
        );
        let ends = [
            (last(self.depth, self.b_stride) + self.cols, self.b.len()),
            (last(self.rows, c_stride) + self.cols, c.len()),
        ];
        assert!(
            self.cols % LANES == 0 && ends.iter().all(|(end, len)| end <= len),
            "{ends:?}"
        );
    }

    /// The rows from `row` on, at most [`ROWS`], and the `COLS` columns from `col` on. Rows that
    /// are not there are computed as copies of the last one and not stored.
    #[inline(always)]
    fn tile<const COLS: usize>(
        &self,
        row: usize,
        col: usize,
        write: Write,
        c: &mut [R],
        c_stride: usize,
    ) {
        let present = ROWS.min(self.rows - row);
        let starts: [usize; ROWS] =
            std::array::from_fn(|i| (row + i.min(present - 1)) * self.a_strides[0]);
        let mut sums = [[R::ZERO; COLS]; ROWS];
        for p in 0..self.depth {
            // SAFETY: `check` has seen that b holds `depth` rows of `cols` numbers.
            let b = unsafe {
                &*self
                    .b
                    .as_ptr()
                    .add(p * self.b_stride + col)
                    .cast::<[R; COLS]>()
            };
            for (sums, start) in sums.iter_mut().zip(starts) {
                // SAFETY: `check` has seen that a holds `rows` x `depth` numbers.
                let a = unsafe { *self.a.get_unchecked(start + p * self.a_strides[1]) };
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(*b, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            if i < present {
                let c = &mut c[(row + i) * c_stride + col..][..COLS];
                match write {
                    Write::Set => c.copy_from_slice(sums),
                    Write::Add => c.iter_mut().zip(sums).for_each(|(c, sum)| *c += *sum),
                }
            }
        }
    }
}
