//! The multiply-add peak of this machine: loops that do nothing else, in registers.

use qlora_train::device::{Dtype, Simd};

use super::clock;

/// A loop of multiply-adds.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    /// A multiply-add is two.
    operations: u64,
    run: fn(),
}

impl Peak {
    /// What products with activations of `dtype` are made of at `simd`; none is known for portable
    /// code.
    #[cfg(target_arch = "x86_64")]
    pub fn of(simd: Simd, dtype: Dtype) -> Option<Self> {
        use loops::{CHAINS, ROUNDS};
        assert!(simd <= Simd::detect(), "this machine has no {simd:?}");
        let (lanes, run): (u64, fn()) = match (simd, dtype) {
            (Simd::Portable, _) => return None,
            (Simd::Avx2, _) => {
                // SAFETY: the machine has it, as asserted.
                (8, || unsafe { loops::f32_of_8() })
            }
            (Simd::Avx512Bf16, Dtype::Bf16) => {
                // SAFETY: the machine has it, as asserted.
                (32, || unsafe { loops::bf16_of_32() })
            }
            (Simd::Avx512 | Simd::Avx512Bf16, _) => {
                // SAFETY: the machine has it, as asserted.
                (16, || unsafe { loops::f32_of_16() })
            }
        };
        Some(Self { operations: ROUNDS * CHAINS as u64 * lanes * 2, run })
    }

    /// None is known for this architecture.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn of(_: Simd, _: Dtype) -> Option<Self> {
        None
    }

    /// Runs it on `threads` threads at once; GFLOP/s of all together.
    pub fn measure(self, threads: usize) -> f64 {
        let begun = clock::seconds(threads);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(self.run);
            }
            (self.run)();
        });
        let seconds = clock::seconds(threads) - begun;
        self.operations as f64 * threads as f64 / seconds / 1e9
    }
}

/// Independent chains, as in a tile.
#[cfg(target_arch = "x86_64")]
mod loops {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    pub const ROUNDS: u64 = 2_000_000;
    /// Of 512 bits 24, of 256 bits 12: as many as registers hold.
    pub const CHAINS: usize = 24;

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_of_8() {
        let factor = black_box(_mm256_set1_ps(0.5));
        let mut sums = [_mm256_setzero_ps(); CHAINS / 2];
        for _ in 0..ROUNDS * 2 {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(factor, *sum, factor);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub fn f32_of_16() {
        let factor = black_box(_mm512_set1_ps(0.5));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(factor, *sum, factor);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16_of_32() {
        // SAFETY: both types are 64 bytes of any content.
        let factor = unsafe {
            std::mem::transmute::<__m512i, __m512bh>(black_box(_mm512_set1_epi16(0x3f00)))
        };
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }
}
