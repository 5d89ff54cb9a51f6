//! Attention over packed records, with heads that share keys, windows and soft caps.

use ptx_emu::Order;
use qlora_train::device::{Act, Buf, Dtype};
use qlora_train::ffi::Attention;
use qlora_train::ops::attention::{
    Attention as On, Heads, Saved, Segment, backward, forward, lse_dtype,
};

use super::near::assert_within;
use super::{Card, Exact, Grid, assert_near, bf16_bytes, numbers, orders};

/// What is attended to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// Queries and keys of each record.
    pub(super) records: &'static [(u32, u32)],
    pub(super) heads: Heads,
    pub(super) window: Option<usize>,
    pub(super) soft_cap: Option<f32>,
}

pub(super) const PLAIN: Case = Case {
    records: &[(65, 65)],
    heads: Heads { heads: 2, kv_heads: 1, head_dim: 64 },
    window: None,
    soft_cap: None,
};

/// Cases of both ways.
pub(super) const BOTH_WAYS: [Case; 9] = [
    Case { records: &[(1, 1)], ..PLAIN },
    PLAIN,
    Case { records: &[(64, 64), (3, 3), (130, 130)], ..PLAIN },
    Case { heads: Heads { heads: 3, kv_heads: 3, head_dim: 16 }, ..PLAIN },
    Case { heads: Heads { heads: 4, kv_heads: 2, head_dim: 80 }, ..PLAIN },
    Case { heads: Heads { heads: 2, kv_heads: 1, head_dim: 256 }, ..PLAIN },
    Case { records: &[(200, 200)], window: Some(33), ..PLAIN },
    Case { soft_cap: Some(2.0), ..PLAIN },
    Case {
        records: &[(130, 130), (1, 1), (70, 70)],
        heads: Heads { heads: 4, kv_heads: 2, head_dim: 128 },
        ..PLAIN
    },
];

const FORWARD: [Case; 4] = [
    Case { heads: Heads { heads: 1, kv_heads: 1, head_dim: 256 }, ..PLAIN },
    Case {
        records: &[(200, 200)],
        heads: Heads { heads: 2, kv_heads: 1, head_dim: 128 },
        window: Some(70),
        soft_cap: Some(2.0),
    },
    Case { records: &[(100, 130)], heads: Heads { heads: 2, kv_heads: 1, head_dim: 256 }, ..PLAIN },
    // Fewer queries than keys, as behind a cache.
    Case { records: &[(5, 100), (1, 70)], ..PLAIN },
];

impl Case {
    pub(super) fn segments(&self) -> Vec<Segment> {
        let (mut q_start, mut k_start) = (0, 0);
        let mut segment = |&(q_len, k_len): &(u32, u32)| {
            let segment = Segment { q_start, q_len, k_start, k_len };
            (q_start, k_start) = (q_start + q_len, k_start + k_len);
            segment
        };
        self.records.iter().map(&mut segment).collect()
    }

    pub(super) fn queries(&self) -> usize {
        self.records.iter().map(|(queries, _)| *queries as usize).sum()
    }

    pub(super) fn keys(&self) -> usize {
        self.records.iter().map(|(_, keys)| *keys as usize).sum()
    }

    pub(super) fn longest(&self) -> u32 {
        self.records.iter().map(|(queries, keys)| *queries.max(keys)).max().unwrap()
    }

    /// What lse may be off by: a unit of the last place of a score of numbers below 2 for each tensor instruction
    /// that it is summed with, whatever the order within it, and a few for exponentials and their sum.
    fn error_of_lse(&self) -> f64 {
        let depth = self.heads.head_dim as f64;
        let largest = 4.0 * depth.sqrt() * 4.0 * f64::from(self.scale());
        ((depth / 16.0).ceil() + 8.0) * largest * f64::from(f32::EPSILON)
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// Columns of q, and of k and v.
    pub(super) fn columns(&self) -> (usize, usize) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        (heads * head_dim, kv_heads * head_dim)
    }

    /// q, k and v.
    pub(super) fn inputs(&self) -> [Vec<f32>; 3] {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let (queries, keys) =
            (self.queries() * heads * head_dim, self.keys() * kv_heads * head_dim);
        [numbers(1, queries), numbers(2, keys), numbers(3, keys)]
    }
}

/// A case on the CPU in f64: inputs and outputs.
pub(super) struct OnCpu {
    exact: Exact,
    case: Case,
    segments: Buf<Segment>,
    /// q, k and v.
    inputs: [Act; 3],
    o: Act,
    lse: Act,
}

impl OnCpu {
    pub(super) fn run(case: &Case) -> Self {
        let exact = Exact::new();
        let inputs = case.inputs().map(|numbers| exact.act(&numbers));
        let mut segments: Buf<Segment> = exact.0.alloc("test", case.records.len()).unwrap();
        exact.0.upload(&case.segments(), &mut segments);
        let o = exact.act(&vec![0.0; inputs[0].len()]);
        let lse_len = case.queries() * case.heads.heads;
        let lse = exact.0.alloc_dense("test", lse_len, lse_dtype(Dtype::F64)).unwrap();
        let mut run = Self { exact, case: *case, segments, inputs, o, lse };
        run.forward();
        run
    }

