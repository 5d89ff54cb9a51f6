//! What `config.json` says a model computes, for every family that is read.
//!
//! A [`Config`] that exists is consistent: sizes divide, every layer names its rotary table, and no
//! field that would change a number was passed over. What a family fixes without writing it down
//! (which projections have biases, where the norms sit) is filled in here, so that the decoder asks
//! for properties and never for a name. Both spellings of a field are taken: the older
//! `rope_scaling` with `rope_theta`, and the newer `rope_parameters`.
//!
//! Not here: the names and shapes of tensors, and what `quantization_config` means. Read `family`
//! for what each family fixes, `layers` for windows, `ropes` for the rotary fields; the angles
//! themselves are in [`rope`](super::rope).

mod family;
mod fields;
mod layers;
pub mod members;
mod ropes;

use std::path::Path;

use half::bf16;
use serde_json::{Map, Value};

use super::rope::Rope;
use crate::device::Dtype;
use crate::error::Error;
use crate::json;
pub use crate::ops::glu::Activation;
use crate::ops::rmsnorm::Center;
use family::Family;
use fields::Fields;

/// Largest hidden size taken.
const LARGEST_HIDDEN: usize = 1 << 20;
/// Largest inner size of the MLP taken.
const LARGEST_FEED_FORWARD: usize = 1 << 22;
/// Largest number of layers taken.
const LARGEST_DEPTH: usize = 1 << 12;
/// Largest number of heads taken.
const LARGEST_HEADS: usize = 1 << 12;
/// Largest head dim taken.
const LARGEST_HEAD_DIM: usize = 1 << 12;
/// Largest vocabulary taken.
const LARGEST_VOCAB: usize = 1 << 24;
/// Longest sequence, or window of one, taken.
const LARGEST_LENGTH: usize = 1 << 30;

/// A model's shape and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The name in `architectures`, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// C, the width of the residual stream.
    pub hidden: usize,
    /// L, the number of blocks.
    pub layers: usize,
    /// H, query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// K, key and value heads.
    pub kv_heads: usize,
    /// D, numbers per head; even.
    pub head_dim: usize,
    /// F, the inner width of the MLP.
    pub feed_forward: usize,
    /// V, rows of the embedding.
    pub vocab: usize,
    /// ε of every RMS norm.
    pub eps: f32,
    /// How norm weights are stored.
    pub center: Center,
    /// The gate's activation.
    pub activation: Activation,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Whether embeddings are multiplied by √C; see [`Config::embedding_scale`].
    pub scaled_embedding: bool,
    /// What q·k is multiplied by.
    pub attention_scale: f32,
    /// c of c·tanh(s/c) on scaled attention scores, before the mask.
    pub attention_soft_cap: Option<f32>,
    /// c of c·tanh(s/c) on logits.
    pub final_soft_cap: Option<f32>,
    /// How the matrices of q, k, v and of gate, up are stored.
    pub projections: Projections,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether each head of q and k is normalized before it is rotated.
    pub qk_norm: bool,
    /// Whether norms also follow the attention and the MLP (Gemma 2 and 3).
    pub sandwich: bool,
    /// What differs from layer to layer; `layers` entries.
    pub kinds: Vec<LayerKind>,
    /// Rotary tables; one, or for Gemma 3 two.
    pub ropes: Vec<Rope>,
    /// The length that the model is meant for, in tokens.
    pub max_positions: usize,
    /// Tokens that begin a text.
    pub bos: Vec<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// The token that fills rows.
    pub pad: Option<u32>,
    /// `quantization_config` as found, an object.
    pub quantization: Option<Value>,
}

/// How matrices that share an input are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projections {
    /// One tensor each.
    Separate,
    /// q, k, v as the rows of one tensor, gate and up as those of another (Phi-3).
    Fused,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// Tokens that a token sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`].
    pub rope: usize,
}

