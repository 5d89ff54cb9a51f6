//! Gated units: h = act(gate)·up, with gate and up side by side in one matrix [N, 2F].
//!
//! For each activation act(x) = x·c(x), where c is a distribution function; the slope is
//! act′(x) = c(x) + x·c′(x). The gradients are d_gate = dh·up·act′(gate) and d_up = dh·act(gate).
//! Nothing but gate and up is kept between the passes: the way back gives h once more, beside the
//! gradients, for the map that h went into.

use super::element::{Element, Real, per_simd, with_element};
use super::gauss::distribution_and_density;
use super::tasks::for_each_piece;
use super::{slice, slice_mut};
use crate::device::{
    Address, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory, narrow,
};
use crate::error::Error;
use crate::ffi;

/// What is applied to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// x·σ(x).
    Silu = 0,
    /// x·σ(2u) with u = √(2/π)·(x + 0.044715·x³), which equals ½x·(1 + tanh u).
    GeluTanh = 1,
    /// x·Φ(x), Φ being the normal distribution: ½x·(1 + erf(x/√2)).
    Gelu = 2,
}

/// Parameters of the kernel `glu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    gate_up: Address,
    out: Address,
    rows: u64,
    width: u64,
    gate_up_stride: u64,
    out_stride: u64,
    activation: Activation,
    dtype: Dtype,
}

/// Parameters of the kernel `glu_backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct BackwardParams {
    gate_up: Address,
    dh: Address,
    d_gate_up: Address,
    rows: u64,
    width: u64,
    gate_up_stride: u64,
    dh_stride: u64,
    d_gate_up_stride: u64,
    activation: Activation,
    dtype: Dtype,
}

/// out [N, F] = act(gate)·up, with gate_up [N, 2F] = [gate | up].
pub fn forward(device: &Device, gate_up: Mat, activation: Activation, out: MatMut) {
    assert_eq!(
        (2 * out.cols, out.rows, out.dtype),
        (gate_up.cols, gate_up.rows, gate_up.dtype),
        "out must be half as wide as gate_up"
    );
    let kernel = Params {
        gate_up: gate_up.address,
        out: out.address,
        rows: out.rows as u64,
        width: out.cols as u64,
        gate_up_stride: gate_up.stride as u64,
        out_stride: out.stride as u64,
        activation,
        dtype: out.dtype,
    };
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

/// d_gate_up [N, 2F] = the gradient at gate_up [N, 2F], given dh [N, F], whose place h takes.
pub fn backward(
    device: &Device,
    gate_up: Mat,
    activation: Activation,
    dh: MatMut,
    d_gate_up: MatMut,
) {
    assert_eq!(
        (2 * dh.cols, dh.rows, dh.dtype),
        (gate_up.cols, gate_up.rows, gate_up.dtype),
        "dh must be half as wide as gate_up"
    );
    assert_eq!(
        (d_gate_up.cols, d_gate_up.rows, d_gate_up.dtype),
        (gate_up.cols, gate_up.rows, gate_up.dtype),
        "d_gate_up must be like gate_up"
    );
    let kernel = BackwardParams {
        gate_up: gate_up.address,
        dh: dh.address,
        d_gate_up: d_gate_up.address,
        rows: dh.rows as u64,
        width: dh.cols as u64,
        gate_up_stride: gate_up.stride as u64,
        dh_stride: dh.stride as u64,
        d_gate_up_stride: d_gate_up.stride as u64,
        activation,
        dtype: dh.dtype,
    };
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches rows of the stated widths and strides only; a task owns its piece of a row.
unsafe impl Kernel for Params {
    const NAME: &'static str = "glu";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.dtype, forward_on_cpu(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        queue.require_bf16(Self::NAME, self.dtype)?;
        let params = ffi::Glu {
            gate_up: self.gate_up.number(),
            h: self.out.number(),
            d_gate_up: 0,
            gate_up_stride: self.gate_up_stride,
            h_stride: self.out_stride,
            d_gate_up_stride: 0,
            width: narrow(self.width),
            activation: self.activation as u32,
        };
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(self.rows as usize), &params) }
    }
}