    fn forward(&mut self) {
        let Self { exact, case, segments, inputs: [q, k, v], o, lse } = self;
        let (queries, keys, (q_cols, k_cols)) = (case.queries(), case.keys(), case.columns());
        forward(
            &exact.0,
            &attention_of(case, segments),
            q.view(queries, q_cols),
            k.view(keys, k_cols),
            v.view(keys, k_cols),
            o.view_mut(queries, q_cols),
            lse.view_mut(queries, case.heads.heads),
        );
    }

    /// The gradients at q, k and v, given that at o.
    pub(super) fn gradients(&self, d_o: &[f32]) -> [Vec<f64>; 3] {
        let Self { exact, case, segments, inputs: [q, k, v], o, lse } = self;
        let (queries, keys, (q_cols, k_cols)) = (case.queries(), case.keys(), case.columns());
        let d_o = exact.act(d_o);
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| exact.act(&vec![0.0; x.len()]));
        let saved = Saved {
            q: q.view(queries, q_cols),
            k: k.view(keys, k_cols),
            v: v.view(keys, k_cols),
            o: o.view(queries, q_cols),
            lse: lse.view(queries, case.heads.heads),
        };
        backward(
            &exact.0,
            &attention_of(case, segments),
            saved,
            d_o.view(queries, q_cols),
            dq.view_mut(queries, q_cols),
            dk.view_mut(keys, k_cols),
            dv.view_mut(keys, k_cols),
        );
        [dq, dk, dv].map(|act| exact.numbers(&act))
    }

    /// o and lse.
    pub(super) fn outputs(&self) -> [Vec<f64>; 2] {
        [&self.o, &self.lse].map(|act| self.exact.numbers(act))
    }
}

fn attention_of<'a>(case: &Case, segments: &'a Buf<Segment>) -> On<'a> {
    On {
        heads: case.heads,
        scale: case.scale(),
        window: case.window,
        soft_cap: case.soft_cap,
        segments,
        segment_count: segments.len(),
        longest: case.longest() as usize,
    }
}

for_each_kernel!(outputs_and_logarithms_of_sums_are_those_of_f64:
    check_all(attention_64, attention_128, attention_256));

fn check_all(kernel: &'static str) {
    let of_kernel = |case: &&Case| grid(case.heads.head_dim, [0; 3]).kernel == kernel;
    for case in BOTH_WAYS.iter().chain(&FORWARD).filter(of_kernel) {
        let [o, lse] = OnCpu::run(case).outputs();
        for order in orders() {
            check(case, &o, &lse, order);
        }
    }
}

/// Attention by the kernel of that name over more than one tile.
pub(super) fn exercise(kernel: &'static str) {
    let case = Case { heads: Heads { head_dim: width(kernel), ..PLAIN.heads }, ..PLAIN };
    let [o, lse] = OnCpu::run(&case).outputs();
    for order in orders() {
        check(&case, &o, &lse, order);
    }
}

/// The width of a head that the name of a kernel ends with; of those for all, any.
pub(super) fn width(kernel: &str) -> usize {
    kernel.rsplit('_').next().and_then(|width| width.parse().ok()).unwrap_or(64)
}

fn check(case: &Case, o: &[f64], lse: &[f64], order: Order) {
    let Heads { heads, kv_heads, head_dim } = case.heads;
    let [q, k, v] = case.inputs();
    let segments = case.segments();
    let mut card = Card::new();
    let (q_stride, k_stride) = ((heads * head_dim) as u64, (kv_heads * head_dim) as u64);
    let params = Attention {
        q: card.upload(&bf16_bytes(&q)),
        k: card.upload(&bf16_bytes(&k)),
        v: card.upload(&bf16_bytes(&v)),
        o: card.alloc(o.len() * 2),
        lse: card.alloc(lse.len() * 4),
        segments: card.upload(bytemuck::cast_slice(&segments)),
        q_stride,
        k_stride,
        v_stride: k_stride,
        o_stride: q_stride,
        lse_stride: heads as u64,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        window: case.window.map_or(u32::MAX, |window| window as u32),
        scale: case.scale(),
        soft_cap: case.soft_cap.unwrap_or(0.0),
    };
    let blocks = [case.longest().div_ceil(64), heads as u32, segments.len() as u32];
    let grid = grid(head_dim, blocks);
    card.run(&grid, &params, order);
    // Probabilities are rounded once more.
    let what = format!("{}, {case:?} in {order:?}", grid.kernel);
    assert_near(&card.bf16(params.o, o.len()), o, 2.0, heads * head_dim, &format!("o of {what}"));
    let found = card.f32(params.lse, lse.len());
    assert_within(&found, lse, case.error_of_lse(), heads, &format!("lse of {what}"));
}

/// The kernel for a head's width.
pub(super) fn grid(head_dim: usize, blocks: [u32; 3]) -> Grid {
    let (kernel, width, keys) = match head_dim {
        ..=64 => ("attention_64", 64, 64),
        65..=128 => ("attention_128", 128, 64),
        _ => ("attention_256", 256, 32),
    };
    let shared_bytes = (64 + 2 * keys) * width * 2;
    Grid { image: "attention", kernel, blocks, threads: 128, shared_bytes }
}
