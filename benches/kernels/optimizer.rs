//! A step of AdamW on as many numbers as rank 16 trains of 0.5 billion, with moments in f32 and in
//! eight bits, and the sum of squares that gradients are clipped by.

use qlora_train::device::{Buf, Device};
use qlora_train::ops::adamw::{Hyper, State32, adamw};
use qlora_train::ops::adamw_8bit::{State8, adamw_8bit};
use qlora_train::ops::sum_squares::sum_squares;
use qlora_train::quant::{SIGNED, STATE_BLOCK, UNSIGNED};

use crate::measure::{Measured, Work, uploaded};

const COUNT: usize = 8_798_208;

const HYPER: Hyper = Hyper {
    learning_rate: 2e-4,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    clip: 0.5,
    step: 10,
};

pub fn all(device: &Device, measured: &mut Measured) {
    // Read: value, gradient, both moments; written: all but the gradient.
    measured.run("adamw", Work::Bytes(7 * 4 * COUNT), || {
        let (mut values, grads) = (filled(device), filled(device));
        let (mut m, mut v) = (filled(device), filled(device));
        move || {
            let state = State32 { m: &mut m, v: &mut v, start: 0 };
            adamw(device, &mut values, &grads, state, 0..COUNT, &HYPER);
        }
    });
    measured.run("adamw_8bit", Work::Bytes((3 * 4 + 4) * COUNT), || {
        let (mut values, grads) = (filled(device), filled(device));
        let codes = vec![200_u8; COUNT];
        let (mut m, mut v) = (uploaded(device, &codes), uploaded(device, &codes));
        let scales = vec![0.01_f32; COUNT.div_ceil(STATE_BLOCK)];
        let (mut m_absmax, mut v_absmax) = (uploaded(device, &scales), uploaded(device, &scales));
        let signed_map = uploaded(device, SIGNED.values());
        let unsigned_map = uploaded(device, UNSIGNED.values());
        move || {
            let state = State8 {
                m: &mut m,
                v: &mut v,
                m_absmax: &mut m_absmax,
                v_absmax: &mut v_absmax,
                signed_map: &signed_map,
                unsigned_map: &unsigned_map,
            };
            adamw_8bit(device, &mut values, &grads, state, 0..COUNT, 0, 0, &HYPER);
        }
    });
    measured.run("sum of squares", Work::Bytes(4 * COUNT), || {
        let grads = filled(device);
        let mut sum = uploaded(device, &[0.0_f64]);
        move || sum_squares(device, &grads, &mut sum)
    });
}

fn filled(device: &Device) -> Buf<f32> {
    let numbers: Vec<f32> = (0..COUNT).map(|i| (i % 97) as f32 * 1e-3 + 1e-4).collect();
    uploaded(device, &numbers)
}
