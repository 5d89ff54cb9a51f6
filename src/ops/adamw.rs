//! AdamW on a flat range of trainable numbers, with moments in f32.
//!
//! The formula is that of torch's single-tensor AdamW (Loshchilov and Hutter, "Decoupled Weight
//! Decay Regularization", 2019): w ← w·(1 − lr·decay), m ← β₁·m + (1 − β₁)·g,
//! v ← β₂·v + (1 − β₂)·g², w ← w − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε), after g was multiplied
//! by the clipping factor. Each number is read into f64 and rounded once when it is stored: in f32,
//! 1 − β₂ alone would be off by 1e-5. Memory is what the kernel waits for, not arithmetic.
//!
//! For moments in eight bits see [`adamw_8bit`](super::adamw_8bit).

use std::ops::Range;

use super::element::{Element, Real, per_simd};
use super::tasks::for_each_piece;
use super::{slice, slice_mut};
use crate::device::{Address, Buf, Cpu, Device, Grid, Kernel, Queue, ScratchMemory, Simd};
use crate::error::Error;
use crate::ffi;

/// What a step depends on besides the numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Factor of every gradient.
    pub clip: f64,
    /// The number of this step, from 1.
    pub step: u64,
}

/// [`Hyper`] as the kernels use it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Step {
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) clip: f64,
    /// 1 − lr·decay.
    pub(super) keep: f64,
    /// lr/(1 − β₁ᵗ).
    pub(super) size: f64,
    /// √(1 − β₂ᵗ).
    pub(super) root: f64,
    pub(super) epsilon: f64,
}

/// A trainable number with its two moments.
#[derive(Clone, Copy)]
struct Number {
    value: f64,
    m: f64,
    v: f64,
}

/// Parameters of the kernel `adamw`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    values: Address,
    grads: Address,
    m: Address,
    v: Address,
    start: u64,
    state_start: u64,
    len: u64,
    step: Step,
}

/// Moments in f32.
pub struct State32<'a> {
    /// First moments.
    pub m: &'a mut Buf<f32>,
    /// Second moments.
    pub v: &'a mut Buf<f32>,
    /// Where those of the first number lie.
    pub start: usize,
}

/// One step on the numbers `range` of `values`, whose gradients have the same places in `grads`.
pub fn adamw(
    device: &Device,
    values: &mut Buf<f32>,
    grads: &Buf<f32>,
    state: State32,
    range: Range<usize>,
    hyper: &Hyper,
) {
    let State32 { m, v, start } = state;
    let of_state = start..start + range.len();
    let ranges = [(&range, values.len()), (&range, grads.len()), (&of_state, m.len())];
    for (range, len) in ranges.into_iter().chain([(&of_state, v.len())]) {
        assert!(range.start <= range.end && range.end <= len, "range {range:?} of {len} numbers");
    }
    let kernel = Params {
        values: values.address_mut(),
        grads: grads.address(),
        m: m.address_mut(),
        v: v.address_mut(),
        start: range.start as u64,
        state_start: start as u64,
        len: range.len() as u64,
        step: Step::new(hyper),
    };
    // SAFETY: the range lies within all buffers, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

impl Step {
    pub(super) fn new(hyper: &Hyper) -> Self {
        assert!(hyper.step > 0, "step {}: steps count from 1", hyper.step);
        let correction = |beta: f64| 1.0 - beta.powf(hyper.step as f64);
        Self {
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            clip: hyper.clip,
            keep: 1.0 - hyper.learning_rate * hyper.weight_decay,
            size: hyper.learning_rate / correction(hyper.beta1),
            root: correction(hyper.beta2).sqrt(),
            epsilon: hyper.epsilon,
        }
    }

    /// One step on `values` and their moments, all of one length.
    pub(super) fn take(
        &self,
        simd: Simd,
        values: &mut [f32],
        grads: &[f32],
        m: &mut [f32],
        v: &mut [f32],
    ) {
        update(simd, values, grads, m, v, self);
    }

    /// `number` after one step with gradient `g`.
    #[inline(always)]
    fn apply(&self, number: Number, g: f64) -> Number {
        let g = g * self.clip;
        let m = self.beta1 * number.m + (1.0 - self.beta1) * g;
        let v = self.beta2 * number.v + (1.0 - self.beta2) * g * g;
        let value =
            number.value * self.keep - self.size * m / (v.sqrt() / self.root + self.epsilon);
        Number { value, m, v }
    }
}

// SAFETY: touches `len` numbers from `start` (moments: `state_start`) on only; a task owns its chunk.
unsafe impl Kernel for Params {
    const NAME: &'static str = "adamw";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        for_each_piece(cpu, 1, self.len as usize, |_, chunk| {
            let (start, len) = (self.start as usize + chunk.start, chunk.len());
            let state = self.state_start as usize + chunk.start;
            // SAFETY: the caller vouches for all buffers; a task owns its chunk.
            let (values, grads, m, v) = unsafe {
                (
                    slice_mut::<f32>(self.values, start, len),
                    slice::<f32>(self.grads, start, len),
                    slice_mut::<f32>(self.m, state, len),
                    slice_mut::<f32>(self.v, state, len),
                )
            };
            self.step.take(cpu.simd(), values, grads, m, v);
        });
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        const THREADS: usize = 256;
        let at = |address: Address, start: u64| address.offset(start as usize * 4).number();
        let Step { beta1, beta2, clip, keep, size, root, epsilon } = self.step;
        let params = ffi::Adamw {
            values: at(self.values, self.start),
            grads: at(self.grads, self.start),
            m: at(self.m, self.state_start),
            v: at(self.v, self.state_start),
            len: self.len,
            beta1,
            beta2,
            clip,
            keep,
            size,
            root,
            epsilon,
        };
        let blocks = (self.len as usize).div_ceil(THREADS);
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(blocks), &params) }
    }
}

