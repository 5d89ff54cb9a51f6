//! RMS normalization: y = x / √(mean(x²) + ε) · w, over rows or over the heads within a row.
//!
//! A row of `cols` numbers is cut into groups of as many numbers as the weight has: one group for
//! the norms of a block, one per head for q and k norms.
//!
//! With r = 1/√(mean(x²) + ε), x̂ = x·r and g = dy·w, the gradient is
//! dx = r·(g − x̂·mean(g·x̂)). Nothing is kept between the passes: r is computed again.

use super::element::{Element, Real, per_simd, with_element};
use super::tasks::for_each_row;
use super::{Write, lanes_sum, slice, slice_mut};
use crate::device::{
    Address, Buf, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory, narrow,
};
use crate::error::Error;
use crate::ffi;

/// How the stored weight stands for the factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Center {
    /// The factor is the weight.
    Zero = 0,
    /// The factor is 1 + weight (Gemma).
    One = 1,
}

/// Weight and constants of one norm.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// The stored weight, one number for each of a group.
    pub weight: &'a Buf<f32>,
    /// ε under the root.
    pub eps: f32,
    /// Meaning of the weight.
    pub center: Center,
}

/// Parameters of the kernel `rmsnorm`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    x: Address,
    weight: Address,
    y: Address,
    rows: u64,
    groups: u64,
    width: u64,
    x_stride: u64,
    y_stride: u64,
    eps: f32,
    center: Center,
    dtype: Dtype,
    write: Write,
}

/// Parameters of the kernel `rmsnorm_backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct BackwardParams {
    forward: Params,
    dy: Address,
    dy_stride: u64,
}

/// y [rows, cols] (=|+=) the norm of x [rows, cols].
pub fn forward(device: &Device, x: Mat, norm: Norm, y: MatMut, write: Write) {
    // SAFETY: `params` has checked that all shapes agree, and the borrows keep them valid.
    unsafe { device.launch(params(x, norm, &y, write)) }
}

/// dx (=|+=) the gradient at x, given dy [rows, cols].
pub fn backward(device: &Device, x: Mat, norm: Norm, dy: Mat, dx: MatMut, write: Write) {
    assert_eq!((dy.rows, dy.cols, dy.dtype), (x.rows, x.cols, x.dtype), "dy must be like x");
    let forward = params(x, norm, &dx, write);
    let kernel = BackwardParams { forward, dy: dy.address, dy_stride: dy.stride as u64 };
    // SAFETY: as in `forward`; dy has the shape of x.
    unsafe { device.launch(kernel) }
}

/// Replaces dy by dx.
pub fn backward_in_place(device: &Device, x: Mat, norm: Norm, dy: MatMut) {
    let forward = params(x, norm, &dy, Write::Set);
    let (address, dy_stride) = (dy.address, dy.stride as u64);
    let kernel = BackwardParams { forward, dy: address, dy_stride };
    // SAFETY: as in `forward`; a group is read whole before any of it is written.
    unsafe { device.launch(kernel) }
}

fn params(x: Mat, norm: Norm, y: &MatMut, write: Write) -> Params {
    let width = norm.weight.len();
    assert_eq!((y.rows, y.cols, y.dtype), (x.rows, x.cols, x.dtype), "y must be like x");
    assert_eq!(x.cols % width, 0, "rows of {} cut into groups of {width}", x.cols);
    Params {
        x: x.address,
        weight: norm.weight.address(),
        y: y.address,
        rows: x.rows as u64,
        groups: (x.cols / width) as u64,
        width: width as u64,
        x_stride: x.stride as u64,
        y_stride: y.stride as u64,
        eps: norm.eps,
        center: norm.center,
        dtype: x.dtype,
        write,
    }
}

// SAFETY: touches rows of the stated widths and strides only; a task owns its row.
unsafe impl Kernel for Params {
    const NAME: &'static str = "rmsnorm";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.dtype, forward_on_cpu(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        // SAFETY: passed on from the caller.
        unsafe { queue_on_gpu(Self::NAME, self, (Address::NULL, 0), queue) }
    }
}

