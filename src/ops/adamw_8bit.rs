//! AdamW with moments in eight bits: blocks of 256 codes with one scale, the signed dynamic map for
//! m and the unsigned one for v (Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
//! 2021; bitsandbytes' AdamW8bit).
//!
//! A block is decoded, stepped as [`adamw`](super::adamw) does, and encoded again; the value is
//! moved by the moments before they are rounded. Blocks of zeros decode to zeros, so fresh buffers
//! are fresh moments, and a number that never had a gradient never moves.
//!
//! Decay comes before the step, as in torch and on bitsandbytes' CPU; its CUDA kernel decays after
//! it, which differs by lr·decay of one update. That kernel also pushes an m that rounds to zero to
//! the next code of its sign; here zero stays zero. Tensors of fewer than 4096 numbers keep f32
//! moments: that is for the caller to decide.

use std::ops::Range;

use super::adamw::{Hyper, Step};
use super::tasks::for_each_piece;
use super::{slice, slice_mut};
use crate::device::{Address, Buf, Cpu, Device, Grid, Kernel, Queue, ScratchMemory};
use crate::error::Error;
use crate::ffi;
use crate::quant::{SIGNED, SMALLEST_DIVISOR, STATE_BLOCK, UNSIGNED, decode_states, encode_states};

/// Moments in eight bits.
pub struct State8<'a> {
    /// Codes of first moments.
    pub m: &'a mut Buf<u8>,
    /// Codes of second moments.
    pub v: &'a mut Buf<u8>,
    /// Scales of first moments, one for each block.
    pub m_absmax: &'a mut Buf<f32>,
    /// Scales of second moments, one for each block.
    pub v_absmax: &'a mut Buf<f32>,
    /// The values of [`SIGNED`], for devices that cannot see the table itself.
    pub signed_map: &'a Buf<f32>,
    /// The values of [`UNSIGNED`], likewise.
    pub unsigned_map: &'a Buf<f32>,
}

/// Parameters of the kernel `adamw_8bit`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    values: Address,
    grads: Address,
    m: Address,
    v: Address,
    m_absmax: Address,
    v_absmax: Address,
    signed_map: Address,
    unsigned_map: Address,
    values_start: u64,
    state_start: u64,
    block_start: u64,
    len: u64,
    step: Step,
}

/// One step on the numbers `values_range` of `values`, with gradients at the same places of `grads`,
/// codes from `state_start` on and scales from `block_start` on. A last block may be short.
#[allow(clippy::too_many_arguments)]
pub fn adamw_8bit(
    device: &Device,
    values: &mut Buf<f32>,
    grads: &Buf<f32>,
    state: State8,
    values_range: Range<usize>,
    state_start: usize,
    block_start: usize,
    hyper: &Hyper,
) {
    let Range { start, end } = values_range;
    for len in [values.len(), grads.len()] {
        assert!(start <= end && end <= len, "range {start}..{end} of {len} numbers");
    }
    let codes = state_start + (end - start);
    for len in [state.m.len(), state.v.len()] {
        assert!(codes <= len, "codes {state_start}..{codes} of {len}");
    }
    let blocks = block_start + (end - start).div_ceil(STATE_BLOCK);
    for len in [state.m_absmax.len(), state.v_absmax.len()] {
        assert!(blocks <= len, "scales {block_start}..{blocks} of {len}");
    }
    for len in [state.signed_map.len(), state.unsigned_map.len()] {
        assert_eq!(len, SIGNED.values().len(), "values of a map");
    }
    let kernel = Params {
        values: values.address_mut(),
        grads: grads.address(),
        m: state.m.address_mut(),
        v: state.v.address_mut(),
        m_absmax: state.m_absmax.address_mut(),
        v_absmax: state.v_absmax.address_mut(),
        signed_map: state.signed_map.address(),
        unsigned_map: state.unsigned_map.address(),
        values_start: start as u64,
        state_start: state_start as u64,
        block_start: block_start as u64,
        len: (end - start) as u64,
        step: Step::new(hyper),
    };
    // SAFETY: the ranges lie within the buffers, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches the stated ranges only; a task owns its chunk, which is whole blocks.
unsafe impl Kernel for Params {
    const NAME: &'static str = "adamw_8bit";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        // SAFETY: the caller vouches for the maps.
        unsafe { self.assert_maps() };
        for_each_piece(cpu, 1, self.len as usize, |_, chunk| {
            for start in chunk.clone().step_by(STATE_BLOCK) {
                // SAFETY: the caller vouches for all buffers; a task owns its blocks.
                let block = unsafe { self.block(start, STATE_BLOCK.min(chunk.end - start)) };
                block.step(cpu, &self.step);
            }
        });
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        let float = |address: Address, start: u64| address.offset(start as usize * 4).number();
        let code = |address: Address| address.offset(self.state_start as usize).number();
        let Step { beta1, beta2, clip, keep, size, root, epsilon } = self.step;
        let params = ffi::Adamw8bit {
            values: float(self.values, self.values_start),
            grads: float(self.grads, self.values_start),
            m: code(self.m),
            v: code(self.v),
            m_absmax: float(self.m_absmax, self.block_start),
            v_absmax: float(self.v_absmax, self.block_start),
            signed_map: self.signed_map.number(),
            unsigned_map: self.unsigned_map.number(),
            len: self.len,
            beta1,
            beta2,
            clip,
            keep,
            size,
            root,
            epsilon,
            smallest: SMALLEST_DIVISOR,
        };
        let blocks = (self.len as usize).div_ceil(STATE_BLOCK);
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(blocks), &params) }
    }
}

