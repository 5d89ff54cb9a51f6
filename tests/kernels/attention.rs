//! Attention over packed records, with heads that share keys, windows and soft caps.

use ptx_emu::Order;
use qlora_train::device::{Act, Buf, Dtype};
use qlora_train::ffi::Attention;
use qlora_train::ops::attention::{Attention as OnCpu, Heads, Segment, forward, lse_dtype};

use super::{Card, Exact, Grid, ORDERS, assert_near, bf16_bytes, numbers};

/// What is attended to.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// Queries and keys of each record.
    records: &'static [(u32, u32)],
    heads: Heads,
    window: Option<usize>,
    soft_cap: Option<f32>,
}

const PLAIN: Case = Case {
    records: &[(65, 65)],
    heads: Heads { heads: 2, kv_heads: 1, head_dim: 64 },
    window: None,
    soft_cap: None,
};

const CASES: [Case; 9] = [
    Case { records: &[(1, 1)], ..PLAIN },
    PLAIN,
    Case { records: &[(64, 64), (3, 3), (130, 130)], ..PLAIN },
    Case { heads: Heads { heads: 3, kv_heads: 3, head_dim: 16 }, ..PLAIN },
    Case { heads: Heads { heads: 4, kv_heads: 2, head_dim: 80 }, ..PLAIN },
    Case { heads: Heads { heads: 1, kv_heads: 1, head_dim: 256 }, ..PLAIN },
    Case { records: &[(200, 200)], window: Some(33), ..PLAIN },
    Case { soft_cap: Some(2.0), ..PLAIN },
    // Fewer queries than keys, as behind a cache.
    Case { records: &[(5, 100), (1, 70)], ..PLAIN },
];

impl Case {
    fn segments(&self) -> Vec<Segment> {
        let (mut q_start, mut k_start) = (0, 0);
        let mut segment = |&(q_len, k_len): &(u32, u32)| {
            let segment = Segment { q_start, q_len, k_start, k_len };
            (q_start, k_start) = (q_start + q_len, k_start + k_len);
            segment
        };
        self.records.iter().map(&mut segment).collect()
    }

    fn queries(&self) -> usize {
        self.records.iter().map(|(queries, _)| *queries as usize).sum()
    }

    fn keys(&self) -> usize {
        self.records.iter().map(|(_, keys)| *keys as usize).sum()
    }

    fn longest(&self) -> u32 {
        self.records.iter().map(|(queries, _)| *queries).max().unwrap()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// q, k and v.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let (queries, keys) =
            (self.queries() * heads * head_dim, self.keys() * kv_heads * head_dim);
        [numbers(1, queries), numbers(2, keys), numbers(3, keys)]
    }
}

/// o and lse by the CPU in f64.
fn exact(case: &Case) -> [Vec<f64>; 2] {
    let exact = Exact::new();
    let device = &exact.0;
    let [q, k, v] = case.inputs().map(|numbers| exact.act(&numbers));
    let segments = case.segments();
    let mut on_device: Buf<Segment> = device.alloc("test", segments.len()).unwrap();
    device.upload(&segments, &mut on_device);
    let attention = OnCpu {
        heads: case.heads,
        scale: case.scale(),
        window: case.window,
        soft_cap: case.soft_cap,
        segments: &on_device,
        segment_count: segments.len(),
        longest: case.longest() as usize,
    };
    let (queries, keys) = (case.queries(), case.keys());
    let mut o = exact.act(&vec![0.0; q.len()]);
    let lse_len = queries * case.heads.heads;
    let mut lse = device.alloc_dense("test", lse_len, lse_dtype(Dtype::F64)).unwrap();
    let view = |act: &Act, rows: usize| act.len() / rows;
    let (q_cols, k_cols) = (view(&q, queries), view(&k, keys));
    forward(
        device,
        &attention,
        q.view(queries, q_cols),
        k.view(keys, k_cols),
        v.view(keys, k_cols),
        o.view_mut(queries, q_cols),
        lse.view_mut(queries, case.heads.heads),
    );
    [o, lse].map(|act| exact.numbers(&act))
}

#[test]
fn outputs_and_logarithms_of_sums_are_those_of_f64() {
    for case in &CASES {
        let [o, lse] = exact(case);
        for order in ORDERS {
            check(case, &o, &lse, order);
        }
    }
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
    let (kernel, width) = match head_dim {
        ..=64 => ("attention_64", 64),
        65..=128 => ("attention_128", 128),
        _ => ("attention_256", 256),
    };
    let blocks = [case.longest().div_ceil(64), heads as u32, segments.len() as u32];
    let shared_bytes = 2 * 64 * width * 2;
    card.run(
        &Grid { image: "attention", kernel, blocks, threads: 128, shared_bytes },
        &params,
        order,
    );
    // Probabilities are rounded once more.
    assert_near(&card.bf16(params.o, o.len()), o, 2.0, &format!("{case:?} in {order:?}"));
    for (found, exact) in card.f32(params.lse, lse.len()).into_iter().zip(lse) {
        assert!((f64::from(found) - exact).abs() < 1e-4, "{case:?}: lse {found}, not {exact}");
    }
}