// SAFETY: as above.
unsafe impl Kernel for BackwardParams {
    const NAME: &'static str = "rmsnorm_backward";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.forward.dtype, backward_on_cpu(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        // SAFETY: passed on from the caller.
        unsafe { queue_on_gpu(Self::NAME, &self.forward, (self.dy, self.dy_stride), queue) }
    }
}

/// Queues either kernel: a block for each group of a row, which the GPU takes in pairs of numbers.
unsafe fn queue_on_gpu(
    name: &'static str,
    p: &Params,
    (dy, dy_stride): (Address, u64),
    queue: &Queue,
) -> Result<(), Error> {
    queue.require_bf16(name, p.dtype)?;
    let pairs = [p.width, p.x_stride, p.y_stride, dy_stride].iter().all(|n| n.is_multiple_of(2));
    queue.require(name, pairs, || format!("rows of {} numbers are not pairs", p.width))?;
    let params = ffi::Rmsnorm {
        x: p.x.number(),
        weight: p.weight.number(),
        out: p.y.number(),
        dy: dy.number(),
        x_stride: p.x_stride,
        out_stride: p.y_stride,
        dy_stride,
        groups: narrow(p.groups),
        width: narrow(p.width),
        eps: p.eps,
        center: p.center as u32 as f32,
        add: p.write as u32,
    };
    // SAFETY: passed on from the caller.
    unsafe { queue.launch(name, Grid::row((p.rows * p.groups) as usize), &params) }
}

fn forward_on_cpu<E: Element>(p: &Params, cpu: &Cpu) {
    let (groups, width) = (p.groups as usize, p.width as usize);
    for_each_row(cpu, p.rows as usize, groups * width, |row| {
        // SAFETY: the caller of `run_on_cpu` vouches for x, weight and y; a task owns its rows.
        let (x, weight, y) = unsafe {
            (
                slice::<E>(p.x, row * p.x_stride as usize, groups * width),
                slice::<f32>(p.weight, 0, width),
                slice_mut::<E>(p.y, row * p.y_stride as usize, groups * width),
            )
        };
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            normalize(cpu.simd(), x, weight, p.eps, p.center, y, p.write);
        }
    });
}

fn backward_on_cpu<E: Element>(p: &BackwardParams, cpu: &Cpu) {
    let f = &p.forward;
    let (groups, width) = (f.groups as usize, f.width as usize);
    for_each_row(cpu, f.rows as usize, groups * width, |row| {
        // SAFETY: as in `forward_on_cpu`.
        let (x, weight) = unsafe {
            (
                slice::<E>(f.x, row * f.x_stride as usize, groups * width),
                slice::<f32>(f.weight, 0, width),
            )
        };
        for (g, x) in x.chunks_exact(width).enumerate() {
            let dy = p.dy.cast::<E>().wrapping_add(row * p.dy_stride as usize + g * width);
            let dx = f.y.cast::<E>().wrapping_add(row * f.y_stride as usize + g * width);
            gradient(cpu.simd(), x, weight, f.eps, f.center, dy, dx, f.write);
        }
    });
}

/// r = 1/√(mean(x²) + ε), in f64: its error is that of a whole row at once.
#[inline(always)]
fn rstd<E: Element>(x: &[E], eps: f32) -> E::Real {
    let square = |x: f64| x * x;
    let mean = lanes_sum(x, |x| square(x.real().to_f64())) / x.len() as f64;
    E::Real::from_f64(1.0 / (mean + f64::from(eps)).sqrt())
}

/// What is added to every weight.
#[inline(always)]
fn offset<R: Real>(center: Center) -> R {
    match center {
        Center::Zero => R::ZERO,
        Center::One => R::ONE,
    }
}

#[inline(always)]
fn widened<R: Real>(weight: f32) -> R {
    R::from_f64(f64::from(weight))
}

per_simd! {
    fn normalize<E: Element>(
        x: &[E], weight: &[f32], eps: f32, center: Center, y: &mut [E], write: Write,
    ) {
        let (r, offset) = (rstd(x, eps), offset::<E::Real>(center));
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            write.put(y, x.real() * r * (widened::<E::Real>(*w) + offset));
        }
    }
}

