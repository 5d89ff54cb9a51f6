//! Small matrix products: the inner loops of attention, between blocks that lie in the cache.

use bytemuck::Pod;
use half::bf16;

use crate::device::Simd;
use crate::ops::element::per_simd;
use crate::ops::{Real, Write};

/// What a factor is made of: numbers, or pairs of them that are multiplied and added up.
pub(super) trait Factor: Pod {
    /// The type of the sums.
    type Sum: Real;

    /// Computes a tile.
    ///
    /// # Safety
    /// It lies within its blocks, and the machine has `simd`.
    unsafe fn compute(simd: Simd, tile: &Tile<Self>);
}

/// Two consecutive numbers of the depth.
pub(super) type Pair = [bf16; 2];

/// The product of a block a [rows, depth] and a block b [depth, cols].
#[derive(Clone, Copy)]
pub(super) struct Product<'a, F> {
    /// Instruction set.
    pub(super) simd: Simd,
    /// Left factor.
    pub(super) a: &'a [F],
    /// Distances in `a` from a row to the next and from a column to the next.
    pub(super) a_strides: [usize; 2],
    /// Right factor, row-major.
    pub(super) b: &'a [F],
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
pub(super) struct Tile<F: Factor> {
    shape: Shape,
    a: *const F,
    a_strides: [usize; 2],
    b: *const F,
    b_stride: usize,
    c: *mut F::Sum,
    c_stride: usize,
    /// Rows that are there; the tile computes copies of the last one for the others.
    rows: usize,
    depth: usize,
    write: Write,
}

impl<F: Factor> Product<'_, F> {
    /// c [rows, cols] (=|+=) a·b, every number summed in the order of the depth.
    #[inline(always)]
    pub(super) fn put(self, write: Write, c: &mut [F::Sum], c_stride: usize) {
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
                // SAFETY: the tile lies within blocks that have been checked, and a device has an
                // instruction set only where the machine has it.
                unsafe { F::compute(self.simd, &tile) };
            }
            col += shape.cols();
        }
    }

    #[inline(always)]
    fn check(&self, c: &[F::Sum], c_stride: usize) {
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

impl Factor for f64 {
    type Sum = Self;

    unsafe fn compute(simd: Simd, tile: &Tile<Self>) {
        plain(simd, tile);
    }
}

impl Factor for f32 {
    type Sum = Self;

    unsafe fn compute(simd: Simd, tile: &Tile<Self>) {
        #[cfg(target_arch = "x86_64")]
        if simd > Simd::Portable {
            // SAFETY: passed on from the caller; a shape is chosen only where the machine has its
            // instructions.
            return unsafe {
                match tile.shape {
                    Shape::Wide => x86::wide(tile),
                    Shape::Narrow => x86::narrow(tile),
                    Shape::Low => x86::low(tile),
                }
            };
        }
        plain(simd, tile);
    }
}

impl Factor for Pair {
    type Sum = f32;

    #[cfg(target_arch = "x86_64")]
    unsafe fn compute(_: Simd, tile: &Tile<Self>) {
        // SAFETY: passed on from the caller; pairs are used only where their instruction is.
        unsafe {
            match tile.shape {
                Shape::Wide => x86::wide_pairs(tile),
                Shape::Narrow => x86::narrow_pairs(tile),
                Shape::Low => unreachable!("pairs without wide vectors"),
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn compute(_: Simd, _: &Tile<Self>) {
        unreachable!("no instruction for pairs on this machine")
    }
}

per_simd! {
    /// Any number on any machine: f64, and f32 where no wider instructions are known.
    fn plain<R: PlainFactor, const FUSED: bool>(tile: &Tile<R>) {
        match tile.shape {
            Shape::Wide => tile.run::<8, { 2 * LANES }, FUSED>(),
            Shape::Narrow => tile.run::<8, LANES, FUSED>(),
            Shape::Low => tile.run::<4, LANES, FUSED>(),
        }
    }
}

/// A number that is its own sum.
pub(super) trait PlainFactor: Real + Factor<Sum = Self> {}
impl PlainFactor for f32 {}
impl PlainFactor for f64 {}

impl<F: Factor> Tile<F> {
    /// Where row `i` of the left factor starts.
    #[inline(always)]
    fn start(&self, i: usize) -> usize {
        i.min(self.rows - 1) * self.a_strides[0]
    }
}

impl<R: PlainFactor> Tile<R> {
    #[inline(always)]
    fn run<const ROWS: usize, const COLS: usize, const FUSED: bool>(&self) {
        let mut sums = [[R::ZERO; COLS]; ROWS];
        for p in 0..self.depth {
            // SAFETY: `Product::check` has seen that b holds `depth` rows of this many columns.
            let b = unsafe { &*self.b.add(p * self.b_stride).cast::<[R; COLS]>() };
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `Product::check` has seen that a holds `rows` rows of `depth` numbers.
                let a = unsafe { *self.a.add(self.start(i) + p * self.a_strides[1]) };
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.multiply_add::<FUSED>(*b, *sum);
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

/// The same for f32 and for pairs with the sums spelled out as vectors: left to itself, the compiler keeps them
/// in memory, which is ten times as slow.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Pair, Tile, Write};

    macro_rules! kernel {
        ($name:ident($factor:ty): $rows:literal x $vectors:literal of $lanes:literal with
         $feature:literal, $right:ident, $splat:ident, $mul_add:ident, $zero:ident, $load:ident,
         $store:ident, $add:ident) => {
            /// # Safety
            /// The tile must lie within its blocks.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(tile: &Tile<$factor>) {
                let mut sums = [[$zero(); $vectors]; $rows];
                let mut starts = [0; $rows];
                for i in 0..$rows {
                    starts[i] = tile.start(i);
                }
                for p in 0..tile.depth {
                    let (a, b) = (p * tile.a_strides[1], p * tile.b_stride);
                    // SAFETY: b holds `depth` rows of all these columns.
                    let mut right = [unsafe { $right(tile.b.add(b)) }; $vectors];
                    for (v, right) in right.iter_mut().enumerate().skip(1) {
                        // SAFETY: as above.
                        *right = unsafe { $right(tile.b.add(b + v * $lanes)) };
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

    kernel!(wide(f32): 8 x 2 of 16 with "avx512f", _mm512_loadu_ps, _mm512_set1_ps,
        _mm512_fmadd_ps, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps);
    kernel!(narrow(f32): 8 x 1 of 16 with "avx512f", _mm512_loadu_ps, _mm512_set1_ps,
        _mm512_fmadd_ps, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps);
    kernel!(low(f32): 4 x 2 of 8 with "avx2,fma", _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_fmadd_ps, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps);
    kernel!(wide_pairs(Pair): 8 x 2 of 16 with "avx512f,avx512bf16", load_pairs, splat_pair,
        add_products, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps);
    kernel!(narrow_pairs(Pair): 8 x 1 of 16 with "avx512f,avx512bf16", load_pairs, splat_pair,
        add_products, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps);

    /// # Safety
    /// 16 pairs are valid for reads.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn load_pairs(from: *const Pair) -> __m512bh {
        // SAFETY: the caller vouches for 64 bytes; both types are 64 bytes of any content.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn splat_pair(pair: Pair) -> __m512bh {
        // SAFETY: both types are four bytes, or 64, of any content.
        unsafe {
            let bits = std::mem::transmute::<Pair, i32>(pair);
            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(bits))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn add_products(left: __m512bh, right: __m512bh, sums: __m512) -> __m512 {
        _mm512_dpbf16_ps(sums, left, right)
    }
}
