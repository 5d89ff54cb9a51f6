//! Gated units, forward and backward.

use ptx_emu::Order;
use qlora_train::ffi::Glu;
use qlora_train::ops::glu::{self, Activation};

use super::{Card, Exact, Grid, assert_near, bf16_bytes, numbers, orders};

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

/// Gates far from zero, too.
fn gates_and_ups(rows: usize, width: usize) -> Vec<f32> {
    numbers(1, rows * 2 * width).into_iter().map(|x| x * 8.0).collect()
}

/// h, the gradients of gates and ups, by the CPU in f64.
fn exact(activation: Activation, (rows, width): (usize, usize)) -> [Vec<f64>; 2] {
    let exact = Exact::new();
    let device = &exact.0;
    let (gate_up, mut dh) =
        (exact.act(&gates_and_ups(rows, width)), exact.act(&numbers(2, rows * width)));
    let mut d_gate_up = exact.act(&vec![0.0; rows * 2 * width]);
    let (wide, narrow) = (gate_up.view(rows, 2 * width), dh.view_mut(rows, width));
    glu::backward(device, wide, activation, narrow, d_gate_up.view_mut(rows, 2 * width));
    [dh, d_gate_up].map(|act| exact.numbers(&act))
}

for_each_kernel!(units_and_their_gradients_are_those_of_f64: check_all(glu, glu_backward));

fn check_all(kernel: &'static str) {
    for activation in ACTIVATIONS {
        for shape in [(1, 1), (2, 257), (3, 512)] {
            for order in orders() {
                check(kernel, activation, shape, order);
            }
        }
    }
}

fn check(
    kernel: &'static str,
    activation: Activation,
    (rows, width): (usize, usize),
    order: Order,
) {
    let mut card = Card::new();
    let is_backward = kernel == "glu_backward";
    let params = Glu {
        gate_up: card.upload(&bf16_bytes(&gates_and_ups(rows, width))),
        // On the way back, the gradient at h comes in its place.
        h: match is_backward {
            true => card.upload(&bf16_bytes(&numbers(2, rows * width))),
            false => card.alloc(rows * width * 2),
        },
        d_gate_up: card.alloc(rows * 2 * width * 2),
        gate_up_stride: 2 * width as u64,
        h_stride: width as u64,
        d_gate_up_stride: 2 * width as u64,
        width: width as u32,
        activation: activation as u32,
    };
    let blocks = [rows as u32, 1, 1];
    card.run(&Grid { image: "glu", kernel, blocks, threads: 256, shared_bytes: 0 }, &params, order);
    let [h, d_gate_up] = exact(activation, (rows, width));
    let what = format!("{kernel}, {activation:?}, {rows} x {width}");
    assert_near(&card.bf16(params.h, rows * width), &h, 1.01, width, &what);
    if is_backward {
        let found = card.bf16(params.d_gate_up, rows * 2 * width);
        assert_near(&found, &d_gate_up, 1.01, 2 * width, &what);
    }
}