per_simd! {
    /// dx may be dy: of every piece g is computed before dx is written, and the mean before all.
    fn gradient<E: Element>(
        x: &[E], weight: &[f32], eps: f32, center: Center, dy: *mut E, dx: *mut E, write: Write,
    ) {
        const PIECE: usize = 256;
        let (r, offset) = (rstd(x, eps), offset::<E::Real>(center));
        let mut g = [E::Real::ZERO; PIECE];
        let mut sum = E::Real::ZERO;
        for (i, (x, weight)) in x.chunks(PIECE).zip(weight.chunks(PIECE)).enumerate() {
            let g = &mut g[..x.len()];
            // SAFETY: the caller of `run_on_cpu` vouches for a whole group at dy.
            weigh(unsafe { std::slice::from_raw_parts(dy.add(i * PIECE), x.len()) }, weight, offset, g);
            for (g, x) in g.iter_mut().zip(x) {
                *g *= x.real();
            }
            sum += lanes_sum(g, |product| product);
        }
        let mean = sum * r / E::Real::from_f64(x.len() as f64);
        for (i, (x, weight)) in x.chunks(PIECE).zip(weight.chunks(PIECE)).enumerate() {
            let g = &mut g[..x.len()];
            // SAFETY: as above.
            weigh(unsafe { std::slice::from_raw_parts(dy.add(i * PIECE), x.len()) }, weight, offset, g);
            // SAFETY: the caller vouches for a whole group at dx; dy is not looked at meanwhile.
            let dx = unsafe { std::slice::from_raw_parts_mut(dx.add(i * PIECE), x.len()) };
            for ((dx, g), x) in dx.iter_mut().zip(g).zip(x) {
                write.put(dx, r * (*g - x.real() * r * mean));
            }
        }
    }
}

/// g = dy ∘ (weight + offset).
#[inline(always)]
fn weigh<E: Element>(dy: &[E], weight: &[f32], offset: E::Real, g: &mut [E::Real]) {
    for ((g, dy), weight) in g.iter_mut().zip(dy).zip(weight) {
        *g = dy.real() * (widened::<E::Real>(*weight) + offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient_error, normal};

    #[test]
    fn gradient_equals_finite_differences_in_f64() {
        let device = Device::cpu(2, Dtype::F64, u64::MAX);
        for (rows, groups, width) in [(1, 1, 5), (3, 1, 64), (2, 3, 17)] {
            let cols = groups * width;
            let mut weight = device.alloc::<f32>("weight", width).unwrap();
            device.upload(&normal(1, width).map(|w| w as f32).collect::<Vec<_>>(), &mut weight);
            let norm = Norm { weight: &weight, eps: 1e-5, center: Center::One };
            let run = |x: &[f64], dy: Option<&[f64]>| {
                let mut buffers = [(); 3].map(|()| device.alloc_act("t", rows * cols).unwrap());
                let [x_act, y_act, dy_act] = &mut buffers;
                device.upload(bytemuck::cast_slice(x), x_act.bytes_mut());
                let mut out = vec![0.0f64; rows * cols];
                let x = x_act.view(rows, cols);
                match dy {
                    None => forward(&device, x, norm, y_act.view_mut(rows, cols), Write::Set),
                    Some(dy) => {
                        device.upload(bytemuck::cast_slice(dy), dy_act.bytes_mut());
                        let dy = dy_act.view(rows, cols);
                        backward(&device, x, norm, dy, y_act.view_mut(rows, cols), Write::Set);
                    }
                }
                device.download(y_act.bytes(), bytemuck::cast_slice_mut(&mut out));
                out
            };
            let x: Vec<f64> = normal(2, rows * cols).collect();
            let error = gradient_error(&x, |x| run(x, None), |x, dy| run(x, Some(dy)));
            assert!(error < 1e-7, "{rows}x{groups}x{width}: scaled error {error}");
        }
    }
}
