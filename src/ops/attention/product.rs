//! Small matrix products: the inner loops of attention, between blocks that lie in the cache.

#[cfg(target_arch = "x86_64")]
use std::any::TypeId;

use crate::device::Simd;
use crate::ops::element::per_simd;
use crate::ops::{Real, Write};

/// The product of a block a [rows, depth] and a block b [depth, cols].
#[derive(Clone, Copy)]
pub(super) struct Product<'a, R> {
    /// Instruction set.
    pub(super) simd: Simd,
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

/// Rows and columns of the sums that are held in registers at the same time.
#[derive(Clone, Copy)]
enum Shape {
    /// 8 × 32: 16 of the 32 registers of AVX-512.
    Wide,
    /// 8 × 16: the last columns of the same.
    Narrow,
    /// 4 × 16: 8 of the 16 registers of AVX2.
    Low,
}

impl Shape {
    const fn rows(self) -> usize {
        match self {
            Self::Wide | Self::Narrow => 8,
            Self::Low => 4,
        }
    }

    const fn cols(self) -> usize {
        match self {
            Self::Wide => 2 * LANES,
            Self::Narrow | Self::Low => LANES,
        }
    }

    fn of(simd: Simd, cols: usize) -> Self {
        match (simd >= Simd::Avx512, cols >= 2 * LANES) {
            (true, true) => Self::Wide,
            (true, false) => Self::Narrow,
            (false, _) => Self::Low,
        }
    }
}

/// A part of a product of which all sums fit into registers; known to lie within its blocks.
#[repr(C)]
struct Tile<R> {
    shape: Shape,
    a: *const R,
    a_strides: [usize; 2],
    b: *const R,
    b_stride: usize,
    c: *mut R,
    c_stride: usize,
    /// Rows that are there; the tile computes copies of the last one for the others.
    rows: usize,
    depth: usize,
    write: Write,
}

impl<R: Real> Product<'_, R> {
    /// c [rows, cols] (=|+=) a·b, every number summed in the order of the depth.
    #[inline(always)]
    pub(super) fn put(self, write: Write, c: &mut [R], c_stride: usize) {
        self.check(c, c_stride);
        let mut col = 0;
        while col < self.cols {
            let shape = Shape::of(self.simd, self.cols - col);
            for row in (0..self.rows).step_by(shape.rows()) {
                let tile = Tile {
                    shape,
                    a: self.a[row * self.a_strides[0]..].as_ptr(),
                    a_strides: self.a_strides,
                    b: self.b[col..].as_ptr(),
                    b_stride: self.b_stride,
                    c: c[row * c_stride + col..].as_mut_ptr(),
                    c_stride,
                    rows: shape.rows().min(self.rows - row),
                    depth: self.depth,
                    write,
                };
                compute(self.simd, &tile);
            }
            col += shape.cols();
        }
    }

    #[inline(always)]
    fn check(&self, c: &[R], c_stride: usize) {
        let last = |count: usize, stride: usize| count.saturating_sub(1) * stride;
        let a_end = last(self.rows, self.a_strides[0]) + last(self.depth, self.a_strides[1]);
        assert!(a_end < self.a.len(), "a ends at {a_end} of {}", self.a.len());
        let b_end = last(self.depth, self.b_stride) + self.cols;
        assert!(b_end <= self.b.len(), "b ends at {b_end} of {}", self.b.len());
        let c_end = last(self.rows, c_stride) + self.cols;
        assert!(c_end <= c.len(), "c ends at {c_end} of {}", c.len());
        assert_eq!(self.cols % LANES, 0, "{} columns", self.cols);
    }
}

fn compute<R: Real>(simd: Simd, tile: &Tile<R>) {
    #[cfg(target_arch = "x86_64")]
    if simd > Simd::Portable && TypeId::of::<R>() == TypeId::of::<f32>() {
        // SAFETY: R is f32.
        let tile = unsafe { &*std::ptr::from_ref(tile).cast::<Tile<f32>>() };
        // SAFETY: the tile lies within its blocks, and a shape is chosen only where the machine
        // has its instructions.
        unsafe {
            match tile.shape {
                Shape::Wide => x86::wide(tile),
                Shape::Narrow => x86::narrow(tile),
                Shape::Low => x86::low(tile),
            }
        }
        return;
    }
    plain(simd, tile);
}

