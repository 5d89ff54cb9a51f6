//! The named shapes that everything is measured at.

/// A model by its dimensions.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub feed_forward: usize,
    pub vocab: usize,
    pub tied: bool,
}

pub const QWEN: Shape = Shape {
    name: "qwen2.5-0.5b",
    hidden: 896,
    layers: 24,
    heads: 14,
    kv_heads: 2,
    feed_forward: 4864,
    vocab: 151_936,
    tied: true,
};

pub const TINYLLAMA: Shape = Shape {
    name: "tinyllama-1.1b",
    hidden: 2048,
    layers: 22,
    heads: 32,
    kv_heads: 4,
    feed_forward: 5632,
    vocab: 32_000,
    tied: false,
};

pub const SMALL: Shape = Shape {
    name: "small",
    hidden: 512,
    layers: 8,
    heads: 8,
    kv_heads: 4,
    feed_forward: 1408,
    vocab: 8192,
    tied: true,
};

/// Rank of every adapter.
pub const RANK: usize = 16;

impl Shape {
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}
