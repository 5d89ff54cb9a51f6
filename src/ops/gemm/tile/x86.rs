//! The vectors of AVX2 with FMA, of AVX-512, and of AVX-512 with bf16 dot products.

use std::arch::x86_64::*;

use half::bf16;

use super::{Lanes, Tile, VECTORS, multiply, with_size};
use crate::ops::Write;

/// f32 in 8 lanes; a tile of 6 x 16 fills 12 of 16 registers.
pub(in crate::ops::gemm) struct Avx2;

/// f32 in 16 lanes; a tile of 12 x 32 fills 24 of 32 registers.
pub(in crate::ops::gemm) struct Avx512;

/// Pairs of bf16 in 16 lanes, summed in f32 with both roundings of a pair in one instruction, which
/// takes subnormal numbers for zero.
pub(in crate::ops::gemm) struct Avx512Bf16;

impl Lanes for Avx2 {
    type Number = f32;
    type Operand = __m256;
    type Sums = __m256;
    const GROUP: usize = 1;
    const WIDTH: usize = 8;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: as above, and for 8 numbers.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m256 {
        // SAFETY: as above, and for one number.
        unsafe { _mm256_set1_ps(*from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(left: __m256, right: __m256, sums: __m256) -> __m256 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_fmadd_ps(left, right, sums) }
    }

    #[inline(always)]
    unsafe fn put(write: Write, sums: __m256, to: *mut f32) {
        // SAFETY: the caller vouches for the instruction set and 8 numbers.
        unsafe {
            _mm256_storeu_ps(
                to,
                match write {
                    Write::Set => sums,
                    Write::Add => _mm256_add_ps(_mm256_loadu_ps(to), sums),
                },
            );
        }
    }

    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<f32>) {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn run<const R: usize, const V: usize>(tile: Tile<f32>) {
            // SAFETY: passed on from the caller.
            unsafe { multiply::<Avx2, R, V>(tile) }
        }
        // SAFETY: passed on from the caller.
        unsafe { with_size!(rows, vectors, [1 2 3 4 5 6], run(tile)) }
    }
}

impl Lanes for Avx512 {
    type Number = f32;
    type Operand = __m512;
    type Sums = __m512;
    const GROUP: usize = 1;
    const WIDTH: usize = 16;
    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: as above, and for 16 numbers.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> __m512 {
        // SAFETY: as above, and for one number.
        unsafe { _mm512_set1_ps(*from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(left: __m512, right: __m512, sums: __m512) -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_fmadd_ps(left, right, sums) }
    }

    #[inline(always)]
    unsafe fn put(write: Write, sums: __m512, to: *mut f32) {
        // SAFETY: the caller vouches for the instruction set and 16 numbers.
        unsafe {
            _mm512_storeu_ps(
                to,
                match write {
                    Write::Set => sums,
                    Write::Add => _mm512_add_ps(_mm512_loadu_ps(to), sums),
                },
            );
        }
    }

    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<f32>) {
        #[target_feature(enable = "avx512f")]
        unsafe fn run<const R: usize, const V: usize>(tile: Tile<f32>) {
            // SAFETY: passed on from the caller.
            unsafe { multiply::<Avx512, R, V>(tile) }
        }
        // SAFETY: passed on from the caller.
        unsafe { with_size!(rows, vectors, [1 2 3 4 5 6 7 8 9 10 11 12], run(tile)) }
    }
}

impl Lanes for Avx512Bf16 {
    type Number = bf16;
    type Operand = __m512bh;
    type Sums = __m512;
    const GROUP: usize = 2;
    const WIDTH: usize = 16;
    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const bf16) -> __m512bh {
        // SAFETY: as above, and for 32 numbers; both types are 64 bytes of any content.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const bf16) -> __m512bh {
        // SAFETY: as above, and for two numbers.
        unsafe {
            let pair = from.cast::<i32>().read_unaligned();
            std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair))
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(left: __m512bh, right: __m512bh, sums: __m512) -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_dpbf16_ps(sums, left, right) }
    }

    #[inline(always)]
    unsafe fn put(write: Write, sums: __m512, to: *mut f32) {
        // SAFETY: the caller vouches for the instruction set and 16 numbers.
        unsafe { Avx512::put(write, sums, to) }
    }

    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<bf16>) {
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn run<const R: usize, const V: usize>(tile: Tile<bf16>) {
            // SAFETY: passed on from the caller.
            unsafe { multiply::<Avx512Bf16, R, V>(tile) }
        }
        // SAFETY: passed on from the caller.
        unsafe { with_size!(rows, vectors, [1 2 3 4 5 6 7 8 9 10 11 12], run(tile)) }
    }
}
