//! Cross-entropy of one chunk of rows of logits, and its gradient in the memory of the logits.
//!
//! With y = logits (or their soft cap, cap·tanh(z/cap)), m = max y and Σ = Σ e^(y−m), the loss of a
//! row with target t is ln Σ + m − y\[t\], and its gradient at z is
//! (e^(y−m)/Σ − \[i = t\]) · scale · (1 − (y/cap)²), the last factor with a soft cap only.
//! The caller cuts the rows of a batch into chunks, so that the logits of all of them are never in
//! memory at once, and divides by the count of supervised tokens of the whole optimizer step.

use super::element::{Element, Real, per_simd, with_element};
use super::{lanes_sum, slice, slice_mut};
use crate::device::{
    Address, Buf, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory, narrow,
};
use crate::error::Error;
use crate::ffi;

/// Whether the logits are replaced by their gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gradient {
    /// Losses only; the logits stay.
    None,
    /// The gradient of the sum of the losses times this number: one over the count of supervised
    /// tokens.
    Scale(f32),
}

/// Parameters of the kernel `cross_entropy`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    logits: Address,
    targets: Address,
    losses: Address,
    rows: u64,
    vocabulary: u64,
    stride: u64,
    /// 0 for none.
    soft_cap: f32,
    scale: f32,
    has_gradient: u32,
    dtype: Dtype,
}

/// Numbers whose sum is taken at once: short enough that f32 sums stay exact to 1e-6 for any V.
const PIECE: usize = 1024;

/// losses\[first + r\] = the loss of row r of `logits` [n, V] for the target id
/// targets\[first + r\] (below V), and with [`Gradient::Scale`] the logits replaced by their
/// gradient, to be read through [`gradient_view`].
///
/// Logits are f32, or f64 on an f64 device.
pub fn cross_entropy(
    device: &Device,
    logits: MatMut,
    targets: &Buf<u32>,
    first: usize,
    soft_cap: Option<f32>,
    losses: &mut Buf<f32>,
    gradient: Gradient,
) {
    let end = first + logits.rows;
    assert!(end <= targets.len(), "rows {first}..{end} of {} targets", targets.len());
    assert!(end <= losses.len(), "rows {first}..{end} of {} losses", losses.len());
    assert_eq!(logits.dtype, logits_dtype(device.dtype()), "element of logits");
    assert!(logits.cols > 0, "logits of an empty vocabulary");
    let (has_gradient, scale) = match gradient {
        Gradient::None => (0, 0.0),
        Gradient::Scale(scale) => (1, scale),
    };
    let kernel = Params {
        logits: logits.address,
        targets: targets.address().offset(first * size_of::<u32>()),
        losses: losses.address_mut().offset(first * size_of::<f32>()),
        rows: logits.rows as u64,
        vocabulary: logits.cols as u64,
        stride: logits.stride as u64,
        soft_cap: soft_cap.unwrap_or(0.0),
        scale,
        has_gradient,
        dtype: device.dtype(),
    };
    // SAFETY: the shapes agree as asserted, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

/// The element of logits where activations are `act`: f32, or f64 with f64.
pub const fn logits_dtype(act: Dtype) -> Dtype {
    match act {
        Dtype::Bf16 | Dtype::F32 => Dtype::F32,
        Dtype::F64 => Dtype::F64,
    }
}

/// The gradient [n, V] in elements of `dtype` that [`cross_entropy`] has left in `logits`: each
/// row at the start of the memory of its row of logits.
pub fn gradient_view<'a>(logits: &'a MatMut, dtype: Dtype) -> Mat<'a> {
    let mut view = logits.view();
    view.stride = logits.stride * (logits.dtype.size() / dtype.size());
    view.dtype = dtype;
    view
}