/// The numbers of one block, with the codes and scales of their moments.
struct Block<'a> {
    values: &'a mut [f32],
    grads: &'a [f32],
    m: &'a mut [u8],
    v: &'a mut [u8],
    m_absmax: &'a mut [f32],
    v_absmax: &'a mut [f32],
}

impl Params {
    /// This device reads the tables themselves; a caller with other maps would be misled.
    ///
    /// # Safety
    /// The addresses of the maps are valid.
    unsafe fn assert_maps(&self) {
        for (address, map) in [(self.signed_map, &SIGNED), (self.unsigned_map, &UNSIGNED)] {
            // SAFETY: the caller vouches for it.
            let values = unsafe { slice::<f32>(address, 0, map.values().len()) };
            assert_eq!(values, map.values(), "the maps are those of `quant`");
        }
    }

    /// The block of `len` numbers from number `start` of the range on.
    ///
    /// # Safety
    /// The addresses are valid, and nothing else touches the block.
    unsafe fn block(&self, start: usize, len: usize) -> Block<'_> {
        let value = self.values_start as usize + start;
        let code = self.state_start as usize + start;
        let scale = self.block_start as usize + start / STATE_BLOCK;
        // SAFETY: the caller vouches for it.
        unsafe {
            Block {
                values: slice_mut(self.values, value, len),
                grads: slice(self.grads, value, len),
                m: std::slice::from_raw_parts_mut(self.m.cast::<u8>().add(code), len),
                v: std::slice::from_raw_parts_mut(self.v.cast::<u8>().add(code), len),
                m_absmax: slice_mut(self.m_absmax, scale, 1),
                v_absmax: slice_mut(self.v_absmax, scale, 1),
            }
        }
    }
}

