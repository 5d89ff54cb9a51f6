//! Σ x², the square of the gradient norm: chunks of fixed size, each summed in f64, then added in
//! order, so that clipping never depends on the number of threads.

use super::element::{Element, Real, per_simd};
use super::tasks::{TASK, for_each_piece};
use super::{lanes_sum, slice, slice_mut};
use crate::device::{Address, Buf, Cpu, Device, Grid, Kernel, Queue, Scratch, ScratchMemory};
use crate::error::Error;
use crate::ffi;

/// Parameters of the kernel `sum_squares`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    x: Address,
    out: Address,
    len: u64,
}

/// out `[1]` = Σ x².
pub fn sum_squares(device: &Device, x: &Buf<f32>, out: &mut Buf<f64>) {
    assert_eq!(out.len(), 1, "one sum");
    let kernel = Params { x: x.address(), out: out.address_mut(), len: x.len() as u64 };
    // SAFETY: the lengths are those of the buffers, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches `len` numbers at x and one at out; a task owns one partial sum.
unsafe impl Kernel for Params {
    const NAME: &'static str = "sum_squares";

    /// One partial sum for each chunk.
    fn scratch(&self) -> Scratch {
        let chunks = (self.len as usize).div_ceil(TASK);
        Scratch { shared: chunks * size_of::<f64>(), per_thread: 0 }
    }

    unsafe fn run_on_cpu(&self, cpu: &Cpu, scratch: ScratchMemory) {
        let len = self.len as usize;
        for_each_piece(cpu, 1, len, |_, chunk| {
            // SAFETY: the caller vouches for x; a task owns the partial sum of its chunk.
            let (x, sum) = unsafe {
                (
                    slice::<f32>(self.x, chunk.start, chunk.len()),
                    slice_mut::<f64>(scratch.shared(), chunk.start / TASK, 1),
                )
            };
            sum[0] = sum_of(cpu.simd(), x);
        });
        let chunks = len.div_ceil(TASK);
        let sum = (0..chunks).fold(0.0, |sum, chunk| {
            // SAFETY: the tasks above have written one sum for each chunk.
            sum + unsafe { slice::<f64>(scratch.shared(), chunk, 1) }[0]
        });
        // SAFETY: the caller vouches for out.
        let out = unsafe { slice_mut::<f64>(self.out, 0, 1) };
        out[0] = sum;
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        let pieces = (self.len as usize).div_ceil(TASK);
        let partial = queue.scratch(pieces * size_of::<f64>())?;
        let params = ffi::SumSquares {
            x: self.x.number(),
            partial: partial.number(),
            out: self.out.number(),
            len: self.len,
        };
        // SAFETY: the caller vouches for x and out; there is a partial sum for each piece.
        unsafe {
            queue.launch("sum_squares", Grid::row(pieces), &params)?;
            queue.launch("sum_squares_total", Grid::row(1), &params)
        }
    }
}

per_simd! {
    fn sum_of<E: Element>(x: &[E]) -> f64 {
        lanes_sum(x, |x| {
            let x = x.real().to_f64();
            x * x
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Dtype;
    use crate::ops::check::normal;
    use crate::ops::host::{LENGTHS, assert_same_for_any_thread_count, buf, devices, numbers};

    fn run(device: &Device, x: &[f32]) -> f64 {
        let mut out = buf(device, &[f64::NAN]);
        sum_squares(device, &buf(device, x), &mut out);
        device.synchronize().unwrap();
        numbers(device, &out)[0]
    }

    fn floats(len: usize) -> Vec<f32> {
        normal(4, len).map(|x| x as f32).collect()
    }

    #[test]
    fn every_length_and_instruction_set_gives_the_plain_sum() {
        for device in devices(Dtype::F32) {
            for len in LENGTHS.into_iter().chain([TASK - 1, TASK, TASK + 1, 5 * TASK + 3]) {
                let x = floats(len);
                let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let error = (run(&device, &x) - expected).abs();
                assert!(error <= 1e-13 * expected, "{len}: {error:e} of {expected}");
            }
        }
    }

    #[test]
    fn squares_beyond_the_range_of_f32_are_counted() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let (large, small) = (f64::from(1e30f32), f64::from(1e-30f32));
        assert_eq!(run(&device, &[1e30]), large * large);
        assert_eq!(run(&device, &[1e-30]), small * small);
        assert!(run(&device, &[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        let x = floats(9 * TASK + 5);
        assert_same_for_any_thread_count(Dtype::F32, |device| vec![run(device, &x)]);
    }
}
