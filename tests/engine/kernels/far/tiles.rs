//! Products and attention: kernels whose blocks are tiles of a matrix.

use qlora_train::ffi::{Attention, AttentionBackward, Matmul, Matmul4bit};
use qlora_train::quant::Kind;

use super::{ROWS, STRIDE, before, launch, matrix, near_and_far};
use crate::kernels::{Grid, bf16_bytes, f32_bytes, numbers};

#[test]
fn products_of_many_rows_and_of_many_columns() {
    const K: usize = 72;
    let len = ROWS * STRIDE as usize * 2;
    for kernel in crate::kernels::matmul::KERNELS {
        near_and_far(|card, far| {
            let rows_of_a = if kernel.ends_with("tn") { K } else { ROWS };
            // [k, m] has few rows, and far columns.
            let a_stride = if kernel.ends_with("tn") { 8 } else { STRIDE };
            let a = card.upload(&bf16_bytes(&numbers(1, rows_of_a * a_stride as usize)));
            let b = card.upload(&bf16_bytes(&numbers(2, 128 * 128)));
            let (out, residual) = (card.upload(&matrix(3)), card.upload(&matrix(4)));
            let a_row = if kernel.ends_with("tn") { 2 } else { STRIDE * 2 };
            let params = Matmul {
                a: [before(a, far, a_row), 0],
                b: [b, 0],
                out: before(out, far, STRIDE * 2),
                residual: before(residual, far, STRIDE * 2),
                a_stride: [a_stride, 0],
                b_stride: [128, 0],
                out_stride: STRIDE,
                residual_stride: STRIDE,
                k: [K as u32, 0],
                m: far as u32 + ROWS as u32,
                n: 40,
                alpha: 1.0,
                add: 1,
                ..Matmul::default()
            };
            let tile = if kernel.contains("large") { 128 } else { 64 };
            launch(card, crate::kernels::matmul::grid(kernel, 1, 1), [0, far / tile, 0], &params);
            vec![(out, len)]
        });
    }
    // Rows of b [n, k] that are columns of the result.
    near_and_far(|card, far| {
        let a = card.upload(&bf16_bytes(&numbers(1, ROWS * K)));
        let (b, out) = (card.upload(&matrix(2)), card.upload(&[0; ROWS * 64 * 2]));
        let params = Matmul {
            a: [a, 0],
            b: [before(b, far, STRIDE * 2), 0],
            out: before(out, far, 2),
            a_stride: [K as u64, 0],
            b_stride: [STRIDE, 0],
            out_stride: 64,
            k: [K as u32, 0],
            m: ROWS as u32,
            n: far as u32 + ROWS as u32,
            alpha: 1.0,
            ..Matmul::default()
        };
        launch(card, crate::kernels::matmul::grid("matmul_nt", 1, 1), [far / 64, 0, 0], &params);
        vec![(out, ROWS * 64 * 2)]
    });
    near_and_far(|card, far| {
        let a = card.upload(&bf16_bytes(&numbers(1, ROWS * STRIDE as usize)));
        let codes: Vec<u8> = (0..ROWS * STRIDE as usize / 2).map(|i| (i * 167) as u8).collect();
        let scales = numbers(2, ROWS * STRIDE as usize / 64);
        let (codes, absmax) = (card.upload(&codes), card.upload(&f32_bytes(&scales)));
        let out = card.upload(&[0; ROWS * 64 * 2]);
        let product = Matmul {
            a: [a, 0],
            b: [before(codes, far, STRIDE / 2), 0],
            out: before(out, far, 2),
            a_stride: [STRIDE, 0],
            b_stride: [STRIDE, 0],
            out_stride: 64,
            k: [STRIDE as u32, 0],
            m: ROWS as u32,
            n: far as u32 + ROWS as u32,
            alpha: 1.0,
            ..Matmul::default()
        };
        let params = Matmul4bit {
            product,
            absmax: before(absmax, far, STRIDE / 64 * 4),
            book: *Kind::Nf4.values(),
            ..Matmul4bit::default()
        };
        let (image, kernel, shared_bytes) = ("matmul_4bit", "matmul_4bit_nt", 2 * 2 * 64 * 64 * 2);
        let grid = Grid { image, kernel, blocks: [1; 3], threads: 128, shared_bytes };
        launch(card, grid, [far / 64, 0, 0], &params);
        vec![(out, ROWS * 64 * 2)]
    });
}

#[test]
fn attention_of_far_records() {
    const HEADS: u32 = 2;
    let len = ROWS * STRIDE as usize * 2;
    let segment = |far: u64| -> Vec<u8> {
        let (far, rows) = (far as u32, ROWS as u32);
        [far, rows, far, rows].iter().flat_map(|word| word.to_le_bytes()).collect()
    };
    near_and_far(|card, far| {
        let at = [1, 2, 3, 4].map(|seed| card.upload(&matrix(seed)));
        let lse = card.alloc(ROWS * HEADS as usize * 4);
        let [q, k, v, o] = at.map(|at| before(at, far, STRIDE * 2));
        let params = Attention {
            q,
            k,
            v,
            o,
            lse: before(lse, far, u64::from(HEADS) * 4),
            segments: card.upload(&segment(far)),
            q_stride: STRIDE,
            k_stride: STRIDE,
            v_stride: STRIDE,
            o_stride: STRIDE,
            lse_stride: u64::from(HEADS),
            heads: HEADS,
            kv_heads: 1,
            head_dim: 64,
            window: u32::MAX,
            scale: 0.125,
            soft_cap: 0.0,
        };
        let grid = crate::kernels::attention::grid(64, [1, HEADS, 1]);
        launch(card, grid, [0; 3], &params);
        vec![(at[3], len), (lse, ROWS * HEADS as usize * 4)]
    });
    near_and_far(|card, far| {
        let at = [1, 2, 3, 4, 5, 6, 7, 8].map(|seed| card.upload(&matrix(seed)));
        let statistics = f32_bytes(&numbers(9, ROWS * HEADS as usize));
        let rows = [card.upload(&statistics), card.alloc(ROWS * HEADS as usize * 4)];
        let [q, k, v, o, d_o, dq, dk, dv] = at.map(|at| before(at, far, STRIDE * 2));
        let [lse, delta] = rows.map(|at| before(at, far, u64::from(HEADS) * 4));
        let params = AttentionBackward {
            q,
            k,
            v,
            o,
            d_o,
            lse,
            delta,
            segments: card.upload(&segment(far)),
            dq,
            dk,
            dv,
            q_stride: STRIDE,
            k_stride: STRIDE,
            v_stride: STRIDE,
            o_stride: STRIDE,
            d_o_stride: STRIDE,
            lse_stride: u64::from(HEADS),
            dq_stride: STRIDE,
            dk_stride: STRIDE,
            dv_stride: STRIDE,
            heads: HEADS,
            kv_heads: 1,
            head_dim: 64,
            window: u32::MAX,
            scale: 0.125,
            soft_cap: 0.0,
        };
        let [delta_grid, of_queries, of_keys] =
            crate::kernels::attention_backward::grids(64, ROWS as u32, [HEADS, 1], [1, 1]);
        launch(card, delta_grid, [far, 0, 0], &params);
        launch(card, of_queries, [0; 3], &params);
        launch(card, of_keys, [0; 3], &params);
        at[5..].iter().map(|at| (*at, len)).collect()
    });
}
