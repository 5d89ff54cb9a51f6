//! Copies between matrices of any element and stride, and sums of two matrices.
//!
//! A copy is also the conversion between elements; whatever the two are, it rounds once.

use std::marker::PhantomData;

use super::element::{Element, Real, per_simd, with_element};
use super::tasks::for_each_piece;
use super::{slice, slice_mut};
use crate::device::{
    Address, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory, narrow,
};
use crate::error::Error;
use crate::ffi;

/// Parameters of the kernel `copy`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    from: Address,
    to: Address,
    rows: u64,
    cols: u64,
    from_stride: u64,
    to_stride: u64,
    from_dtype: Dtype,
    to_dtype: Dtype,
}

/// Parameters of the kernel `add`.
#[derive(Clone, Copy)]
#[repr(C)]
struct AddParams {
    a: Address,
    b: Address,
    out: Address,
    rows: u64,
    cols: u64,
    a_stride: u64,
    b_stride: u64,
    out_stride: u64,
    dtype: Dtype,
}

/// to [rows, cols] = from [rows, cols], converted to the element of `to` with one rounding.
pub fn copy(device: &Device, from: Mat, to: MatMut) {
    assert_eq!((to.rows, to.cols), (from.rows, from.cols), "a copy has the shape of its source");
    let kernel = Params {
        from: from.address,
        to: to.address,
        rows: to.rows as u64,
        cols: to.cols as u64,
        from_stride: from.stride as u64,
        to_stride: to.stride as u64,
        from_dtype: from.dtype,
        to_dtype: to.dtype,
    };
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

/// out [rows, cols] = a + b, rounded once; all three of one element.
pub fn add(device: &Device, a: Mat, b: Mat, out: MatMut) {
    let shape = (out.rows, out.cols, out.dtype);
    assert_eq!((a.rows, a.cols, a.dtype), shape, "a must be like out");
    assert_eq!((b.rows, b.cols, b.dtype), shape, "b must be like out");
    let kernel = AddParams {
        a: a.address,
        b: b.address,
        out: out.address,
        rows: out.rows as u64,
        cols: out.cols as u64,
        a_stride: a.stride as u64,
        b_stride: b.stride as u64,
        out_stride: out.stride as u64,
        dtype: out.dtype,
    };
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches rows of the stated widths and strides only; a task owns its piece of a row.
unsafe impl Kernel for Params {
    const NAME: &'static str = "copy";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.from_dtype, copy_from(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        for dtype in [self.from_dtype, self.to_dtype] {
            let fits = dtype != Dtype::F64;
            queue.require(Self::NAME, fits, || format!("its numbers are {dtype:?}"))?;
        }
        let params = ffi::Cast {
            from: self.from.number(),
            to: self.to.number(),
            rows: self.rows,
            cols: self.cols,
            from_stride: self.from_stride,
            to_stride: self.to_stride,
            from_wide: u32::from(self.from_dtype == Dtype::F32),
            to_wide: u32::from(self.to_dtype == Dtype::F32),
        };
        // The trainable numbers are one row, which many blocks share, four numbers to a thread.
        let share = (self.cols as usize).div_ceil(4 * 256).min(1024);
        let grid = Grid([self.rows as usize, share, 1]);
        // SAFETY: passed on from the caller.
        unsafe { queue.launch("cast", grid, &params) }
    }
}

// SAFETY: as above.
unsafe impl Kernel for AddParams {
    const NAME: &'static str = "add";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.dtype, add_on_cpu(self, cpu));
    }

    /// The GPU adds b to what is in out, so a goes there first, where it is not there yet.
    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        queue.require_bf16(Self::NAME, self.dtype)?;
        let copy = Params {
            from: self.a,
            to: self.out,
            rows: self.rows,
            cols: self.cols,
            from_stride: self.a_stride,
            to_stride: self.out_stride,
            from_dtype: self.dtype,
            to_dtype: self.dtype,
        };
        let params = ffi::Rows {
            packed: self.out.number(),
            spread: self.b.number(),
            index: 0,
            packed_stride: self.out_stride,
            spread_stride: self.b_stride,
            cols: narrow(self.cols),
        };
        // SAFETY: passed on from the caller.
        unsafe {
            if self.a != self.out || self.a_stride != self.out_stride {
                copy.run_on_gpu(queue)?;
            }
            queue.launch("add_rows", Grid::row(self.rows as usize), &params)
        }
    }
}

