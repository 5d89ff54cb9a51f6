//! The gradients of attention.

use ptx_emu::Order;
use qlora_train::ffi::AttentionBackward;
use qlora_train::ops::attention::Heads;

use super::attention::{BOTH_WAYS, Case, OnCpu, PLAIN, width};
use super::near::assert_within;
use super::{Card, Grid, assert_near, bf16_bytes, f32_bytes, numbers, orders};

const BACKWARD: [Case; 2] = [
    UNSEEN,
    Case {
        records: &[(130, 130)],
        heads: Heads { heads: 2, kv_heads: 1, head_dim: 256 },
        window: Some(70),
        soft_cap: Some(2.0),
    },
];

/// Keys that no query sees, in blocks of their own.
const UNSEEN: Case = Case { records: &[(5, 200)], window: Some(3), ..PLAIN };

/// The kernels for a head's width, the width, and how many rows of the other side come at a time.
fn kernels(head_dim: usize) -> ([&'static str; 2], usize, [usize; 2]) {
    match head_dim {
        ..=64 => (["attention_backward_q_64", "attention_backward_kv_64"], 64, [64, 32]),
        65..=128 => (["attention_backward_q_128", "attention_backward_kv_128"], 128, [32, 16]),
        _ => (["attention_backward_q_256", "attention_backward_kv_256"], 256, [32, 16]),
    }
}

for_each_kernel!(gradients_are_those_of_f64: check_all(
    attention_backward_q_64,
    attention_backward_q_128,
    attention_backward_q_256,
    attention_backward_kv_64,
    attention_backward_kv_128,
    attention_backward_kv_256,
));

for_each_kernel!(rows_of_gradients_meet_those_of_outputs_as_in_f64: check_delta(attention_delta));

/// The sum of d_o · o of each query and head.
fn check_delta(kernel: &'static str) {
    for case in BOTH_WAYS.iter().chain(&BACKWARD) {
        let Heads { heads, head_dim, .. } = case.heads;
        let len = case.queries() * heads;
        let [o, d_o] = [3, 4].map(|seed| numbers(seed, len * head_dim));
        let products = o.iter().zip(&d_o).map(|(o, d)| f64::from(*o) * f64::from(*d));
        let products: Vec<f64> = products.collect();
        let exact: Vec<f64> = products.chunks(head_dim).map(|row| row.iter().sum()).collect();
        // A rounding for each number of a lane and for each of the five halves of a warp, of sums that are no
        // larger than those of sizes.
        let largest = products.chunks(head_dim).map(|row| row.iter().map(|x| x.abs()).sum::<f64>());
        let roundings = (head_dim.div_ceil(32) + 5) as f64;
        let bound = roundings * f64::from(f32::EPSILON) / 2.0 * largest.fold(0.0, f64::max);
        for order in orders() {
            let mut card = Card::new();
            let params = AttentionBackward {
                o: card.upload(&bf16_bytes(&o)),
                d_o: card.upload(&bf16_bytes(&d_o)),
                delta: card.alloc(len * 4),
                o_stride: (heads * head_dim) as u64,
                d_o_stride: (heads * head_dim) as u64,
                heads: heads as u32,
                head_dim: head_dim as u32,
                ..AttentionBackward::default()
            };
            let [grid, ..] = grids(head_dim, case.queries() as u32, [heads as u32, 1], [1, 1]);
            card.run(&grid, &params, order);
            let found = card.f32(params.delta, len);
            let what = format!("{kernel}, {case:?} in {order:?}");
            assert_within(&found, &exact, bound, heads, &what);
        }
    }
}

fn check_all(kernel: &'static str) {
    let of_kernel = |case: &&Case| kernels(case.heads.head_dim).0.contains(&kernel);
    for case in BOTH_WAYS.iter().chain(&BACKWARD).filter(of_kernel) {
        check_orders(kernel, case);
    }
}

/// Gradients by the kernel of that name over more than one tile.
pub(super) fn exercise(kernel: &'static str) {
    if kernel == "attention_delta" {
        return check_delta(kernel);
    }
    for case in [PLAIN, UNSEEN] {
        let heads = Heads { head_dim: width(kernel), ..case.heads };
        check_orders(kernel, &Case { heads, ..case });
    }
}

fn check_orders(kernel: &'static str, case: &Case) {
    let on_cpu = OnCpu::run(case);
    let d_o = numbers(4, case.queries() * case.columns().0);
    let gradients = on_cpu.gradients(&d_o);
    for order in orders() {
        check(kernel, case, on_cpu.outputs(), &d_o, &gradients, order);
    }
}

/// The gradients that the kernel writes, those at q or those at k and v.
fn check(
    kernel: &'static str,
    case: &Case,
    [o, lse]: [Vec<f64>; 2],
    d_o: &[f32],
    exact: &[Vec<f64>; 3],
    order: Order,
) {
    let Heads { heads, kv_heads, head_dim } = case.heads;
    let narrow = |numbers: &[f64]| numbers.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    let [q, k, v] = case.inputs();
    let segments = case.segments();
    let mut card = Card::new();
    let (q_stride, k_stride) = case.columns();
    let (q_stride, k_stride) = (q_stride as u64, k_stride as u64);
    let params = AttentionBackward {
        q: card.upload(&bf16_bytes(&q)),
        k: card.upload(&bf16_bytes(&k)),
        v: card.upload(&bf16_bytes(&v)),
        o: card.upload(&bf16_bytes(&narrow(&o))),
        d_o: card.upload(&bf16_bytes(d_o)),
        lse: card.upload(&f32_bytes(&narrow(&lse))),
        delta: card.alloc(lse.len() * 4),
        segments: card.upload(bytemuck::cast_slice(&segments)),
        dq: card.alloc(q.len() * 2),
        dk: card.alloc(k.len() * 2),
        dv: card.alloc(v.len() * 2),
        q_stride,
        k_stride,
        v_stride: k_stride,
        o_stride: q_stride,
        d_o_stride: q_stride,
        lse_stride: heads as u64,
        dq_stride: q_stride,
        dk_stride: k_stride,
        dv_stride: k_stride,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        window: case.window.map_or(u32::MAX, |window| window as u32),
        scale: case.scale(),
        soft_cap: case.soft_cap.unwrap_or(0.0),
    };
    let (rows, count) = (case.longest().div_ceil(64), segments.len() as u32);
    let heads = [heads, kv_heads].map(|heads| heads as u32);
    let grids = grids(head_dim, case.queries() as u32, heads, [rows, count]);
    // Both others need what the first one leaves.
    let runs = |grid: &&Grid| ["attention_delta", kernel].contains(&grid.kernel);
    for grid in grids.iter().filter(runs) {
        card.run(grid, &params, order);
    }
    let (q_cols, k_cols) = case.columns();
    let written = [
        ("dq", "_q_", params.dq, q_cols),
        ("dk", "_kv_", params.dk, k_cols),
        ("dv", "_kv_", params.dv, k_cols),
    ];
    for ((name, part, address, cols), exact) in written.into_iter().zip(exact) {
        if kernel.contains(part) {
            let found = card.bf16(address, exact.len());
            // o, the probabilities and their gradients are rounded before the gradient itself is.
            let what = format!("{name} by {kernel}, {case:?} in {order:?}");
            assert_near(&found, exact, 3.0, cols, &what);
        }
    }
}

/// The three kernels: for so many queries, heads of queries and of keys, tiles of the longest record, and
/// records.
pub(super) fn grids(
    head_dim: usize,
    queries: u32,
    [heads, kv_heads]: [u32; 2],
    [rows, count]: [u32; 2],
) -> [Grid; 3] {
    let ([of_queries, of_keys], width, others) = kernels(head_dim);
    let shared = others.map(|others| 2 * (64 + others) * width * 2);
    let grid = |kernel, blocks, threads, shared_bytes| Grid {
        image: "attention_backward",
        kernel,
        blocks,
        threads,
        shared_bytes,
    };
    [
        grid("attention_delta", [queries, heads, 1], 32, 0),
        grid(of_queries, [rows, heads, count], 128, shared[0]),
        grid(of_keys, [rows, kv_heads, count], 128, shared[1] + 2 * others[1] * 4),
    ]
}
