//! Numbers far behind the first: places above 2³², in matrices that no machine has to hold. The kernel gets
//! the address at which such a matrix would begin, and only its last blocks run; they must leave what they
//! leave where the same rows are the first ones. `tiles.rs` has the kernels whose blocks are
//! tiles.

mod tiles;

use ptx_emu::Order;
use qlora_train::ffi::{
    Adamw, Adamw8bit, Cast, CrossEntropy, Dequantize, Dropout, Embedding, Glu, Rmsnorm, Rope, Rows,
    SumSquares,
};
use qlora_train::quant::Kind;

use super::card::is_left_out;
use super::{Card, Grid, bf16_bytes, f32_bytes, numbers};

/// Why it takes an emulator.
const FIRST_BLOCKS: &str = "a driver starts all blocks, also those before the far ones";

/// Rows that are left out: a multiple of every tile.
const FAR: u64 = 1 << 20;

/// Numbers from a row to the next: `FAR` of them are more than 2³².
const STRIDE: u64 = 4160;

/// Rows that run.
const ROWS: usize = 3;

/// Numbers in a row.
const COLS: usize = 130;

/// Runs with the first rows and with far ones; both must leave the same in the places that it gives.
fn near_and_far(run: impl Fn(&mut Card, u64) -> Vec<(u64, usize)>) {
    if is_left_out(FIRST_BLOCKS) {
        return;
    }
    let left = |far| {
        let mut card = Card::new();
        let places = run(&mut card, far);
        places.into_iter().map(|(at, len)| card.read(at, len)).collect::<Vec<_>>()
    };
    let near = left(0);
    assert!(near.iter().flatten().any(|byte| *byte != 0));
    assert!(left(FAR) == near);
}

/// Where a matrix begins whose row `far` is at `address`.
fn before(address: u64, far: u64, row_bytes: u64) -> u64 {
    address.wrapping_sub(far * row_bytes)
}

/// Launches `grid`, of whose blocks those before `first` are left out.
fn launch<P: Copy + PartialEq + std::fmt::Debug>(
    card: &mut Card,
    grid: Grid,
    first: [u64; 3],
    params: &P,
) {
    card.first = first.map(|first| u32::try_from(first).unwrap());
    let blocks = std::array::from_fn(|i| grid.blocks[i] + card.first[i]);
    card.run(&Grid { blocks, ..grid }, params, Order::Forward);
    card.first = [0; 3];
}

fn row_grid(image: &'static str, kernel: &'static str, threads: u32, shared_bytes: usize) -> Grid {
    Grid { image, kernel, blocks: [ROWS as u32, 1, 1], threads, shared_bytes }
}

/// bf16 rows with gaps.
fn matrix(seed: u64) -> Vec<u8> {
    bf16_bytes(&numbers(seed, ROWS * STRIDE as usize))
}

#[test]
fn rows_of_units_norms_and_angles() {
    let len = ROWS * STRIDE as usize * 2;
    for kernel in ["glu", "glu_backward"] {
        near_and_far(|card, far| {
            let at = [matrix(1), matrix(2), matrix(3)].map(|bytes| card.upload(&bytes));
            let [gate_up, h, d_gate_up] = at.map(|at| before(at, far, STRIDE * 2));
            let params = Glu {
                gate_up,
                h,
                d_gate_up,
                gate_up_stride: STRIDE,
                h_stride: STRIDE,
                d_gate_up_stride: STRIDE,
                width: COLS as u32,
                activation: 0,
            };
            launch(card, row_grid("glu", kernel, 256, 0), [far, 0, 0], &params);
            at[1..].iter().map(|at| (*at, len)).collect()
        });
    }
    for kernel in ["rmsnorm", "rmsnorm_backward"] {
        near_and_far(|card, far| {
            let at = [matrix(1), matrix(2), matrix(3)].map(|bytes| card.upload(&bytes));
            let [x, out, dy] = at.map(|at| before(at, far, STRIDE * 2));
            let params = Rmsnorm {
                x,
                weight: card.upload(&f32_bytes(&numbers(4, COLS))),
                out,
                dy,
                x_stride: STRIDE,
                out_stride: STRIDE,
                dy_stride: STRIDE,
                groups: 2,
                width: COLS as u32,
                eps: 1e-5,
                center: 0.0,
                add: 0,
            };
            let grid = row_grid("rmsnorm", kernel, 256, 64);
            let blocks = [2 * ROWS as u32, 1, 1];
            launch(card, Grid { blocks, ..grid }, [2 * far, 0, 0], &params);
            vec![(at[1], len)]
        });
    }
    near_and_far(|card, far| {
        let x = card.upload(&matrix(1));
        let tables = card.upload(&f32_bytes(&numbers(2, ROWS * STRIDE as usize)));
        let params = Rope {
            x: before(x, far, STRIDE * 2),
            tables: before(tables, far, STRIDE * 4),
            x_stride: STRIDE,
            table_stride: STRIDE,
            heads: 4,
            head_dim: 64,
            half: 32,
            backward: 0,
        };
        launch(card, row_grid("rope", "rope", 128, 0), [far, 0, 0], &params);
        vec![(x, len)]
    });
}

