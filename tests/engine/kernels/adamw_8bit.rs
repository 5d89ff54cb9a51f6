//! Steps of AdamW with moments in eight bits: the bits of the CPU.

use qlora_train::device::{Buf, Device, Dtype};
use qlora_train::ffi::Adamw8bit;
use qlora_train::ops::adamw_8bit::{State8, adamw_8bit};
use qlora_train::quant::{SIGNED, SMALLEST_DIVISOR, STATE_BLOCK, UNSIGNED};

use super::adamw::{HYPER, STEPS, grads};
use super::near::assert_same;
use super::{Card, Grid, f32_bytes, numbers, orders};
use bytemuck::Pod;
use qlora_train::ops::adamw::Hyper;

/// Values, codes and scales after the steps.
struct State {
    values: Vec<f32>,
    codes: [Vec<u8>; 2],
    scales: [Vec<f32>; 2],
}

fn on_cpu(len: usize) -> State {
    let device = Device::cpu(1, Dtype::F32, u64::MAX);
    fn uploaded<T: Pod>(device: &Device, numbers: &[T]) -> Buf<T> {
        let mut buf = device.alloc("test", numbers.len()).unwrap();
        device.upload(numbers, &mut buf);
        buf
    }
    fn all<T: Pod>(device: &Device, buf: &Buf<T>) -> Vec<T> {
        let mut numbers = vec![T::zeroed(); buf.len()];
        device.download(buf, &mut numbers);
        numbers
    }
    let mut values = uploaded(&device, &numbers(1, len));
    let [mut m, mut v] = [(); 2].map(|()| uploaded(&device, &vec![0_u8; len]));
    let blocks = len.div_ceil(STATE_BLOCK);
    let [mut m_absmax, mut v_absmax] = [(); 2].map(|()| uploaded(&device, &vec![0.0_f32; blocks]));
    let [signed_map, unsigned_map] =
        [&SIGNED, &UNSIGNED].map(|map| uploaded(&device, map.values()));
    for step in 1..=STEPS {
        let state = State8 {
            m: &mut m,
            v: &mut v,
            m_absmax: &mut m_absmax,
            v_absmax: &mut v_absmax,
            signed_map: &signed_map,
            unsigned_map: &unsigned_map,
        };
        let grads = uploaded(&device, &grads(step, len));
        adamw_8bit(&device, &mut values, &grads, state, 0..len, 0, 0, &Hyper { step, ..HYPER });
    }
    State {
        values: all(&device, &values),
        codes: [&m, &v].map(|codes| all(&device, codes)),
        scales: [&m_absmax, &v_absmax].map(|scales| all(&device, scales)),
    }
}

/// Shared memory of a block.
pub(super) const SHARED: usize = (2 * 256 + 2 * 8) * 4;

#[test]
pub(super) fn three_steps_give_the_bits_of_the_cpu() {
    for len in [1, 255, 256, 257, 1000] {
        let expected = on_cpu(len);
        for order in orders() {
            let mut card = Card::new();
            let blocks = len.div_ceil(STATE_BLOCK);
            let values = card.upload(&f32_bytes(&numbers(1, len)));
            let [m, v] = [(); 2].map(|()| card.upload(&vec![0; len]));
            let [m_absmax, v_absmax] = [(); 2].map(|()| card.upload(&vec![0; blocks * 4]));
            let [signed_map, unsigned_map] =
                [&SIGNED, &UNSIGNED].map(|map| card.upload(&f32_bytes(map.values())));
            for step in 1..=STEPS {
                let correction = |beta: f64| 1.0 - beta.powi(step as i32);
                let params = Adamw8bit {
                    values,
                    grads: card.upload(&f32_bytes(&grads(step, len))),
                    m,
                    v,
                    m_absmax,
                    v_absmax,
                    signed_map,
                    unsigned_map,
                    len: len as u64,
                    beta1: HYPER.beta1,
                    beta2: HYPER.beta2,
                    clip: HYPER.clip,
                    keep: 1.0 - HYPER.learning_rate * HYPER.weight_decay,
                    size: HYPER.learning_rate / correction(HYPER.beta1),
                    root: correction(HYPER.beta2).sqrt(),
                    epsilon: HYPER.epsilon,
                    smallest: SMALLEST_DIVISOR,
                };
                let (image, kernel) = ("adamw_8bit", "adamw_8bit");
                let blocks = [blocks as u32, 1, 1];
                let grid = Grid { image, kernel, blocks, threads: 256, shared_bytes: SHARED };
                card.run(&grid, &params, order);
            }
            let found = State {
                values: card.f32(values, len),
                codes: [m, v].map(|address| card.read(address, len)),
                scales: [m_absmax, v_absmax].map(|address| card.f32(address, blocks)),
            };
            let what = |name: &str| format!("{name} by adamw_8bit in {order:?}");
            assert_same(&found.values, &expected.values, len, &what("values"));
            for (i, name) in ["m", "v"].into_iter().enumerate() {
                assert_same(&found.codes[i], &expected.codes[i], STATE_BLOCK, &what(name));
                let scales = format!("scales of {name}");
                assert_same(&found.scales[i], &expected.scales[i], blocks, &what(&scales));
            }
        }
    }
}
