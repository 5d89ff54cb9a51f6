//! One kernel by criterion, and beside it what this machine could do in the same time.

use std::hint::black_box;
use std::io::Write as _;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use half::bf16;
use qlora_train::device::{Act, Buf, Device, Dtype, Simd};

use crate::support::clock::{median, seconds};
use qlora_train::device::peak::Peak;

/// A group of kernels on a number of threads.
pub struct Measured<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    threads: usize,
    /// Whether it is enough that kernels run.
    test: bool,
}

/// What the work of a kernel is counted in, and what it is held against.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Floating-point operations, against the dot product of activations of this element.
    Operations(usize, Dtype),
    /// Bytes read and written, against a copy.
    Bytes(usize),
    /// Numbers; nothing to hold it against.
    Numbers(usize),
}

impl<'a> Measured<'a> {
    pub fn new(mut group: BenchmarkGroup<'a, WallTime>, threads: usize, test: bool) -> Self {
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(400));
        Self { group, threads, test }
    }

    /// Measures what `prepare` gives, which is asked for only if the case is wanted.
    pub fn run<Run: FnMut()>(&mut self, name: &str, work: Work, prepare: impl FnOnce() -> Run) {
        let threads = self.threads;
        let (mut prepare, mut run) = (Some(prepare), None);
        let mut times = Vec::new();
        self.group.throughput(work.throughput());
        self.group.bench_function(name, |bencher| {
            let run = run.get_or_insert_with(|| prepare.take().expect("prepared once")());
            bencher.iter_custom(|count| {
                let begun = seconds(threads);
                (0..count).for_each(|_| run());
                let taken = seconds(threads) - begun;
                times.push(taken / count as f64);
                Duration::from_secs_f64(taken)
            });
        });
        if !times.is_empty() && !self.test {
            let beside = work.beside(median(&mut times), threads);
            // A closed pipe ends the run elsewhere; there is nobody left to tell.
            let _ = writeln!(std::io::stdout(), "{:24}{beside}", "");
        }
    }
}

impl Work {
    fn throughput(self) -> Throughput {
        match self {
            Self::Operations(count, _) | Self::Numbers(count) => Throughput::Elements(count as u64),
            Self::Bytes(count) => Throughput::Bytes(count as u64),
        }
    }

    fn beside(self, took: f64, threads: usize) -> String {
        let rate = |count: usize| count as f64 / took / 1e9;
        match self {
            Self::Numbers(count) => format!("{:.2} billion numbers/s", rate(count)),
            Self::Operations(count, dtype) => {
                let peak = Peak::of(Simd::detect(), dtype)
                    .map_or(f64::NAN, |p| p.measure(threads, || seconds(threads)) / 1e9);
                let share = rate(count) / peak;
                format!("{:.0} GFLOP/s, {share:.2} of the peak of {peak:.0}", rate(count))
            }
            Self::Bytes(count) => {
                let copy = copy_speed(count, threads);
                let share = rate(count) / copy;
                format!("{:.1} GB/s, {share:.2} of a copy at {copy:.1}", rate(count))
            }
        }
    }
}

/// GB/s, read and written, of copies that move `bytes` bytes on `threads` threads.
fn copy_speed(bytes: usize, threads: usize) -> f64 {
    let part = (bytes / 2 / threads).max(1);
    let mut buffers: Vec<_> = (0..threads).map(|_| (vec![1_u8; part], vec![0_u8; part])).collect();
    // Memory that was never touched would be counted as slow.
    buffers.iter_mut().for_each(|buffers| copy(buffers, 1));
    let rounds = 1 + (64 << 20) / part;
    let begun = seconds(threads);
    std::thread::scope(|scope| {
        let (own, others) = buffers.split_first_mut().expect("a thread");
        for buffers in others {
            scope.spawn(move || copy(buffers, rounds));
        }
        copy(own, rounds);
    });
    (2 * part * threads * rounds) as f64 / (seconds(threads) - begun) / 1e9
}

fn copy((from, to): &mut (Vec<u8>, Vec<u8>), rounds: usize) {
    for _ in 0..rounds {
        black_box(&mut *to).copy_from_slice(black_box(from));
    }
}

/// `len` numbers of either sign below one half.
pub fn numbers(device: &Device, dtype: Dtype, len: usize) -> Act {
    let mut act = device.alloc_dense("numbers", len, dtype).expect("room for a bench");
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

pub fn uploaded<T: bytemuck::Pod>(device: &Device, values: &[T]) -> Buf<T> {
    let mut buf = device.alloc("numbers", values.len()).expect("room for a bench");
    device.upload(values, &mut buf);
    buf
}