#[test]
fn rows_of_tables_and_logits() {
    let len = ROWS * STRIDE as usize * 2;
    let indices = |far: u64| -> Vec<u8> {
        [far + 2, far, far + 1].iter().flat_map(|row| (*row as u32).to_le_bytes()).collect()
    };
    near_and_far(|card, far| {
        let [table, tokens] = [matrix(1), indices(far)].map(|bytes| card.upload(&bytes));
        let out = card.upload(&matrix(2));
        let params = Embedding {
            table: before(table, far, STRIDE * 2),
            tokens: before(tokens, far, 4),
            out: before(out, far, STRIDE * 2),
            table_stride: STRIDE,
            out_stride: STRIDE,
            cols: COLS as u32,
            scale: 1.5,
        };
        launch(card, row_grid("embedding", "embedding", 128, 0), [far, 0, 0], &params);
        vec![(out, len)]
    });
    for kernel in ["gather_rows", "scatter_rows", "add_rows"] {
        near_and_far(|card, far| {
            let at = [matrix(1), matrix(2), indices(far)].map(|bytes| card.upload(&bytes));
            let params = Rows {
                packed: before(at[0], far, STRIDE * 2),
                spread: before(at[1], far, STRIDE * 2),
                index: before(at[2], far, 4),
                packed_stride: STRIDE,
                spread_stride: STRIDE,
                cols: COLS as u32,
            };
            launch(card, row_grid("rows", kernel, 128, 0), [far, 0, 0], &params);
            at[..2].iter().map(|at| (*at, len)).collect()
        });
    }
    near_and_far(|card, far| {
        let logits = card.upload(&f32_bytes(&numbers(1, ROWS * STRIDE as usize)));
        let targets: Vec<u8> = [5_u32, 0, 129].iter().flat_map(|t| t.to_le_bytes()).collect();
        let (targets, losses) = (card.upload(&targets), card.alloc(ROWS * 4));
        let params = CrossEntropy {
            logits: before(logits, far, STRIDE * 4),
            targets: before(targets, far, 4),
            losses: before(losses, far, 4),
            stride: STRIDE,
            vocabulary: COLS as u32,
            soft_cap: 0.0,
            scale: 0.5,
            has_gradient: 1,
        };
        launch(card, row_grid("cross_entropy", "cross_entropy", 256, 64), [far, 0, 0], &params);
        vec![(losses, ROWS * 4), (logits, 2 * len)]
    });
    near_and_far(|card, far| {
        let from = card.upload(&f32_bytes(&numbers(1, ROWS * STRIDE as usize)));
        let to = card.upload(&matrix(2));
        let params = Cast {
            from: before(from, far, STRIDE * 4),
            to: before(to, far, STRIDE * 2),
            rows: far + ROWS as u64,
            cols: COLS as u64,
            from_stride: STRIDE,
            to_stride: STRIDE,
            from_wide: 1,
            to_wide: 0,
        };
        launch(card, row_grid("cast", "cast", 256, 0), [far, 0, 0], &params);
        vec![(to, len)]
    });
}

/// The mask is another one there; what is kept is still the number itself.
#[test]
fn dropout_far_behind_drops_and_keeps() {
    const KEPT: f32 = 2.0;
    if is_left_out(FIRST_BLOCKS) {
        return;
    }
    let (cols, rows) = (512, 8);
    let (far, mut card) = (1_u64 << 24, Card::new());
    let x = numbers(1, rows * cols);
    let [from, to] = [card.upload(&bf16_bytes(&x)), card.alloc(rows * cols * 2)];
    let params = Dropout {
        x: before(from, far, cols as u64 * 2),
        out: before(to, far, cols as u64 * 2),
        rows: far + rows as u64,
        cols: cols as u64,
        x_stride: cols as u64,
        out_stride: cols as u64,
        seed: 1,
        stream: 2,
        threshold: 1 << 31,
        scale: KEPT,
        add: 0,
    };
    let blocks = [(rows * cols / 1024) as u32, 1, 1];
    let grid = Grid { image: "dropout", kernel: "dropout", blocks, threads: 256, shared_bytes: 0 };
    launch(&mut card, grid, [far * cols as u64 / 1024, 0, 0], &params);
    let found = card.bf16(to, rows * cols);
    assert!(found.iter().zip(&x).all(|(out, x)| *out == 0.0 || *out == KEPT * x));
    let kept = found.iter().filter(|x| **x != 0.0).count();
    assert!((1900..2200).contains(&kept), "{kept} of 4096 with probability 1/2");
}