per_simd! {
    fn update<E: Element>(values: &mut [E], grads: &[E], m: &mut [E], v: &mut [E], step: &Step) {
        let store = |x: f64| E::from_real(E::Real::from_f64(x));
        for (((value, g), m), v) in values.iter_mut().zip(grads).zip(m).zip(v) {
            let before = Number {
                value: value.real().to_f64(),
                m: m.real().to_f64(),
                v: v.real().to_f64(),
            };
            let after = step.apply(before, g.real().to_f64());
            (*value, *m, *v) = (store(after.value), store(after.m), store(after.v));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Dtype;
    use crate::ops::check::normal;
    use crate::ops::host::{LENGTHS, assert_same_for_any_thread_count, buf, devices, numbers};

    const HYPER: Hyper = Hyper {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip: 0.5,
        step: 1,
    };

    fn floats(seed: u64, len: usize) -> Vec<f32> {
        normal(seed, len).map(|x| x as f32).collect()
    }

    /// Values and moments after `steps` steps on `range` of `len` numbers.
    fn run(device: &Device, len: usize, range: Range<usize>, steps: u64) -> [Vec<f32>; 3] {
        let mut values = buf(device, &floats(1, len));
        let [mut m, mut v] = [(); 2].map(|()| buf(device, &vec![0.0f32; len]));
        for step in 1..=steps {
            let grads = buf(device, &floats(100 + step, len));
            let hyper = Hyper { step, ..HYPER };
            adamw(
                device,
                &mut values,
                &grads,
                State32 { m: &mut m, v: &mut v, start: range.start },
                range.clone(),
                &hyper,
            );
        }
        [&values, &m, &v].map(|buf| numbers(device, buf))
    }

    /// torch's single-tensor formula, all in f64.
    fn plain(len: usize, steps: u64) -> [Vec<f64>; 3] {
        let mut values: Vec<f64> = floats(1, len).into_iter().map(f64::from).collect();
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        for step in 1..=steps {
            let t = step as i32;
            let step_size = HYPER.learning_rate / (1.0 - HYPER.beta1.powi(t));
            let root = (1.0 - HYPER.beta2.powi(t)).sqrt();
            for (i, g) in floats(100 + step, len).into_iter().enumerate() {
                let g = f64::from(g) * HYPER.clip;
                values[i] -= HYPER.learning_rate * HYPER.weight_decay * values[i];
                m[i] += (g - m[i]) * (1.0 - HYPER.beta1);
                v[i] = HYPER.beta2 * v[i] + (1.0 - HYPER.beta2) * g * g;
                values[i] -= step_size * m[i] / (v[i].sqrt() / root + HYPER.epsilon);
            }
        }
        [values, m, v]
    }

    #[test]
    fn every_length_and_instruction_set_follows_the_plain_formula() {
        for device in devices(Dtype::F32) {
            for len in LENGTHS {
                let found = run(&device, len, 0..len, 5);
                for (found, expected) in found.iter().zip(plain(len, 5)) {
                    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                    for (found, expected) in found.iter().zip(expected) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error <= 5e-7 * largest, "{len}: {found} for {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_outside_the_range_stay_as_they_are() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let [values, m, v] = run(&device, 100, 17..60, 3);
        let start = floats(1, 100);
        for i in 0..100 {
            let inside = (17..60).contains(&i);
            assert_eq!(values[i] != start[i], inside, "value {i}");
            assert_eq!(m[i] != 0.0 && v[i] != 0.0, inside, "moments {i}");
        }
    }

    #[test]
    fn without_a_gradient_only_the_decay_moves_a_number() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let mut values = buf(&device, &[2.0f32]);
        let [mut m, mut v] = [(); 2].map(|()| buf(&device, &[0.0f32]));
        let grads = buf(&device, &[0.0f32]);
        let state = State32 { m: &mut m, v: &mut v, start: 0 };
        adamw(&device, &mut values, &grads, state, 0..1, &HYPER);
        assert_eq!(numbers(&device, &values), [2.0 * (1.0 - 1e-2 * 0.1) as f32]);
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        assert_same_for_any_thread_count(Dtype::F32, |device| {
            run(device, 100_003, 5..100_001, 2).concat()
        });
    }
}
