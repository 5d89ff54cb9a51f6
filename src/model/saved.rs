//! What blocks keep between their passes, and the gradients inside one.
//!
//! Names and shapes are those of the steps in `block.rs`.

use std::ops::Range;

use crate::device::{Act, Device};
use crate::error::Error;
use crate::ops::attention;

use super::block::{Block, mlp_rows};

/// What the forward pass of one block leaves for its backward pass.
pub struct Saved {
    pub(super) h1: Act,
    pub(super) qk: Option<Act>,
    pub(super) qkv: Act,
    pub(super) lse: Act,
    pub(super) o: Act,
    pub(super) attention_out: Option<Act>,
    pub(super) x1: Act,
    /// Rows of what follows: of all tokens, or of one piece of them.
    pub(super) mlp: usize,
    pub(super) h2: Act,
    pub(super) gate_up: Act,
    pub(super) mlp_out: Option<Act>,
    pub(super) low_rank: Vec<Option<Act>>,
}

/// Gradients inside one block, the same memory for all blocks.
pub struct Grads {
    pub(super) dn: Act,
    pub(super) dqkv: Act,
    pub(super) d_o: Act,
    pub(super) d_gate_up: Act,
}

/// Label of what forward passes leave for backward passes.
const SAVED: &str = "activations";
/// Label of the gradients within a block.
const GRADS: &str = "activation gradients";

impl Saved {
    /// Room for `tokens` tokens of any one of `blocks`, which differ in their updates at most; for the
    /// MLP of `mlp` of them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        device: &Device,
        blocks: &[Block],
        tokens: usize,
        mlp: usize,
    ) -> Result<Self, Error> {
        let of_mlp = |columns: usize| device.alloc_act(SAVED, mlp * columns);
        let (act, block) = (|columns: usize| device.alloc_act(SAVED, tokens * columns), &blocks[0]);
        let heads = block.attention.heads;
        let (hidden, feed_forward) = (block.down.weight.rows, block.down.weight.cols);
        let raw = block.attention.value_columns().start;
        let sandwich = block.norms.outputs.is_some();
        let lse = attention::lse_dtype(device.dtype());
        Ok(Self {
            h1: act(hidden)?,
            qk: block.norms.query_key.as_ref().map(|_| act(raw)).transpose()?,
            qkv: act(block.attention.fused_columns())?,
            lse: device.alloc_dense(SAVED, tokens * heads.heads, lse)?,
            o: act(heads.heads * heads.head_dim)?,
            attention_out: sandwich.then(|| act(hidden)).transpose()?,
            x1: act(hidden)?,
            mlp,
            h2: of_mlp(hidden)?,
            gate_up: of_mlp(2 * feed_forward)?,
            mlp_out: sandwich.then(|| of_mlp(hidden)).transpose()?,
            low_rank: largest_ranks(blocks)
                .map(|r| r.map(act).transpose())
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Saved {
    /// Where the MLP of the tokens `piece`, of `tokens` in all, is kept.
    pub(super) fn place(&self, piece: &Range<usize>, tokens: usize) -> Range<usize> {
        match self.keeps_mlp(tokens) {
            true => piece.clone(),
            false => 0..piece.len(),
        }
    }

    /// Whether the MLP of all of `tokens` tokens is kept.
    pub(super) fn keeps_mlp(&self, tokens: usize) -> bool {
        tokens <= self.mlp
    }
}

/// For each linear map of a block the largest rank that its update has in any of `blocks`.
fn largest_ranks(blocks: &[Block]) -> impl Iterator<Item = Option<usize>> {
    let rank = |block: &Block, i| Some(block.linears().nth(i)?.lora.as_ref()?.rank);
    let of_all = move |i| blocks.iter().filter_map(|block| rank(block, i)).max();
    (0..blocks[0].linears().count()).map(of_all)
}

impl Grads {
    /// Room for `tokens` tokens of a block like `block`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Device, block: &Block, tokens: usize) -> Result<Self, Error> {
        let act = |columns: usize| device.alloc_act(GRADS, tokens * columns);
        let (hidden, feed_forward) = (block.down.weight.rows, block.down.weight.cols);
        Ok(Self {
            dn: act(hidden)?,
            dqkv: act(block.attention.fused_columns())?,
            d_o: act(block.attention.query_columns().len())?,
            d_gate_up: device.alloc_act(GRADS, mlp_rows(tokens) * 2 * feed_forward)?,
        })
    }
}
