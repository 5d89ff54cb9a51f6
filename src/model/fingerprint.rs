//! Tells one base model from another, however its linear weights are kept: the original and a store in four
//! bits that was made of it have the same fingerprint, a model that was trained further has another one.

use crate::checkpoint::digest::Digest;
use crate::checkpoint::weights::Weights;
use crate::error::Error;

use super::config::Config;

/// Rows of the embeddings that count, spread over all of them.
const ROWS: usize = 64;

/// The digest of a model's shape, its last norm, and some rows of its embeddings: what is kept as it is when
/// linear weights are quantized.
///
/// # Errors
/// A tensor that is missing or not dense.
pub fn fingerprint(config: &Config, weights: &Weights) -> Result<String, Error> {
    let mut digest = Digest::default();
    digest.part(config.architecture.as_bytes());
    for size in [config.hidden, config.layers, config.heads, config.feed_forward, config.vocab] {
        digest.add(&(size as u64).to_le_bytes());
    }
    let norm = weights.require("model.norm.weight", &[config.hidden])?.finite_f32()?;
    digest.part(bytemuck::cast_slice(&norm));
    let shape = [config.vocab, config.hidden];
    let table = weights.require("model.embed_tokens.weight", &shape)?;
    let row_bytes = table.data.len() / config.vocab;
    for i in 0..ROWS.min(config.vocab) {
        let row = i * config.vocab / ROWS.min(config.vocab);
        digest.add(&table.data[row * row_bytes..(row + 1) * row_bytes]);
    }
    Ok(format!("{:016x}", digest.value()))
}