// SAFETY: as above.
unsafe impl Kernel for BackwardParams {
    const NAME: &'static str = "glu_backward";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.dtype, backward_on_cpu(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        queue.require_bf16(Self::NAME, self.dtype)?;
        let params = ffi::Glu {
            gate_up: self.gate_up.number(),
            h: self.dh.number(),
            d_gate_up: self.d_gate_up.number(),
            gate_up_stride: self.gate_up_stride,
            h_stride: self.dh_stride,
            d_gate_up_stride: self.d_gate_up_stride,
            width: narrow(self.width),
            activation: self.activation as u32,
        };
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(self.rows as usize), &params) }
    }
}

fn forward_on_cpu<E: Element>(p: &Params, cpu: &Cpu) {
    let width = p.width as usize;
    for_each_piece(cpu, p.rows as usize, width, |row, columns| {
        let start = row * p.gate_up_stride as usize + columns.start;
        let out = row * p.out_stride as usize + columns.start;
        // SAFETY: the caller of `run_on_cpu` vouches for gate_up and out; a task owns its piece.
        let (gate, up, out) = unsafe {
            (
                slice::<E>(p.gate_up, start, columns.len()),
                slice::<E>(p.gate_up, start + width, columns.len()),
                slice_mut::<E>(p.out, out, columns.len()),
            )
        };
        gated(cpu.simd(), gate, up, p.activation, out);
    });
}

fn backward_on_cpu<E: Element>(p: &BackwardParams, cpu: &Cpu) {
    let width = p.width as usize;
    for_each_piece(cpu, p.rows as usize, width, |row, columns| {
        let start = row * p.gate_up_stride as usize + columns.start;
        let dh = row * p.dh_stride as usize + columns.start;
        let d_start = row * p.d_gate_up_stride as usize + columns.start;
        // SAFETY: as in `forward_on_cpu`; d_gate and d_up are different halves of a row.
        let (gate, up, dh, d_gate, d_up) = unsafe {
            (
                slice::<E>(p.gate_up, start, columns.len()),
                slice::<E>(p.gate_up, start + width, columns.len()),
                slice_mut::<E>(p.dh, dh, columns.len()),
                slice_mut::<E>(p.d_gate_up, d_start, columns.len()),
                slice_mut::<E>(p.d_gate_up, d_start + width, columns.len()),
            )
        };
        gradient(cpu.simd(), gate, up, p.activation, dh, d_gate, d_up);
    });
}

per_simd! {
    fn gated<E: Element, const FUSED: bool>(gate: &[E], up: &[E], activation: Activation, out: &mut [E]) {
        match activation {
            Activation::Silu => gated_by::<E, Silu, FUSED>(gate, up, out),
            Activation::GeluTanh => gated_by::<E, GeluTanh, FUSED>(gate, up, out),
            Activation::Gelu => gated_by::<E, Gelu, FUSED>(gate, up, out),
        }
    }
}

per_simd! {
    fn gradient<E: Element, const FUSED: bool>(
        gate: &[E],
        up: &[E],
        activation: Activation,
        dh: &mut [E],
        d_gate: &mut [E],
        d_up: &mut [E],
    ) {
        match activation {
            Activation::Silu => gradient_by::<E, Silu, FUSED>(gate, up, dh, d_gate, d_up),
            Activation::GeluTanh => gradient_by::<E, GeluTanh, FUSED>(gate, up, dh, d_gate, d_up),
            Activation::Gelu => gradient_by::<E, Gelu, FUSED>(gate, up, dh, d_gate, d_up),
        }
    }
}

#[inline(always)]
fn gated_by<E: Element, A: Act, const FUSED: bool>(gate: &[E], up: &[E], out: &mut [E]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = E::from_real(A::value_and_slope::<_, FUSED>(gate.real()).0 * up.real());
    }
}

