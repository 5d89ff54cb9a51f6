//! Speed of the kernels on named shapes, beside the peak of this machine measured in the same run:
//! `cargo bench --bench kernels -- gemm`.
//!
//! Throughput is printed in elements per second, where an element is one floating-point operation:
//! Gelem/s are GFLOP/s. `peak/...` runs nothing but multiply-adds in registers, on as many threads.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qlora_train::device::{Act, Buf, Device, Dtype};
use qlora_train::ops::Write;
use qlora_train::ops::gemm::{Epilogue, Form, FourBit, Operand, Scales, Term, matmul};
use qlora_train::quant;

#[path = "support/peak.rs"]
mod peak;
use peak::{on_threads, peaks};

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
        let codes: Vec<u8> = (0..quant::code_bytes(n * k)).map(|i| (i * 167) as u8).collect();
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
        let name = format!("gemm, {threads} thread{}", if threads == 1 { "" } else { "s" });
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

criterion_group!(benches, gemm);
criterion_main!(benches);
