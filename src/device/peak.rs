//! The multiply-add peak of a machine: on the CPU measured by loops that do nothing else, in
//! registers; of a GPU what its units can do at its clock.

use super::Dtype;
use super::cpu::Simd;
use super::cuda::Card;

/// Floating-point operations a second of the matrix units of `card`: bf16 products with f32 sums,
/// without sparsity.
pub fn of_gpu(card: &Card) -> Option<f64> {
    // Operations of a multiprocessor in a cycle, as NVIDIA's architecture papers give them; GeForce
    // cards add f32 sums at half the rate.
    let in_a_cycle = match card.capability {
        (8, 0) => 2048.0,
        (8, 6 | 7 | 9) | (12, _) if card.name.contains("GeForce") => 512.0,
        (8, 6 | 7 | 9) | (12, _) => 1024.0,
        (9, 0) => 4096.0,
        (10, _) => 8192.0,
        _ => return None,
    };
    let cycles = f64::from(card.clock_khz) * 1e3;
    Some(in_a_cycle * f64::from(card.multiprocessors) * cycles).filter(|peak| *peak > 0.0)
}

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

    /// Runs it on `threads` threads at once, timed by `clock` in seconds; operations a second of all
    /// together.
    pub fn measure(self, threads: usize, clock: impl Fn() -> f64) -> f64 {
        let begun = clock();
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(self.run);
            }
            (self.run)();
        });
        self.operations as f64 * threads as f64 / (clock() - begun)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_of_gpus_are_those_of_their_data_sheets() {
        let cards = [
            ("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1_410_000, 312.0),
            ("NVIDIA GeForce RTX 3090", (8, 6), 82, 1_695_000, 71.0),
            ("NVIDIA GeForce RTX 4090", (8, 9), 128, 2_520_000, 165.0),
            ("NVIDIA L40S", (8, 9), 142, 2_520_000, 362.0),
            ("NVIDIA H100 80GB HBM3", (9, 0), 132, 1_830_000, 989.0),
            ("NVIDIA GeForce RTX 5090", (12, 0), 170, 2_410_000, 210.0),
        ];
        for (name, capability, multiprocessors, clock_khz, tera) in cards {
            let card = Card {
                ordinal: 0,
                name: name.to_owned(),
                capability,
                driver: 13_000,
                memory: 1 << 34,
                multiprocessors,
                clock_khz,
                kernels: "prebuilt",
            };
            let share = of_gpu(&card).unwrap() / 1e12 / tera;
            assert!((0.98..1.02).contains(&share), "{name}: {share}");
            assert_eq!(of_gpu(&Card { clock_khz: 0, ..card }), None, "not told by the driver");
        }
    }
}
