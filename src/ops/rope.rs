//! Rotary position embedding: pairs (i, i + half) of a head turned by the angle of their token.
//!
//! With the cosine c and the sine s of angle i of the token's position,
//! y\[i\] = x\[i\]·c − x\[i+half\]·s and y\[i+half\] = x\[i+half\]·c + x\[i\]·s. The gradient is the
//! turn back: the same with −s. The angles (base, scaling, positions that restart at each record)
//! are the business of whoever makes the tables.

use super::element::{Element, Real, per_simd, with_element};
use super::{slice, slice_mut};
use crate::device::{
    Address, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory, narrow,
};
use crate::error::Error;
use crate::ffi;

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// By the angle.
    Forward = 0,
    /// Back by the angle: turns the gradient at y into the gradient at x.
    Backward = 1,
}

/// Parameters of the kernel `rope`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    x: Address,
    tables: Address,
    rows: u64,
    heads: u64,
    head_dim: u64,
    half: u64,
    x_stride: u64,
    table_stride: u64,
    direction: Direction,
    dtype: Dtype,
}

/// Rows of one task.
const ROWS: usize = 16;

/// Turns every head of x [N, heads·head_dim] in place.
///
/// A row of `tables` (f32 [N, rot], rot even and at most `head_dim`) holds the rot/2 cosines of
/// its token, then the rot/2 sines. The numbers of a head beyond rot stay as they are.
pub fn rotate(device: &Device, x: MatMut, head_dim: usize, tables: Mat, direction: Direction) {
    assert_eq!(x.rows, tables.rows, "one row of tables for each token");
    assert_eq!(tables.dtype, Dtype::F32, "tables are f32");
    assert_eq!(x.cols % head_dim, 0, "rows of {} cut into heads", x.cols);
    assert!(
        tables.cols.is_multiple_of(2) && tables.cols <= head_dim,
        "{} rotated numbers in heads of {head_dim}",
        tables.cols
    );
    let kernel = Params {
        x: x.address,
        tables: tables.address,
        rows: x.rows as u64,
        heads: (x.cols / head_dim) as u64,
        head_dim: head_dim as u64,
        half: (tables.cols / 2) as u64,
        x_stride: x.stride as u64,
        table_stride: tables.stride as u64,
        direction,
        dtype: x.dtype,
    };
    // SAFETY: the shapes agree as asserted, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches rows of the stated widths and strides only; a task owns its rows.
unsafe impl Kernel for Params {
    const NAME: &'static str = "rope";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.dtype, run(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        queue.require_bf16(Self::NAME, self.dtype)?;
        let params = ffi::Rope {
            x: self.x.number(),
            tables: self.tables.number(),
            x_stride: self.x_stride,
            table_stride: self.table_stride,
            heads: narrow(self.heads),
            head_dim: narrow(self.head_dim),
            half: narrow(self.half),
            backward: self.direction as u32,
        };
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(self.rows as usize), &params) }
    }
}

fn run<E: Element>(p: &Params, cpu: &Cpu) {
    let rows = p.rows as usize;
    let (width, head_dim) = ((p.heads * p.head_dim) as usize, p.head_dim as usize);
    cpu.for_each(rows.div_ceil(ROWS), |task| {
        for row in task * ROWS..rows.min((task + 1) * ROWS) {
            // SAFETY: the caller of `run_on_cpu` vouches for x and tables; a task owns its rows.
            let (x, table) = unsafe {
                (
                    slice_mut::<E>(p.x, row * p.x_stride as usize, width),
                    slice::<f32>(p.tables, row * p.table_stride as usize, 2 * p.half as usize),
                )
            };
            turn(cpu.simd(), x, head_dim, table, p.direction);
        }
    });
}