// SAFETY: touches rows of the stated width and stride, and as many targets and losses, only; a
// task owns its row and its loss.
unsafe impl Kernel for Params {
    const NAME: &'static str = "cross_entropy";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.dtype, run(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        queue.require_bf16(Self::NAME, self.dtype)?;
        let params = ffi::CrossEntropy {
            logits: self.logits.number(),
            targets: self.targets.number(),
            losses: self.losses.number(),
            stride: self.stride,
            vocabulary: narrow(self.vocabulary),
            soft_cap: self.soft_cap,
            scale: self.scale,
            has_gradient: self.has_gradient,
        };
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(self.rows as usize), &params) }
    }
}

fn run<E: Element>(p: &Params, cpu: &Cpu) {
    let vocabulary = p.vocabulary as usize;
    cpu.for_each(p.rows as usize, |row| {
        // SAFETY: the caller of `run_on_cpu` vouches for all three; a task owns its row.
        let (logits, target, loss) = unsafe {
            (
                slice_mut::<E::Real>(p.logits, row * p.stride as usize, vocabulary),
                slice::<u32>(p.targets, row, 1)[0] as usize,
                &mut slice_mut::<f32>(p.losses, row, 1)[0],
            )
        };
        *loss = run_row::<E>(cpu.simd(), logits, target, p);
    });
}

per_simd! {
    fn run_row<E: Element, const FUSED: bool>(
        logits: &mut [E::Real], target: usize, p: &Params,
    ) -> f32 {
        let cap = (p.soft_cap != 0.0).then(|| E::Real::from_f64(f64::from(p.soft_cap)));
        let softmax = Softmax::of::<FUSED>(logits, cap);
        let loss = softmax.sum.ln() + (softmax.max - capped::<_, FUSED>(logits[target], cap));
        if p.has_gradient != 0 {
            let scale = E::Real::from_f64(f64::from(p.scale));
            replace::<E, FUSED>(logits, target, softmax, cap, scale);
        }
        loss.to_f64() as f32
    }
}

/// What all probabilities of a row have in common: p = e^(y − max) / sum.
#[derive(Clone, Copy)]
struct Softmax<R> {
    max: R,
    sum: R,
}

impl<R: Real> Softmax<R> {
    /// Two passes over the row. The soft cap is monotonic: it commutes with the maximum.
    #[inline(always)]
    fn of<const FUSED: bool>(logits: &[R], cap: Option<R>) -> Self {
        let max = capped::<_, FUSED>(lanes_max(logits), cap);
        let mut piece = [R::ZERO; PIECE];
        let mut sum = R::ZERO;
        for logits in logits.chunks(PIECE) {
            let piece = &mut piece[..logits.len()];
            piece.copy_from_slice(logits);
            cap_all::<_, FUSED>(piece, cap);
            for e in &mut *piece {
                *e = (*e - max).exp::<FUSED>();
            }
            sum += lanes_sum(piece, |e| e);
        }
        Self { max, sum }
    }
}

#[inline(always)]
fn capped<R: Real, const FUSED: bool>(z: R, cap: Option<R>) -> R {
    match cap {
        None => z,
        Some(cap) => cap * (z / cap).tanh::<FUSED>(),
    }
}

#[inline(always)]
fn cap_all<R: Real, const FUSED: bool>(numbers: &mut [R], cap: Option<R>) {
    if cap.is_some() {
        for z in numbers {
            *z = capped::<_, FUSED>(*z, cap);
        }
    }
}

#[inline(always)]
fn lanes_max<R: Real>(numbers: &[R]) -> R {
    const LANES: usize = 64;
    let mut lanes = [R::NEG_INFINITY; LANES];
    let chunks = numbers.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(R::NEG_INFINITY, |max, x| max.max(*x));
    for chunk in chunks {
        for (lane, number) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*number);
        }
    }
    lanes.into_iter().fold(rest, R::max)
}

