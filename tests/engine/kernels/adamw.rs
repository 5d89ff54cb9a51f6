//! Steps of AdamW: the bits of the CPU.

use qlora_train::device::{Buf, Device, Dtype};
use qlora_train::ffi::Adamw;
use qlora_train::ops::adamw::{Hyper, State32, adamw};

use super::near::assert_same;
use super::{Card, Grid, f32_bytes, numbers, orders};

pub(super) const HYPER: Hyper = Hyper {
    learning_rate: 2e-4,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    clip: 0.37,
    step: 1,
};

pub(super) const STEPS: u64 = 3;

pub(super) fn grads(step: u64, len: usize) -> Vec<f32> {
    numbers(10 + step, len).into_iter().map(|g| g * 1e-3).collect()
}

fn on_cpu(len: usize) -> [Vec<f32>; 3] {
    let device = Device::cpu(1, Dtype::F32, u64::MAX);
    let uploaded = |numbers: &[f32]| -> Buf<f32> {
        let mut buf = device.alloc("test", len).unwrap();
        device.upload(numbers, &mut buf);
        buf
    };
    let mut values = uploaded(&numbers(1, len));
    let (mut m, mut v) = (uploaded(&vec![0.0; len]), uploaded(&vec![0.0; len]));
    for step in 1..=STEPS {
        let (grads, state) =
            (uploaded(&grads(step, len)), State32 { m: &mut m, v: &mut v, start: 0 });
        adamw(&device, &mut values, &grads, state, 0..len, &Hyper { step, ..HYPER });
    }
    [values, m, v].map(|buf| {
        let mut numbers = vec![0.0; len];
        device.download(&buf, &mut numbers);
        numbers
    })
}

#[test]
fn three_steps_give_the_bits_of_the_cpu() {
    for len in [1, 255, 256, 1000] {
        let expected = on_cpu(len);
        for order in orders() {
            let mut card = Card::new();
            let zeros = vec![0; len * 4];
            let [values, m, v] =
                [&f32_bytes(&numbers(1, len)), &zeros, &zeros].map(|bytes| card.upload(bytes));
            for step in 1..=STEPS {
                let correction = |beta: f64| 1.0 - beta.powi(step as i32);
                let params = Adamw {
                    values,
                    grads: card.upload(&f32_bytes(&grads(step, len))),
                    m,
                    v,
                    len: len as u64,
                    beta1: HYPER.beta1,
                    beta2: HYPER.beta2,
                    clip: HYPER.clip,
                    keep: 1.0 - HYPER.learning_rate * HYPER.weight_decay,
                    size: HYPER.learning_rate / correction(HYPER.beta1),
                    root: correction(HYPER.beta2).sqrt(),
                    epsilon: HYPER.epsilon,
                };
                let blocks = [len.div_ceil(256) as u32, 1, 1];
                let (image, kernel) = ("adamw", "adamw");
                let grid = Grid { image, kernel, blocks, threads: 256, shared_bytes: 0 };
                card.run(&grid, &params, order);
            }
            let found = [values, m, v].map(|address| card.f32(address, len));
            for (i, name) in ["values", "m", "v"].into_iter().enumerate() {
                let what = format!("{name} by adamw in {order:?}");
                assert_same(&found[i], &expected[i], len, &what);
            }
        }
    }
}