/// A matrix to read whose element is known to the compiler.
#[derive(Clone, Copy)]
pub(super) struct Source<E> {
    address: Address,
    stride: usize,
    element: PhantomData<E>,
}

impl<E: Element> Source<E> {
    pub(super) fn new(address: Address, stride: u64) -> Self {
        Self { address, stride: stride as usize, element: PhantomData }
    }

    /// `len` elements of row `row` from column `start` on.
    ///
    /// # Safety
    /// As for [`slice`].
    pub(super) unsafe fn piece<'a>(&self, row: usize, start: usize, len: usize) -> &'a [E] {
        // SAFETY: the caller vouches for it.
        unsafe { slice(self.address, row * self.stride + start, len) }
    }
}

fn copy_from<F: Element>(p: &Params, cpu: &Cpu) {
    let from = Source::<F>::new(p.from, p.from_stride);
    with_element!(p.to_dtype, copy_to(p, cpu, from));
}

fn copy_to<T: Element>(p: &Params, cpu: &Cpu, from: Source<impl Element>) {
    for_each_piece(cpu, p.rows as usize, p.cols as usize, |row, columns| {
        let start = row * p.to_stride as usize + columns.start;
        // SAFETY: the caller of `run_on_cpu` vouches for both matrices; a task owns its piece.
        let (from, to) = unsafe {
            (
                from.piece(row, columns.start, columns.len()),
                slice_mut::<T>(p.to, start, columns.len()),
            )
        };
        convert(cpu.simd(), from, to);
    });
}

fn add_on_cpu<E: Element>(p: &AddParams, cpu: &Cpu) {
    for_each_piece(cpu, p.rows as usize, p.cols as usize, |row, columns| {
        let start = |stride: u64| row * stride as usize + columns.start;
        // SAFETY: the caller of `run_on_cpu` vouches for all matrices; a task owns its piece.
        let (a, b, out) = unsafe {
            (
                slice::<E>(p.a, start(p.a_stride), columns.len()),
                slice::<E>(p.b, start(p.b_stride), columns.len()),
                slice_mut::<E>(p.out, start(p.out_stride), columns.len()),
            )
        };
        sum(cpu.simd(), a, b, out);
    });
}

per_simd! {
    fn convert<T: Element>(from: &[impl Element], to: &mut [T]) {
        for (to, from) in to.iter_mut().zip(from) {
            let value = from.real().to_f64();
            let value = if T::DTYPE == Dtype::Bf16 { rounded_to_odd(value) } else { value };
            *to = T::from_real(T::Real::from_f64(value));
        }
    }
}

per_simd! {
    fn sum<E: Element>(a: &[E], b: &[E], out: &mut [E]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = E::from_real(a.real() + b.real());
        }
    }
}