impl Config {
    /// Reads the file `path`. Errors name the file, the field and what to do.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::parse(json::read_object(path)?, path)
    }

    /// Like [`Config::read`] for an object that was read already; `path` is for messages.
    pub fn parse(map: Map<String, Value>, path: &Path) -> Result<Self, Error> {
        let fields = Fields::of(&map, path);
        let family = Family::find(&fields)?;
        family.refuse_foreign(&fields)?;
        check_dtype(&fields)?;
        let shape = Shape::read(&fields, family)?;
        let (ropes, max_positions) = ropes::read(&fields, family, shape.head_dim)?;
        let final_soft_cap = family.final_soft_cap(&fields)?;
        Ok(Self {
            architecture: family.architecture().to_owned(),
            hidden: shape.hidden,
            layers: shape.layers,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            feed_forward: fields.size("intermediate_size", LARGEST_FEED_FORWARD)?,
            vocab: shape.vocab,
            eps: eps(&fields)?,
            center: family.center(),
            activation: family.activation(&fields)?,
            tied: fields.flag("tie_word_embeddings", family.is_gemma())?,
            scaled_embedding: family.is_gemma(),
            attention_scale: family.attention_scale(&fields, shape.head_dim)?,
            attention_soft_cap: family.attention_soft_cap(&fields)?,
            final_soft_cap,
            projections: family.projections(),
            qkv_bias: family.qkv_bias(&fields)?,
            o_bias: family.o_bias(&fields)?,
            mlp_bias: family.mlp_bias(&fields)?,
            qk_norm: family.qk_norm(),
            sandwich: family.sandwich(),
            kinds: layers::read(&fields, family, shape.layers)?,
            ropes,
            max_positions,
            bos: fields.tokens("bos_token_id", shape.vocab)?,
            eos: fields.tokens("eos_token_id", shape.vocab)?,
            pad: fields.token("pad_token_id", shape.vocab)?,
            quantization: quantization(&fields)?,
        })
    }

    /// What embeddings are multiplied by: 1, or for Gemma √C, rounded to `dtype` as the reference
    /// keeps it.
    pub fn embedding_scale(&self, dtype: Dtype) -> f32 {
        if !self.scaled_embedding {
            return 1.0;
        }
        let scale = (self.hidden as f64).sqrt();
        match dtype {
            Dtype::Bf16 => bf16::from_f64(scale).to_f32(),
            Dtype::F32 | Dtype::F64 => scale as f32,
        }
    }
}

/// The sizes that others depend on.
struct Shape {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

impl Shape {
    fn read(fields: &Fields, family: Family) -> Result<Self, Error> {
        let hidden = fields.size("hidden_size", LARGEST_HIDDEN)?;
        let heads = fields.size("num_attention_heads", LARGEST_HEADS)?;
        Ok(Self {
            hidden,
            layers: fields.size("num_hidden_layers", LARGEST_DEPTH)?,
            heads,
            kv_heads: kv_heads(fields, family, heads)?,
            head_dim: head_dim(fields, family, hidden, heads)?,
            vocab: fields.size("vocab_size", LARGEST_VOCAB)?,
        })
    }
}

fn kv_heads(fields: &Fields, family: Family, heads: usize) -> Result<usize, Error> {
    let key = "num_key_value_heads";
    if fields.value(key).is_none() && family.kv_heads_default_to_heads() {
        return Ok(heads);
    }
    let kv_heads = fields.size(key, LARGEST_HEADS)?;
    if !heads.is_multiple_of(kv_heads) {
        let what = format!(
            "{kv_heads}, but num_attention_heads {heads} is no multiple of it: each key head must \
             serve the same number of query heads"
        );
        return Err(fields.refuse(key, what));
    }
    Ok(kv_heads)
}

fn head_dim(fields: &Fields, family: Family, hidden: usize, heads: usize) -> Result<usize, Error> {
    let key = "head_dim";
    let derived = fields.value(key).is_none() && family.head_dim_defaults_to_share();
    if derived && !hidden.is_multiple_of(heads) {
        let what = format!(
            "missing, and hidden_size {hidden} is no multiple of num_attention_heads {heads}: \
             write the size of one head"
        );
        return Err(fields.refuse(key, what));
    }
    let head_dim = if derived { hidden / heads } else { fields.size(key, LARGEST_HEAD_DIM)? };
    if !head_dim.is_multiple_of(2) || head_dim > LARGEST_HEAD_DIM {
        let what = format!("{head_dim}, expected an even number up to {LARGEST_HEAD_DIM}");
        return Err(fields.refuse(key, what));
    }
    Ok(head_dim)
}

/// Each weight file states its own element types, so only a broken field matters here.
fn check_dtype(fields: &Fields) -> Result<(), Error> {
    fields.text("torch_dtype")?;
    fields.text("dtype").map(drop)
}

fn eps(fields: &Fields) -> Result<f32, Error> {
    let key = "rms_norm_eps";
    let eps = fields.needed(key, fields.number(key)?, "a small positive number")? as f32;
    if eps > 0.0 && eps <= 1.0 {
        Ok(eps)
    } else {
        Err(fields.refuse_value(key, "expected a small positive number, such as 1e-6"))
    }
}

fn quantization(fields: &Fields) -> Result<Option<Value>, Error> {
    let key = "quantization_config";
    match fields.value(key) {
        None => Ok(None),
        Some(value @ Value::Object(_)) => Ok(Some(value.clone())),
        Some(other) => {
            let what = format!("{}, expected an object or null", json::kind(other));
            Err(fields.refuse(key, what))
        }
    }
}
