//! What is measured, by name, and the operations that it needs.

use std::fmt;

use qlora_train::data::{MicroBatch, Target};
use qlora_train::device::Dtype;
use qlora_train::model::workspace::Keep;

use crate::support::shapes::{QWEN, RANK, SMALL, Shape, TINYLLAMA};

/// One kind of step.
#[derive(Clone, Copy)]
pub struct Case {
    pub shape: Shape,
    pub tokens: usize,
    pub keep: Keep,
    pub dtype: Dtype,
    /// Percent of the tokens that are supervised.
    pub supervised: usize,
}

const TINY: Shape = Shape {
    name: "tiny",
    hidden: 64,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    feed_forward: 172,
    vocab: 512,
    tied: true,
};

const KEPT: Case =
    Case { shape: QWEN, tokens: 512, keep: Keep::EVERYTHING, dtype: Dtype::Bf16, supervised: 100 };
const RECOMPUTED: Case = Case { keep: Keep::INPUTS, ..KEPT };

/// The smallest first.
const CASES: [Case; 18] = [
    Case { shape: TINY, tokens: 64, ..KEPT },
    Case { shape: SMALL, ..KEPT },
    Case { shape: SMALL, ..RECOMPUTED },
    Case { shape: SMALL, tokens: 2048, ..KEPT },
    Case { shape: SMALL, tokens: 2048, ..RECOMPUTED },
    Case { shape: SMALL, dtype: Dtype::F32, ..KEPT },
    Case { shape: SMALL, dtype: Dtype::F32, ..RECOMPUTED },
    KEPT,
    RECOMPUTED,
    Case { supervised: 30, ..KEPT },
    Case { tokens: 2048, ..KEPT },
    Case { tokens: 2048, ..RECOMPUTED },
    Case { dtype: Dtype::F32, ..KEPT },
    Case { shape: TINYLLAMA, ..KEPT },
    Case { shape: TINYLLAMA, ..RECOMPUTED },
    Case { shape: TINYLLAMA, tokens: 2048, ..KEPT },
    Case { shape: TINYLLAMA, tokens: 2048, ..RECOMPUTED },
    Case { shape: TINYLLAMA, dtype: Dtype::F32, ..RECOMPUTED },
];

/// The case of exactly this name, or else all whose names begin with it.
pub fn named(name: &str) -> Vec<Case> {
    let exact = CASES.iter().find(|case| case.to_string() == name);
    exact.map_or_else(
        || CASES.into_iter().filter(|case| case.to_string().starts_with(name)).collect(),
        |case| vec![*case],
    )
}

/// Shape, tokens, what blocks keep; then what differs from bf16 with every token supervised.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let keep = if self.keep == Keep::EVERYTHING { "kept" } else { "recomputed" };
        write!(f, "{}/{}/{keep}", self.shape.name, self.tokens)?;
        if self.dtype == Dtype::F32 {
            write!(f, "/f32")?;
        }
        if self.supervised < 100 {
            write!(f, "/{}%", self.supervised)?;
        }
        Ok(())
    }
}

impl Case {
    /// Steps that are measured together: an odd number, more of short ones.
    pub fn steps(&self) -> u64 {
        if self.tokens < 512 { 201 } else { 1 }
    }

    pub fn targets(&self) -> usize {
        (self.tokens - 1) * self.supervised / 100
    }

    /// One sequence; the last tokens are the supervised ones.
    pub fn batch(&self) -> MicroBatch {
        let tokens = self.tokens;
        let id = |i: usize| (i * 7919 % self.shape.vocab) as u32;
        let target = |i: usize| Target { row: i as u32, id: id(i + 1), segment: 0 };
        MicroBatch {
            tokens: (0..tokens).map(id).collect(),
            positions: (0..tokens as u32).collect(),
            segments: vec![0..tokens as u32],
            targets: (tokens - 1 - self.targets()..tokens - 1).map(target).collect(),
        }
    }

    /// Operations of a step for each of its tokens, those of recomputation counted.
    pub fn flops_per_token(&self) -> f64 {
        let once = self.flops_computed_once();
        if self.keep == Keep::EVERYTHING { once } else { once + self.flops_recomputed() }
    }

    /// Forward 2 per weight and as many backward (no gradient of frozen weights), LoRA three times,
    /// causal attention 3.5 times (once forward, 2.5 times backward), the head where a token is
    /// supervised.
    fn flops_computed_once(&self) -> f64 {
        let (shape, supervised) = (&self.shape, self.supervised as f64 / 100.0);
        let attention = 3.5 * self.attention_flops();
        let head = supervised * (shape.vocab * shape.hidden) as f64;
        let layer = 4.0 * shape.weights() as f64 + 6.0 * shape.low_rank() as f64 + attention;
        shape.layers as f64 * layer + 4.0 * head
    }

    /// The forward pass of each block but the last a second time, up to the down projection, of
    /// which the way back needs the low-rank part only.
    fn flops_recomputed(&self) -> f64 {
        let shape = &self.shape;
        let not_needed = (shape.feed_forward + RANK) * shape.hidden;
        let maps = shape.weights() + shape.low_rank() - not_needed;
        (shape.layers - 1) as f64 * (2.0 * maps as f64 + self.attention_flops())
    }

    /// Of one token in one block, forward: half of all pairs are masked.
    fn attention_flops(&self) -> f64 {
        2.0 * (self.tokens * self.shape.hidden) as f64
    }
}

impl Shape {
    /// Linear maps of one block: name, outputs, inputs.
    pub fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let (c, f, kv) = (self.hidden, self.feed_forward, self.kv_heads * self.head_dim());
        [
            ("self_attn.q_proj", c, c),
            ("self_attn.k_proj", kv, c),
            ("self_attn.v_proj", kv, c),
            ("self_attn.o_proj", c, c),
            ("mlp.gate_proj", f, c),
            ("mlp.up_proj", f, c),
            ("mlp.down_proj", c, f),
        ]
    }

    /// Of one block.
    fn weights(&self) -> usize {
        self.linears().iter().map(|(_, n, k)| n * k).sum()
    }

    /// Numbers of the adapters of one block.
    fn low_rank(&self) -> usize {
        self.linears().iter().map(|(_, n, k)| RANK * (n + k)).sum()
    }
}