impl Block<'_> {
    fn step(self, cpu: &Cpu, step: &Step) {
        let [mut m, mut v] = [[0.0; STATE_BLOCK]; 2];
        let (m, v) = (&mut m[..self.values.len()], &mut v[..self.values.len()]);
        decode_states(&SIGNED, self.m, self.m_absmax, m);
        decode_states(&UNSIGNED, self.v, self.v_absmax, v);
        step.take(cpu.simd(), self.values, self.grads, m, v);
        encode_states(&SIGNED, m, self.m, self.m_absmax);
        encode_states(&UNSIGNED, v, self.v, self.v_absmax);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Dtype;
    use crate::ops::check::normal;
    use crate::ops::host::{assert_same_for_any_thread_count, buf, devices, numbers};

    const HYPER: Hyper = Hyper {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip: 1.0,
        step: 1,
    };

    /// Values, gradients and moments on a device; the state starts at code 7 and scale 2.
    struct Run<'a> {
        device: &'a Device,
        values: Buf<f32>,
        codes: [Buf<u8>; 2],
        scales: [Buf<f32>; 2],
        maps: [Buf<f32>; 2],
        len: usize,
        steps: u64,
    }

    impl<'a> Run<'a> {
        fn new(device: &'a Device, values: &[f32]) -> Self {
            let len = values.len();
            Self {
                device,
                values: buf(device, values),
                codes: [(); 2].map(|()| buf(device, &vec![0; 7 + len])),
                scales: [(); 2].map(|()| buf(device, &vec![0.0; 2 + len.div_ceil(256)])),
                maps: [&SIGNED, &UNSIGNED].map(|map| buf(device, map.values())),
                len,
                steps: 0,
            }
        }

        fn step(&mut self, grads: &[f32]) {
            self.steps += 1;
            let ([m, v], [m_absmax, v_absmax]) = (&mut self.codes, &mut self.scales);
            let [signed_map, unsigned_map] = &self.maps;
            let state = State8 { m, v, m_absmax, v_absmax, signed_map, unsigned_map };
            let hyper = Hyper { step: self.steps, ..HYPER };
            let grads = buf(self.device, grads);
            adamw_8bit(self.device, &mut self.values, &grads, state, 0..self.len, 7, 2, &hyper);
        }

        fn values(&self) -> Vec<f32> {
            numbers(self.device, &self.values)
        }
    }

    fn floats(seed: u64, len: usize) -> Vec<f32> {
        normal(seed, len).map(|x| x as f32).collect()
    }

    /// The same step on moments that go through the codes of `quant` between steps.
    fn plain(len: usize, steps: u64) -> Vec<f32> {
        let mut values = floats(1, len);
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        for step in 1..=steps {
            let (c1, c2) = (1.0 - 0.9f64.powi(step as i32), 1.0 - 0.999f64.powi(step as i32));
            for (i, g) in floats(100 + step, len).into_iter().map(f64::from).enumerate() {
                let (new_m, new_v) =
                    (0.9 * f64::from(m[i]) + 0.1 * g, 0.999 * f64::from(v[i]) + 0.001 * g * g);
                let move_by = 1e-2 / c1 * new_m / ((new_v / c2).sqrt() + 1e-8);
                values[i] = (f64::from(values[i]) - move_by) as f32;
                (m[i], v[i]) = (new_m as f32, new_v as f32);
            }
            for (map, moments) in [(&SIGNED, &mut m), (&UNSIGNED, &mut v)] {
                let mut codes = vec![0; len];
                let mut scales = vec![0.0; len.div_ceil(256)];
                encode_states(map, moments, &mut codes, &mut scales);
                decode_states(map, &codes, &scales, moments);
            }
        }
        values
    }

    #[test]
    fn every_length_and_instruction_set_follows_the_plain_formula() {
        for device in devices(Dtype::F32) {
            for len in [0, 1, 63, 255, 256, 257, 4095, 4096, 4097, 40_000] {
                let mut run = Run::new(&device, &floats(1, len));
                (1..=3).for_each(|step| run.step(&floats(100 + step, len)));
                for (found, expected) in run.values().into_iter().zip(plain(len, 3)) {
                    let error = (found - expected).abs();
                    assert!(error <= 1e-6, "{len}: {found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn five_hundred_steps_without_a_gradient_move_nothing() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let start = floats(1, 4396);
        let mut run = Run::new(&device, &start);
        (0..500).for_each(|_| run.step(&[0.0; 4396]));
        assert!(run.values() == start, "a number without a gradient has moved");
    }

    #[test]
    fn a_number_without_a_gradient_rests_among_others_that_move() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let start = floats(1, 600);
        let mut run = Run::new(&device, &start);
        for step in 0..100 {
            let mut grads = floats(step, 600);
            (0..600).step_by(3).for_each(|i| grads[i] = if step % 2 == 0 { 0.0 } else { -0.0 });
            run.step(&grads);
        }
        for (i, (found, start)) in run.values().into_iter().zip(start).enumerate() {
            assert_eq!(found == start, i % 3 == 0, "number {i}: {start} became {found}");
        }
    }

    #[test]
    fn codes_and_scales_before_the_start_stay_as_they_are() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let mut run = Run::new(&device, &floats(1, 300));
        run.step(&floats(2, 300));
        for (codes, scales) in run.codes.iter().zip(&run.scales) {
            assert_eq!(numbers(&device, codes)[..7], [0; 7]);
            let scales = numbers(&device, scales);
            assert_eq!(scales[..2], [0.0; 2]);
            assert!(scales[2..].iter().all(|scale| *scale > 0.0), "{scales:?}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        assert_same_for_any_thread_count(Dtype::F32, |device| {
            let mut run = Run::new(device, &floats(1, 70_001));
            (0..2).for_each(|step| run.step(&floats(step, 70_001)));
            let mut all = run.values();
            run.scales.iter().for_each(|scales| all.extend(numbers(device, scales)));
            let codes = run.codes.iter().flat_map(|codes| numbers(device, codes));
            all.extend(codes.map(f32::from));
            all
        });
    }
}