#[inline(always)]
fn gradient_by<E: Element, A: Act, const FUSED: bool>(
    gate: &[E],
    up: &[E],
    dh: &mut [E],
    d_gate: &mut [E],
    d_up: &mut [E],
) {
    let inputs = gate.iter().zip(up).zip(dh);
    for ((d_gate, d_up), ((gate, up), dh)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
        let (value, slope) = A::value_and_slope::<_, FUSED>(gate.real());
        *d_gate = E::from_real(dh.real() * up.real() * slope);
        *d_up = E::from_real(dh.real() * value);
        *dh = E::from_real(value * up.real());
    }
}

/// An [`Activation`] known to the compiler. Not a closure: those need not be inlined, and would
/// then be compiled for the plainest instruction set.
trait Act {
    /// act(x) and act′(x).
    fn value_and_slope<R: Real, const FUSED: bool>(x: R) -> (R, R);
}

struct Silu;
struct GeluTanh;
struct Gelu;

impl Act for Silu {
    #[inline(always)]
    fn value_and_slope<R: Real, const FUSED: bool>(x: R) -> (R, R) {
        let (c, slope) = logistic::<R, FUSED>(x);
        (x * c, c + x * slope)
    }
}

impl Act for GeluTanh {
    #[inline(always)]
    fn value_and_slope<R: Real, const FUSED: bool>(x: R) -> (R, R) {
        let linear = R::from_f64((8.0 / std::f64::consts::PI).sqrt());
        let cubic = R::from_f64((8.0 / std::f64::consts::PI).sqrt() * 0.044715);
        let (c, slope) = logistic::<R, FUSED>(x * (linear + cubic * x * x));
        let three = R::from_f64(3.0);
        (x * c, c + x * slope * (linear + three * cubic * x * x))
    }
}

impl Act for Gelu {
    #[inline(always)]
    fn value_and_slope<R: Real, const FUSED: bool>(x: R) -> (R, R) {
        let (c, density) = distribution_and_density::<R, FUSED>(x);
        (x * c, c + x * density)
    }
}