per_simd! {
    fn turn<E: Element>(x: &mut [E], head_dim: usize, table: &[f32], direction: Direction) {
        let (cos, sin) = table.split_at(table.len() / 2);
        let sign = match direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        };
        for head in x.chunks_exact_mut(head_dim) {
            let (left, right) = head[..table.len()].split_at_mut(cos.len());
            for (((a, b), c), s) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                let (c, s) = (E::Real::from_f64(f64::from(*c)), E::Real::from_f64(f64::from(sign * *s)));
                let (from_a, from_b) = (a.real(), b.real());
                *a = E::from_real(from_a * c - from_b * s);
                *b = E::from_real(from_b * c + from_a * s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Simd;
    use crate::ops::check::{download, gradient_error, normal, scaled_error, to_bf16, upload};

    /// Tokens, heads, head dim, rotated numbers of a head.
    const SHAPES: [[usize; 4]; 5] =
        [[1, 1, 2, 2], [5, 3, 10, 6], [17, 2, 64, 64], [3, 2, 80, 32], [2, 1, 5, 0]];

    fn tables([tokens, _, _, rot]: [usize; 4]) -> Vec<f64> {
        let angle = |i: usize| (i / rot + 1) as f64 * 0.9f64.powi((i % (rot / 2)) as i32);
        let entry = |i: usize| {
            if i % rot < rot / 2 { angle(i).cos() } else { angle(i).sin() }
        };
        (0..tokens * rot).map(|i| f64::from(entry(i) as f32)).collect()
    }

    fn run(device: &Device, shape: [usize; 4], x: &[f64], direction: Direction) -> Vec<f64> {
        let [tokens, heads, head_dim, rot] = shape;
        let mut act = upload(device, x, device.dtype());
        let tables = upload(device, &tables(shape), Dtype::F32);
        let x = act.view_mut(tokens, heads * head_dim);
        rotate(device, x, head_dim, tables.view(tokens, rot), direction);
        download(device, &act)
    }

    /// Pairs as complex numbers, in f64.
    fn textbook(shape: [usize; 4], x: &[f64]) -> Vec<f64> {
        let [_, heads, head_dim, rot] = shape;
        let (tables, mut y) = (tables(shape), x.to_vec());
        for head in 0..x.len() / head_dim {
            let (table, x) = (&tables[head / heads * rot..], &x[head * head_dim..]);
            for i in 0..rot / 2 {
                let (c, s) = (table[i], table[i + rot / 2]);
                y[head * head_dim + i] = c * x[i] - s * x[i + rot / 2];
                y[head * head_dim + i + rot / 2] = s * x[i] + c * x[i + rot / 2];
            }
        }
        y
    }

    #[test]
    fn gradient_equals_finite_differences_in_f64() {
        let device = Device::cpu(2, Dtype::F64, u64::MAX);
        for shape in SHAPES {
            let x: Vec<f64> = normal(1, shape[..3].iter().product()).collect();
            let error = gradient_error(
                &x,
                |x| run(&device, shape, x, Direction::Forward),
                |_, dy| run(&device, shape, dy, Direction::Backward),
            );
            assert!(error < 1e-7, "{shape:?}: scaled error {error}");
        }
    }

    #[test]
    fn every_element_and_instruction_set_agrees_with_the_textbook() {
        for (shape, simd) in SHAPES.into_iter().flat_map(|s| Simd::available().map(move |l| (s, l)))
        {
            let x: Vec<f64> = normal(1, shape[..3].iter().product()).map(to_bf16).collect();
            let exact = textbook(shape, &x);
            let error = |dtype| {
                let device = Device::cpu_with(3, simd, dtype, u64::MAX);
                scaled_error(&run(&device, shape, &x, Direction::Forward), &exact)
            };
            assert!(error(Dtype::F64) < 1e-14, "{shape:?} {simd:?} in f64");
            assert!(error(Dtype::F32) < 1e-6, "{shape:?} {simd:?} in f32");
            let rounded: Vec<f64> = exact.iter().map(|y| to_bf16(*y)).collect();
            assert!(
                error(Dtype::Bf16) <= 2.0 * scaled_error(&rounded, &exact),
                "{shape:?} {simd:?}"
            );
        }
    }
}
