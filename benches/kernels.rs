//! Speed of the kernels on named shapes, beside the peak of this machine measured in the same run:
//! `cargo bench --bench kernels -- gemm`.
//!
//! Throughput is printed in elements per second, where an element is one floating-point operation:
//! Gelem/s are GFLOP/s. `peak/...` runs nothing but multiply-adds in registers, on as many threads.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qlora_train::device::{Act, Buf, Device, Dtype, Simd};
use qlora_train::ops::Write;
use qlora_train::ops::gemm::{Epilogue, Form, FourBit, Operand, Scales, Term, matmul};
use qlora_train::quant;

/// M, N, K of products of a 0.5 B model, of LoRA of rank 16, and of generation.
const SHAPES: [(usize, usize, usize); 8] = [
    (512, 896, 896),
    (512, 4864, 896),
    (512, 896, 4864),
    (2048, 896, 4864),
    (512, 16, 896),
    (512, 896, 16),
    (1, 4864, 896),
    (1, 896, 4864),
];

/// What the right operand is stored in.
#[derive(Debug, Clone, Copy)]
enum Right {
    Bf16,
    F32,
    /// Four bits with double quantization, and bf16 on the left.
    Nf4,
    /// The same with f32 on the left.
    Nf4F32,
}

/// The memory of one product.
struct Product {
    left: Act,
    dense: Act,
    codes: Buf<u8>,
    absmax: Buf<u8>,
    nested_absmax: Buf<f32>,
    map: Buf<f32>,
    out: Act,
}

impl Product {
    fn new(device: &Device, right: Right, (m, n, k): (usize, usize, usize)) -> Self {
        let dtype = match right {
            Right::Bf16 | Right::Nf4 => Dtype::Bf16,
            Right::F32 | Right::Nf4F32 => Dtype::F32,
        };
        let blocks = quant::blocks(n * k);
        let codes: Vec<u8> = (0..quant::code_bytes(n * k))
            .map(|i| (i * 167) as u8)
            .collect();
        let nested = vec![0.01; quant::nested_blocks(blocks)];
        Self {
            left: numbers(device, dtype, m * k),
            dense: numbers(device, dtype, n * k),
            codes: uploaded(device, &codes),
            absmax: uploaded(device, &codes[..blocks]),
            nested_absmax: uploaded(device, &nested),
            map: uploaded(device, quant::SIGNED.values()),
            out: numbers(device, dtype, m * n),
        }
    }

    fn run(&mut self, device: &Device, form: Form, right: Right, shape: (usize, usize, usize)) {
        let (m, n, k) = shape;
        let (rows, cols) = if form == Form::Nt { (n, k) } else { (k, n) };
        let weight = FourBit {
            kind: quant::Kind::Nf4,
            rows,
            cols,
            codes: &self.codes,
            scales: Scales::Nested {
                absmax: &self.absmax,
                nested_absmax: &self.nested_absmax,
                offset: 0.02,
                map: &self.map,
            },
        };
        let term = Term {
            left: match form {
                Form::Tn => self.left.view(k, m),
                _ => self.left.view(m, k),
            },
            right: match right {
                Right::Bf16 | Right::F32 => self.dense.view(rows, cols).into(),
                Right::Nf4 | Right::Nf4F32 => Operand::FourBit(weight),
            },
        };
        let out = self.out.view_mut(m, n);
        matmul(device, form, &[term], Epilogue::default(), out, Write::Set);
    }
}

fn numbers(device: &Device, dtype: Dtype, len: usize) -> Act {
    let mut act = device.alloc_dense("numbers", len, dtype).unwrap();
    let value = |i: usize| (i % 17) as f32 / 17.0 - 0.5;
    if dtype == Dtype::Bf16 {
        let values: Vec<bf16> = (0..len).map(|i| bf16::from_f32(value(i))).collect();
        device.upload(bytemuck::cast_slice(&values), act.bytes_mut());
    } else {
        let values: Vec<f32> = (0..len).map(value).collect();
        device.upload(bytemuck::cast_slice(&values), act.bytes_mut());
    }
    act
}

fn uploaded<T: bytemuck::Pod>(device: &Device, values: &[T]) -> Buf<T> {
    let mut buf = device.alloc("weight", values.len()).unwrap();
    device.upload(values, &mut buf);
    buf
}

fn gemm(criterion: &mut Criterion) {
    for threads in [1, 2] {
        let name = format!(
            "gemm, {threads} thread{}",
            if threads == 1 { "" } else { "s" }
        );
        let mut group = criterion.benchmark_group(name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(500));
        for (element, operations, run) in peaks() {
            group.throughput(Throughput::Elements(operations * threads as u64));
            group.bench_function(BenchmarkId::new("peak", element), |bencher| {
                bencher.iter(|| on_threads(threads, run));
            });
        }
        let device = Device::cpu(threads, Dtype::Bf16, u64::MAX);
        for right in [Right::Nf4, Right::Bf16, Right::Nf4F32, Right::F32] {
            for form in [Form::Nt, Form::Nn, Form::Tn] {
                for shape in SHAPES {
                    let (m, n, k) = shape;
                    let mut product = Product::new(&device, right, shape);
                    group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
                    let id =
                        BenchmarkId::new(format!("{right:?} {form:?}"), format!("{m}x{n}x{k}"));
                    group.bench_function(id, |bencher| {
                        bencher.iter(|| product.run(&device, form, right, shape));
                    });
                }
            }
        }
    }
}

fn on_threads(count: usize, run: fn()) {
    std::thread::scope(|scope| {
        for _ in 1..count {
            scope.spawn(run);
        }
        run();
    });
}

/// Names, operations and loops of the multiply-adds of this machine.
#[cfg(target_arch = "x86_64")]
fn peaks() -> Vec<(&'static str, u64, fn())> {
    let mut peaks: Vec<(&'static str, u64, fn())> = Vec::new();
    if Simd::detect() >= Simd::Avx512 {
        // SAFETY: the machine has the instructions.
        peaks.push(("f32", peak::ROUNDS * 24 * 32, || unsafe { peak::f32() }));
    }
    if Simd::detect() >= Simd::Avx512Bf16 {
        // SAFETY: as above.
        peaks.push(("bf16", peak::ROUNDS * 24 * 64, || unsafe { peak::bf16() }));
    }
    peaks
}

/// Names, operations and loops of the multiply-adds of this machine.
#[cfg(not(target_arch = "x86_64"))]
fn peaks() -> Vec<(&'static str, u64, fn())> {
    Vec::new()
}

/// 24 independent chains, as in a tile.
#[cfg(target_arch = "x86_64")]
mod peak {
    use super::black_box;
    use std::arch::x86_64::*;

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

criterion_group!(benches, gemm);
criterion_main!(benches);