per_simd! {
    /// Any number on any machine: f64, and f32 where no wider instructions are known.
    fn plain<R: Real>(tile: &Tile<R>) {
        match tile.shape {
            Shape::Wide => tile.run::<8, { 2 * LANES }>(),
            Shape::Narrow => tile.run::<8, LANES>(),
            Shape::Low => tile.run::<4, LANES>(),
        }
    }
}

impl<R: Real> Tile<R> {
    /// Where row `i` of the left factor starts.
    #[inline(always)]
    fn start(&self, i: usize) -> usize {
        i.min(self.rows - 1) * self.a_strides[0]
    }

    #[inline(always)]
    fn run<const ROWS: usize, const COLS: usize>(&self) {
        let mut sums = [[R::ZERO; COLS]; ROWS];
        for p in 0..self.depth {
            // SAFETY: `Product::check` has seen that b holds `depth` rows of this many columns.
            let b = unsafe { &*self.b.add(p * self.b_stride).cast::<[R; COLS]>() };
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `Product::check` has seen that a holds `rows` rows of `depth` numbers.
                let a = unsafe { *self.a.add(self.start(i) + p * self.a_strides[1]) };
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(*b, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate().take(self.rows) {
            // SAFETY: `Product::check` has seen that c holds `rows` rows of this many columns.
            let c = unsafe { &mut *self.c.add(i * self.c_stride).cast::<[R; COLS]>() };
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = match self.write {
                    Write::Set => *sum,
                    Write::Add => *c + *sum,
                };
            }
        }
    }
}

/// The same for f32 with the sums spelled out as vectors: left to itself, the compiler keeps them
/// in memory, which is ten times as slow.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Tile, Write};

    macro_rules! kernel {
        ($name:ident: $rows:literal x $vectors:literal of $lanes:literal with $feature:literal,
         $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident, $mul_add:ident) => {
            /// # Safety
            /// The tile must lie within its blocks.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(tile: &Tile<f32>) {
                let mut sums = [[$zero(); $vectors]; $rows];
                let mut starts = [0; $rows];
                for i in 0..$rows {
                    starts[i] = tile.start(i);
                }
                for p in 0..tile.depth {
                    let (a, b) = (p * tile.a_strides[1], p * tile.b_stride);
                    let mut right = [$zero(); $vectors];
                    for v in 0..$vectors {
                        // SAFETY: b holds `depth` rows of all these columns.
                        right[v] = unsafe { $load(tile.b.add(b + v * $lanes)) };
                    }
                    for i in 0..$rows {
                        // SAFETY: a holds `rows` rows of `depth` numbers.
                        let left = $splat(unsafe { *tile.a.add(starts[i] + a) });
                        for v in 0..$vectors {
                            sums[i][v] = $mul_add(left, right[v], sums[i][v]);
                        }
                    }
                }
                for i in 0..$rows {
                    for v in 0..$vectors {
                        if i < tile.rows {
                            // SAFETY: c holds `rows` rows of all these columns.
                            unsafe {
                                let c = tile.c.add(i * tile.c_stride + v * $lanes);
                                match tile.write {
                                    Write::Set => $store(c, sums[i][v]),
                                    Write::Add => $store(c, $add($load(c), sums[i][v])),
                                }
                            }
                        }
                    }
                }
            }
        };
    }

    kernel!(wide: 8 x 2 of 16 with "avx512f", _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps,
        _mm512_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps);
    kernel!(narrow: 8 x 1 of 16 with "avx512f", _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps,
        _mm512_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps);
    kernel!(low: 4 x 2 of 8 with "avx2,fma", _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps,
        _mm256_storeu_ps, _mm256_add_ps, _mm256_fmadd_ps);
}