/// `value` cut to the 24 bits of an f32, the last of them set if anything was cut off: rounding
/// that to bf16 gives what rounding `value` itself would give. f32 and bf16 values stay as they are.
#[inline(always)]
fn rounded_to_odd(value: f64) -> f64 {
    const CUT: u64 = (1 << 29) - 1;
    let bits = value.to_bits();
    let sticky = u64::from(bits & CUT != 0) << 29;
    f64::from_bits(bits & !CUT | sticky)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::check::normal;
    use crate::ops::host::{LENGTHS, act, assert_same_for_any_thread_count, devices, values};

    const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F32, Dtype::F64];

    fn rounded(dtype: Dtype, value: f64) -> f64 {
        match dtype {
            Dtype::Bf16 => f64::from(nearest_bf16(value)),
            Dtype::F32 => f64::from(value as f32),
            Dtype::F64 => value,
        }
    }

    /// The nearest of the neighbours of a truncated `value`, the even one on a tie.
    fn nearest_bf16(value: f64) -> bf16 {
        let middle = bf16::from_f64(value).to_bits();
        (middle.saturating_sub(1)..=middle.saturating_add(1))
            .map(bf16::from_bits)
            .min_by_key(|x| ((f64::from(*x) - value).abs().to_bits(), x.to_bits() & 1))
            .unwrap()
    }

    #[test]
    fn every_pair_of_elements_converts_with_one_rounding() {
        for device in devices(Dtype::F32) {
            for (from, to) in DTYPES.iter().flat_map(|f| DTYPES.map(|t| (*f, t))) {
                for len in LENGTHS {
                    let source = act(&device, from, &normal(1, len).collect::<Vec<_>>());
                    let mut target = act(&device, to, &vec![0.0; len]);
                    copy(&device, source.view(1, len), target.view_mut(1, len));
                    let expected: Vec<f64> =
                        values(&device, &source).iter().map(|x| rounded(to, *x)).collect();
                    assert_eq!(values(&device, &target), expected, "{from:?} to {to:?}, {len}");
                }
            }
        }
    }

    /// 1 + 2⁻⁸ lies between two bf16 numbers; f32 does not see the 2⁻⁴⁰ beside it.
    #[test]
    fn f64_beside_a_tie_is_not_rounded_twice() {
        let device = Device::cpu(1, Dtype::F64, u64::MAX);
        let (tie, little) = (1.0 + 2f64.powi(-8), 2f64.powi(-40));
        let source = act(&device, Dtype::F64, &[tie - little, tie, tie + little, -tie - little]);
        let mut target = act(&device, Dtype::Bf16, &[0.0; 4]);
        copy(&device, source.view(1, 4), target.view_mut(1, 4));
        let above = 1.0 + 2f64.powi(-7);
        assert_eq!(values(&device, &target), [1.0, 1.0, above, -above]);
    }

    #[test]
    fn infinities_and_nan_are_copied() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let source = act(&device, Dtype::F64, &[f64::INFINITY, f64::NEG_INFINITY, f64::NAN]);
        let mut target = act(&device, Dtype::Bf16, &[0.0; 3]);
        copy(&device, source.view(1, 3), target.view_mut(1, 3));
        let found = values(&device, &target);
        assert_eq!(found[..2], [f64::INFINITY, f64::NEG_INFINITY]);
        assert!(found[2].is_nan());
    }

    #[test]
    fn strides_are_followed_and_the_gap_is_left_alone() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let source = act(&device, Dtype::F32, &(0..21).map(f64::from).collect::<Vec<_>>());
        let mut target = act(&device, Dtype::Bf16, &[99.0; 15]);
        copy(&device, source.view(3, 7).columns(4..7), target.view_mut(3, 5).columns(1..4));
        let expected = [[99.0, 4.0, 5.0, 6.0, 99.0], [99.0, 11.0, 12.0, 13.0, 99.0]];
        assert_eq!(values(&device, &target)[..10], expected.concat());
        let mut sums = act(&device, Dtype::F32, &[0.0; 6]);
        let wide = source.view(3, 7);
        add(&device, wide.columns(0..2), wide.columns(5..7), sums.view_mut(3, 2));
        assert_eq!(values(&device, &sums), [5.0, 7.0, 19.0, 21.0, 33.0, 35.0]);
    }

    #[test]
    fn sums_are_rounded_once() {
        for dtype in DTYPES {
            for device in devices(dtype) {
                for len in LENGTHS {
                    let a = act(&device, dtype, &normal(1, len).collect::<Vec<_>>());
                    let b = act(&device, dtype, &normal(2, len).collect::<Vec<_>>());
                    let mut out = act(&device, dtype, &vec![0.0; len]);
                    add(&device, a.view(1, len), b.view(1, len), out.view_mut(1, len));
                    let (a, b) = (values(&device, &a), values(&device, &b));
                    let expected: Vec<f64> =
                        a.iter().zip(&b).map(|(a, b)| rounded(dtype, a + b)).collect();
                    assert_eq!(values(&device, &out), expected, "{dtype:?}, {len}");
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        let numbers: Vec<f64> = normal(3, 100_001).collect();
        assert_same_for_any_thread_count(Dtype::F32, |device| {
            let source = act(device, Dtype::F32, &numbers);
            let mut target = act(device, Dtype::Bf16, &vec![0.0; numbers.len()]);
            let len = numbers.len();
            copy(device, source.view(1, len), target.view_mut(1, len));
            values(device, &target)
        });
    }
}