#[test]
fn updates_and_sums_of_many_numbers() {
    const LEN: usize = 700;
    // Blocks of 256 numbers: 2^32 before the first.
    const BLOCKS: u64 = 1 << 24;
    near_and_far(|card, far| {
        let skipped = if far == 0 { 0 } else { BLOCKS };
        let at = [1, 2, 3, 4].map(|seed| {
            let positive: Vec<f32> = numbers(seed, LEN).iter().map(|x| x.abs()).collect();
            card.upload(&f32_bytes(&positive))
        });
        let [values, grads, m, v] = at.map(|at| before(at, skipped, 256 * 4));
        let params = Adamw {
            values,
            grads,
            m,
            v,
            len: skipped * 256 + LEN as u64,
            beta1: 0.9,
            beta2: 0.999,
            clip: 1.0,
            keep: 0.99,
            size: 1e-2,
            root: 0.5,
            epsilon: 1e-8,
        };
        let grid = row_grid("adamw", "adamw", 256, 0);
        launch(card, grid, [skipped, 0, 0], &params);
        [at[0], at[2], at[3]].iter().map(|at| (*at, LEN * 4)).collect()
    });
    near_and_far(|card, far| {
        let skipped = if far == 0 { 0 } else { BLOCKS };
        let [values, grads] = [1, 2].map(|seed| card.upload(&f32_bytes(&numbers(seed, LEN))));
        let [m, v] = [3_u8, 5].map(|step| {
            let codes: Vec<u8> = (0..LEN).map(|i| (i as u8).wrapping_mul(step)).collect();
            card.upload(&codes)
        });
        let scales = [1.0, 2.0].map(|scale| card.upload(&f32_bytes(&[scale; 3])));
        let [m_absmax, v_absmax] = scales.map(|at| before(at, skipped, 4));
        let maps = [qlora_train::quant::SIGNED.values(), qlora_train::quant::UNSIGNED.values()];
        let [signed_map, unsigned_map] = maps.map(|map| card.upload(&f32_bytes(map)));
        let params = Adamw8bit {
            values: before(values, skipped, 256 * 4),
            grads: before(grads, skipped, 256 * 4),
            m: before(m, skipped, 256),
            v: before(v, skipped, 256),
            m_absmax,
            v_absmax,
            signed_map,
            unsigned_map,
            len: skipped * 256 + LEN as u64,
            beta1: 0.9,
            beta2: 0.999,
            clip: 1.0,
            keep: 0.99,
            size: 1e-2,
            root: 0.5,
            epsilon: 1e-8,
            smallest: f32::MIN_POSITIVE,
        };
        let grid = row_grid("adamw_8bit", "adamw_8bit", 256, super::adamw_8bit::SHARED);
        launch(card, grid, [skipped, 0, 0], &params);
        let codes = [m, v].map(|at| (at, LEN));
        [codes.as_slice(), &scales.map(|at| (at, 12)), &[(values, LEN * 4)]].concat()
    });
    near_and_far(|card, far| {
        const PIECE: u64 = 16_384;
        let skipped = if far == 0 { 0 } else { (1 << 32) / PIECE };
        let (x, partial) = (card.upload(&f32_bytes(&numbers(1, LEN))), card.alloc(8));
        let params = SumSquares {
            x: before(x, skipped, PIECE * 4),
            partial: before(partial, skipped, 8),
            out: 0,
            len: skipped * PIECE + LEN as u64,
        };
        let grid = row_grid("sum_squares", "sum_squares", 256, 256 * 8);
        launch(card, Grid { blocks: [1; 3], ..grid }, [skipped, 0, 0], &params);
        vec![(partial, 8)]
    });
    near_and_far(|card, far| {
        // A block decodes 128 blocks of 64 values.
        let (skipped, scales) = (if far == 0 { 0 } else { 1 << 19 }, numbers(2, 128));
        let codes: Vec<u8> = (0..128 * 32).map(|i| (i * 167) as u8).collect();
        let (codes, absmax) = (card.upload(&codes), card.upload(&f32_bytes(&scales)));
        let out = card.alloc(128 * 64 * 2);
        let params = Dequantize {
            codes: before(codes, skipped, 128 * 32),
            absmax: before(absmax, skipped, 128 * 4),
            out: before(out, skipped, 128 * 64 * 2),
            values: (skipped + 1) * 128 * 64,
            book: *Kind::Nf4.values(),
            ..Dequantize::default()
        };
        let grid = row_grid("dequantize", "dequantize", 128, 0);
        launch(card, Grid { blocks: [1; 3], ..grid }, [skipped, 0, 0], &params);
        vec![(out, 128 * 64 * 2)]
    });
}
