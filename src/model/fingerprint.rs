//! Tells one base model from another, however its linear weights are kept.
//!
//! A fingerprint has two parts. The first is of what stays as it is when a model is quantized: its shape, its
//! last norm, some rows of its embeddings. The second is of its linear weights before they were quantized: a
//! model in 16 or 32 bits has them, and a store that `quantize` made carries their digest in the metadata of
//! its file. Stores of other programs have the first part only, and are told apart by that.

use crate::checkpoint::digest::Digest;
use crate::checkpoint::tensors::{DType, Tensor};
use crate::checkpoint::weights::Weights;
use crate::error::Error;

use super::config::Config;
use super::declared::LAYERS;

/// Where a store keeps the digest of the linear weights that it was made of.
pub const SOURCE: &str = "source_weights_digest";

/// Rows of the embeddings that count, spread over all of them.
const ROWS: usize = 64;

/// Pieces of each linear weight that count, spread over all of it, and bytes of each.
const PIECES: usize = 4;
const PIECE: usize = 256;

/// What tells a base model from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    shape: String,
    weights: Option<String>,
}

impl Fingerprint {
    /// Of a model of `config` with the tensors `weights`.
    ///
    /// # Errors
    /// A norm or embedding that is missing or not dense.
    pub fn of(config: &Config, weights: &Weights) -> Result<Self, Error> {
        let mut digest = Digest::default();
        digest.part(config.architecture.as_bytes());
        let sizes = [config.hidden, config.layers, config.heads, config.feed_forward, config.vocab];
        sizes.iter().for_each(|size| digest.add(&(*size as u64).to_le_bytes()));
        let norm = weights.require("model.norm.weight", &[config.hidden])?.finite_f32()?;
        digest.part(bytemuck::cast_slice(&norm));
        let shape = [config.vocab, config.hidden];
        let table = weights.require("model.embed_tokens.weight", &shape)?;
        sample(&mut digest, table.data, ROWS.min(config.vocab), table.data.len() / config.vocab);
        let weights = linear_weights(weights)?;
        Ok(Self { shape: format!("{:016x}", digest.value()), weights })
    }

    /// As its text says.
    pub fn read(text: &str) -> Self {
        match text.split_once('-') {
            Some((shape, weights)) => {
                Self { shape: shape.to_owned(), weights: Some(weights.to_owned()) }
            }
            None => Self { shape: text.to_owned(), weights: None },
        }
    }

    /// Whether both may be of one model: nothing that both know differs.
    pub fn may_be(&self, other: &Self) -> bool {
        let weights = self.weights.as_ref().zip(other.weights.as_ref());
        self.shape == other.shape && weights.is_none_or(|(ours, theirs)| ours == theirs)
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shape)?;
        self.weights.as_ref().map_or(Ok(()), |weights| write!(f, "-{weights}"))
    }
}

/// The digest of the linear weights before they were quantized, if that can be told.
///
/// # Errors
/// A tensor that cannot be read.
pub fn linear_weights(weights: &Weights) -> Result<Option<String>, Error> {
    let carried = weights.files().iter().find_map(|file| file.metadata().get(SOURCE));
    if carried.is_some() {
        return Ok(carried.cloned());
    }
    let mut digest = Digest::default();
    for name in weights.names().filter(|name| name.starts_with(LAYERS)) {
        let tensor = weights.tensor(name)?;
        match is_in_four_bits(&tensor) {
            true => return Ok(None),
            false => {
                digest.part(name.as_bytes());
                sample(&mut digest, tensor.data, PIECES, PIECE.min(tensor.data.len()));
            }
        }
    }
    Ok(Some(format!("{:016x}", digest.value())))
}

fn is_in_four_bits(tensor: &Tensor) -> bool {
    tensor.dtype == DType::U8
}

/// Adds `count` pieces of `length` bytes of `data`, from its start to its end.
fn sample(digest: &mut Digest, data: &[u8], count: usize, length: usize) {
    for i in 0..count {
        let start = (data.len() - length) * i / (count - 1).max(1);
        digest.part(&data[start..start + length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_of_two_knows_does_not_part_them() {
        let [short, long, other] = ["aa", "aa-bb", "aa-cc"].map(Fingerprint::read);
        assert!(short.may_be(&long) && long.may_be(&short) && long.may_be(&long));
        assert!(!long.may_be(&other) && !short.may_be(&Fingerprint::read("ab")));
        assert_eq!(long.to_string(), "aa-bb");
    }
}