/// Replaces the logits by their gradient, from the front: elements of E are never longer than
/// those of the logits, so no logit is overwritten before it is read.
#[inline(always)]
fn replace<E: Element, const FUSED: bool>(
    logits: &mut [E::Real],
    target: usize,
    softmax: Softmax<E::Real>,
    cap: Option<E::Real>,
    scale: E::Real,
) {
    let weight = scale / softmax.sum;
    let y = capped::<_, FUSED>(logits[target], cap);
    let probability = (y - softmax.max).exp::<FUSED>() / softmax.sum;
    let at_target = (probability - E::Real::ONE) * scale * slope(y, cap);
    let mut piece = [E::Real::ZERO; PIECE];
    for start in (0..logits.len()).step_by(PIECE) {
        let count = PIECE.min(logits.len() - start);
        let piece = &mut piece[..count];
        piece.copy_from_slice(&logits[start..start + count]);
        cap_all::<_, FUSED>(piece, cap);
        let out: &mut [E] = &mut bytemuck::cast_slice_mut(logits)[start..start + count];
        for (out, y) in out.iter_mut().zip(piece) {
            let gradient = (*y - softmax.max).exp::<FUSED>() * weight * slope(*y, cap);
            *out = E::from_real(gradient);
        }
    }
    bytemuck::cast_slice_mut::<_, E>(logits)[target] = E::from_real(at_target);
}

