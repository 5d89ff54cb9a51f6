//! The multiply-add peak of this machine: loops that do nothing else, in registers.

use qlora_train::device::Simd;

/// Runs `run` on `count` threads at once.
pub fn on_threads(count: usize, run: fn()) {
    std::thread::scope(|scope| {
        for _ in 1..count {
            scope.spawn(run);
        }
        run();
    });
}

/// Names, operations and loops of the multiply-adds of this machine.
#[cfg(target_arch = "x86_64")]
pub fn peaks() -> Vec<(&'static str, u64, fn())> {
    let mut peaks: Vec<(&'static str, u64, fn())> = Vec::new();
    if Simd::detect() >= Simd::Avx512 {
        // SAFETY: the machine has the instructions.
        peaks.push(("f32", loops::ROUNDS * 24 * 32, || unsafe { loops::f32() }));
    }
    if Simd::detect() >= Simd::Avx512Bf16 {
        // SAFETY: as above.
        peaks.push(("bf16", loops::ROUNDS * 24 * 64, || unsafe { loops::bf16() }));
    }
    peaks
}

/// Names, operations and loops of the multiply-adds of this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn peaks() -> Vec<(&'static str, u64, fn())> {
    Vec::new()
}

/// 24 independent chains, as in a tile.
#[cfg(target_arch = "x86_64")]
mod loops {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    pub const ROUNDS: u64 = 2_000_000;

    #[target_feature(enable = "avx512f")]
    pub fn f32() {
        let factor = black_box(_mm512_set1_ps(0.5));
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(factor, *sum, factor);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16() {
        // SAFETY: both types are 64 bytes of any content.
        let factor = unsafe {
            std::mem::transmute::<__m512i, __m512bh>(black_box(_mm512_set1_epi16(0x3f00)))
        };
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }
}