/// σ(z) and σ′(z) = σ(z)·σ(−z), both to full relative accuracy: e^(−|z|) neither overflows nor
/// cancels.
#[inline(always)]
fn logistic<R: Real, const FUSED: bool>(z: R) -> (R, R) {
    let e = (-z.max(-z)).exp::<FUSED>();
    let greater = R::ONE / (R::ONE + e);
    let smaller = e * greater;
    let sigmoid = if z < R::ZERO { smaller } else { greater };
    (sigmoid, greater * smaller)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient_error, normal};
    use crate::ops::host::{LENGTHS, act, assert_same_for_any_thread_count, devices, values};

    const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    fn run_forward(
        device: &Device,
        activation: Activation,
        gate_up: &[f64],
        shape: (usize, usize),
    ) -> Vec<f64> {
        let (rows, width) = shape;
        let gate_up = act(device, device.dtype(), gate_up);
        let mut out = device.alloc_act("out", rows * width).unwrap();
        let out_view = out.view_mut(rows, width);
        forward(device, gate_up.view(rows, 2 * width), activation, out_view);
        values(device, &out)
    }

    fn run_backward(
        device: &Device,
        activation: Activation,
        gate_up: &[f64],
        dh: &[f64],
        shape: (usize, usize),
    ) -> Vec<f64> {
        let (rows, width) = shape;
        let gate_up = act(device, device.dtype(), gate_up);
        let mut dh = act(device, device.dtype(), dh);
        let mut out = device.alloc_act("out", rows * 2 * width).unwrap();
        let views = (gate_up.view(rows, 2 * width), dh.view_mut(rows, width));
        backward(device, views.0, activation, views.1, out.view_mut(rows, 2 * width));
        let mut h = device.alloc_act("h", rows * width).unwrap();
        forward(device, gate_up.view(rows, 2 * width), activation, h.view_mut(rows, width));
        assert_eq!(values(device, &dh), values(device, &h), "h in the place of dh");
        values(device, &out)
    }

    /// act(x) as the textbooks have it; erf by its Taylor series, good for |x| < 5.
    fn plain(activation: Activation, x: f64) -> f64 {
        let erf = |z: f64| {
            let (mut term, mut sum) = (z, z);
            for n in 1..200 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => 0.5 * x * (1.0 + u.tanh()),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        }
    }

    #[test]
    fn gradient_equals_finite_differences_in_f64() {
        let device = Device::cpu(2, Dtype::F64, u64::MAX);
        for activation in ALL {
            for shape in [(1, 1), (3, 17), (2, 64)] {
                let x: Vec<f64> = normal(3, shape.0 * shape.1 * 2).collect();
                let error = gradient_error(
                    &x,
                    |x| run_forward(&device, activation, x, shape),
                    |x, dh| run_backward(&device, activation, x, dh, shape),
                );
                assert!(error < 1e-7, "{activation:?} {shape:?}: scaled error {error}");
            }
        }
    }

    #[test]
    fn every_length_and_instruction_set_gives_the_plain_formula() {
        for (dtype, bound) in [(Dtype::F32, 5e-7), (Dtype::F64, 1e-13), (Dtype::Bf16, 4e-3)] {
            for device in devices(dtype) {
                for (activation, len) in ALL.iter().flat_map(|a| LENGTHS.map(|n| (*a, n))) {
                    let input: Vec<f64> = normal(5, 2 * len).collect();
                    let input = values(&device, &act(&device, dtype, &input));
                    let found = run_forward(&device, activation, &input, (1, len));
                    let expected = |i: usize| plain(activation, input[i]) * input[len + i];
                    let largest = (0..len).fold(0.0f64, |m, i| m.max(expected(i).abs()));
                    for (i, found) in found.iter().enumerate() {
                        let error = (found - expected(i)).abs() / largest;
                        assert!(error < bound, "{dtype:?} {activation:?} {len}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_large_gate_passes_or_stops_and_never_gives_nan() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        for activation in ALL {
            let gates = [-1e9, -300.0, -89.0, 89.0, 300.0, 1e9];
            let gate_up = [gates, [1.0; 6]].concat();
            let h = run_forward(&device, activation, &gate_up, (1, 6));
            let d = run_backward(&device, activation, &gate_up, &[1.0; 6], (1, 6));
            for (i, gate) in gates.into_iter().enumerate() {
                let (value, slope) = if gate > 0.0 { (gate, 1.0) } else { (0.0, 0.0) };
                assert!((h[i] - value).abs() < 1e-30, "{activation:?}({gate}) = {}", h[i]);
                assert!((d[i] - slope).abs() < 1e-30, "{activation:?}'({gate}) = {}", d[i]);
            }
        }
    }

    #[test]
    fn strides_are_followed_and_the_gap_is_left_alone() {
        let device = Device::cpu(2, Dtype::F64, u64::MAX);
        let gate_up = act(&device, Dtype::F64, &normal(7, 3 * 12).collect::<Vec<_>>());
        let mut out = act(&device, Dtype::F64, &[9.0; 3 * 7]);
        let view = out.view_mut(3, 7).columns(2..6);
        forward(&device, gate_up.view(3, 12).columns(1..9), Activation::Silu, view);
        let (input, found) = (values(&device, &gate_up), values(&device, &out));
        for (row, col) in (0..21).map(|i| (i / 7, i % 7)) {
            let expected = match (2..6).contains(&col) {
                true => {
                    let gate = row * 12 + 1 + col - 2;
                    plain(Activation::Silu, input[gate]) * input[gate + 4]
                }
                false => 9.0,
            };
            assert!((found[row * 7 + col] - expected).abs() < 1e-14, "{row}, {col}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        let shape = (70, 700);
        let x: Vec<f64> = normal(11, shape.0 * shape.1 * 2).collect();
        assert_same_for_any_thread_count(Dtype::F32, |device| {
            let mut all = run_forward(device, Activation::Gelu, &x, shape);
            let dh = &x[..shape.0 * shape.1];
            all.extend(run_backward(device, Activation::Gelu, &x, dh, shape));
            all
        });
    }
}