/// Of the soft cap where it gives y.
#[inline(always)]
fn slope<R: Real>(y: R, cap: Option<R>) -> R {
    match cap {
        None => R::ONE,
        Some(cap) => R::ONE - (y / cap) * (y / cap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Act, Simd};
    use crate::ops::check::{download, gradient_error, normal, scaled_error, to_bf16, upload};

    const SCALE: f32 = 0.125;

    fn inputs(rows: usize, vocabulary: usize) -> (Vec<f64>, Vec<u32>) {
        let logits = normal(5, rows * vocabulary).map(|z| to_bf16(4.0 * z)).collect();
        let targets = (0..rows).map(|r| (r * 7919 % vocabulary) as u32).collect();
        (logits, targets)
    }

    /// Losses and gradient of rows whose targets and losses stand second and later in their buffers.
    fn run(
        device: &Device,
        logits: &[f64],
        targets: &[u32],
        soft_cap: Option<f32>,
        gradient: Gradient,
    ) -> (Vec<f64>, Vec<f64>) {
        let (rows, vocabulary) = (targets.len(), logits.len() / targets.len());
        let mut act = upload(device, logits, logits_dtype(device.dtype()));
        let mut ids = device.alloc("targets", rows + 1).unwrap();
        device.upload(&[&[u32::MAX], targets].concat(), &mut ids);
        let mut losses = device.alloc("losses", rows + 1).unwrap();
        let view = act.view_mut(rows, vocabulary);
        let stride = gradient_view(&view, device.dtype()).stride;
        cross_entropy(device, view, &ids, 1, soft_cap, &mut losses, gradient);
        let mut out = vec![0.0f32; rows + 1];
        device.download(&losses, &mut out);
        assert_eq!(out[0], 0.0, "a loss before the first");
        let losses = out[1..].iter().map(|loss| f64::from(*loss)).collect();
        let left = reread(device, &act, device.dtype());
        (losses, left.chunks(stride).flat_map(|row| row[..vocabulary].to_vec()).collect())
    }

    /// The memory of `act` as elements of `dtype`.
    fn reread(device: &Device, act: &Act, dtype: Dtype) -> Vec<f64> {
        let mut bytes = vec![0u8; act.bytes().len()];
        device.download(act.bytes(), &mut bytes);
        let mut same = device.alloc_dense("same", bytes.len() / dtype.size(), dtype).unwrap();
        device.upload(&bytes, same.bytes_mut());
        download(device, &same)
    }

    /// −ln softmax(y)\[t\] of each row, in f64.
    fn textbook(logits: &[f64], targets: &[u32], soft_cap: Option<f32>) -> Vec<f64> {
        let cap = |z: f64| soft_cap.map_or(z, |c| f64::from(c) * (z / f64::from(c)).tanh());
        let rows = logits.chunks(logits.len() / targets.len()).zip(targets);
        rows.map(|(row, t)| {
            let sum: f64 = row.iter().map(|z| (cap(*z) - cap(row[*t as usize])).exp()).sum();
            sum.ln()
        })
        .collect()
    }

    #[test]
    fn gradient_equals_finite_differences_in_f64() {
        let device = Device::cpu(2, Dtype::F64, u64::MAX);
        for (rows, vocabulary, soft_cap) in [(1, 2, None), (3, 37, None), (2, 1030, Some(5.0))] {
            let (logits, targets) = inputs(rows, vocabulary);
            let sum = |z: &[f64]| vec![textbook(z, &targets, soft_cap).iter().sum::<f64>()];
            let error = gradient_error(&logits, sum, |z, dy| {
                let gradient = run(&device, z, &targets, soft_cap, Gradient::Scale(SCALE)).1;
                gradient.iter().map(|g| g / f64::from(SCALE) * dy[0]).collect()
            });
            assert!(error < 1e-7, "{rows} x {vocabulary}: scaled error {error}");
        }
    }

    #[test]
    fn losses_and_f32_gradients_agree_with_f64() {
        for (rows, vocabulary) in [(1, 1), (4, 80), (3, 1025), (2, 151_937)] {
            let (logits, targets) = inputs(rows, vocabulary);
            for soft_cap in [None, Some(30.0)] {
                let exact = textbook(&logits, &targets, soft_cap);
                let f64_device = Device::cpu(1, Dtype::F64, u64::MAX);
                let scale = Gradient::Scale(SCALE);
                let gradient = run(&f64_device, &logits, &targets, soft_cap, scale).1;
                for simd in Simd::available() {
                    let device = Device::cpu_with(2, simd, Dtype::F32, u64::MAX);
                    let (losses, ours) = run(&device, &logits, &targets, soft_cap, scale);
                    let worst = losses.iter().zip(&exact).map(|(a, b)| (a - b).abs());
                    let worst = worst.fold(0.0, f64::max);
                    assert!(
                        worst < 2e-6 * (1.0 + exact[0]),
                        "{vocabulary} {simd:?}: loss off by {worst}"
                    );
                    if vocabulary > 1 {
                        let error = scaled_error(&ours, &gradient);
                        assert!(error < 1e-5, "{vocabulary} {simd:?}: gradient error {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_gradients_are_the_rounded_f32_ones_and_stand_at_the_start_of_each_row() {
        let (logits, targets) = inputs(3, 2049);
        let on = |dtype| {
            let device = Device::cpu(2, dtype, u64::MAX);
            run(&device, &logits, &targets, None, Gradient::Scale(SCALE)).1
        };
        let rounded: Vec<f64> = on(Dtype::F32).into_iter().map(to_bf16).collect();
        assert_eq!(on(Dtype::Bf16), rounded);
    }

    #[test]
    fn without_a_gradient_the_logits_stay_and_the_losses_are_the_same() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let (logits, targets) = inputs(3, 100);
        let (losses, left) = run(&device, &logits, &targets, None, Gradient::None);
        let with = run(&device, &logits, &targets, None, Gradient::Scale(SCALE)).0;
        assert_eq!((losses, left), (with, logits));
    }

    #[test]
    fn extreme_logits_give_finite_losses_and_a_nan_is_not_hidden() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let losses = |logits: &[f64]| run(&device, logits, &[1], None, Gradient::None).0[0];
        assert_eq!(losses(&[1e30, 1e30, -1e30]), f64::from(2.0f32.ln()));
        assert_eq!(losses(&[1e4, -1e4]), 2e4);
        assert!(losses(&[f64::NAN, 0.0, 1.0]).is_nan());
    }

    #[test]
    fn thread_count_changes_no_bit() {
        let (logits, targets) = inputs(5, 3000);
        let on = |threads| {
            let device = Device::cpu(threads, Dtype::Bf16, u64::MAX);
            run(&device, &logits, &targets, Some(20.0), Gradient::Scale(SCALE))
        };
        let alone = on(1);
        for threads in [2, 3, 8] {
            assert!(on(threads) == alone, "{threads} threads differ from one");
        }
    }
}
