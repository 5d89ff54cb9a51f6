//! Published sizes of the families that are read, so that a plan can say which of them would fit.
//!
//! Shapes are those of the models' own `config.json`. What a size does not change (biases, norms,
//! activation) is that of the model at hand.

use super::{Config, LayerKind};
use crate::model::rope::{Rope, Scaling};

/// A published size of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its name, such as `Llama 3.1 8B`.
    pub name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    vocab: usize,
    tied: bool,
}

/// Name; C, L, H, K, D, F, V; whether embeddings and head are tied.
type Row = (&'static str, [usize; 7], bool);

const LLAMA: &[Row] = &[
    ("Llama 3.2 1B", [2048, 16, 32, 8, 64, 8192, 128_256], true),
    ("Llama 3.2 3B", [3072, 28, 24, 8, 128, 8192, 128_256], true),
    ("Llama 3.1 8B", [4096, 32, 32, 8, 128, 14_336, 128_256], false),
    ("Llama 3.1 70B", [8192, 80, 64, 8, 128, 28_672, 128_256], false),
    ("Llama 3.1 405B", [16_384, 126, 128, 8, 128, 53_248, 128_256], false),
];

const QWEN2: &[Row] = &[
    ("Qwen2.5 0.5B", [896, 24, 14, 2, 64, 4864, 151_936], true),
    ("Qwen2.5 1.5B", [1536, 28, 12, 2, 128, 8960, 151_936], true),
    ("Qwen2.5 3B", [2048, 36, 16, 2, 128, 11_008, 151_936], true),
    ("Qwen2.5 7B", [3584, 28, 28, 4, 128, 18_944, 152_064], false),
    ("Qwen2.5 14B", [5120, 48, 40, 8, 128, 13_824, 152_064], false),
    ("Qwen2.5 32B", [5120, 64, 40, 8, 128, 27_648, 152_064], false),
    ("Qwen2.5 72B", [8192, 80, 64, 8, 128, 29_568, 152_064], false),
];

const QWEN3: &[Row] = &[
    ("Qwen3 0.6B", [1024, 28, 16, 8, 128, 3072, 151_936], true),
    ("Qwen3 1.7B", [2048, 28, 16, 8, 128, 6144, 151_936], true),
    ("Qwen3 4B", [2560, 36, 32, 8, 128, 9728, 151_936], true),
    ("Qwen3 8B", [4096, 36, 32, 8, 128, 12_288, 151_936], false),
    ("Qwen3 14B", [5120, 40, 40, 8, 128, 17_408, 151_936], false),
    ("Qwen3 32B", [5120, 64, 64, 8, 128, 25_600, 151_936], false),
];

const MISTRAL: &[Row] = &[
    ("Mistral 7B", [4096, 32, 32, 8, 128, 14_336, 32_768], false),
    ("Mistral Nemo 12B", [5120, 40, 32, 8, 128, 14_336, 131_072], false),
    ("Mistral Small 24B", [5120, 40, 32, 8, 128, 32_768, 131_072], false),
    ("Mistral Large 123B", [12_288, 88, 96, 8, 128, 28_672, 32_768], false),
];

const GEMMA2: &[Row] = &[
    ("Gemma 2 2B", [2304, 26, 8, 4, 256, 9216, 256_000], true),
    ("Gemma 2 9B", [3584, 42, 16, 8, 256, 14_336, 256_000], true),
    ("Gemma 2 27B", [4608, 46, 32, 16, 128, 36_864, 256_000], true),
];

const GEMMA3: &[Row] = &[
    ("Gemma 3 1B", [1152, 26, 4, 1, 256, 6912, 262_144], true),
    ("Gemma 3 4B", [2560, 34, 8, 4, 256, 10_240, 262_208], true),
    ("Gemma 3 12B", [3840, 48, 16, 8, 256, 15_360, 262_208], true),
    ("Gemma 3 27B", [5376, 62, 32, 16, 128, 21_504, 262_208], true),
];

const PHI3: &[Row] = &[
    ("Phi-3 mini 3.8B", [3072, 32, 32, 32, 96, 8192, 32_064], false),
    ("Phi-4 14B", [5120, 40, 40, 10, 128, 17_920, 100_352], false),
];

/// The published sizes of the family whose name in `architectures` is `architecture`, the smallest
/// first.
pub fn members(architecture: &str) -> impl DoubleEndedIterator<Item = Member> {
    let rows = match architecture {
        "LlamaForCausalLM" => LLAMA,
        "Qwen2ForCausalLM" => QWEN2,
        "Qwen3ForCausalLM" => QWEN3,
        "MistralForCausalLM" => MISTRAL,
        "Gemma2ForCausalLM" => GEMMA2,
        "Gemma3ForCausalLM" => GEMMA3,
        "Phi3ForCausalLM" => PHI3,
        _ => &[],
    };
    rows.iter().map(
        |(name, [hidden, layers, heads, kv_heads, head_dim, feed_forward, vocab], tied)| Member {
            name,
            hidden: *hidden,
            layers: *layers,
            heads: *heads,
            kv_heads: *kv_heads,
            head_dim: *head_dim,
            feed_forward: *feed_forward,
            vocab: *vocab,
            tied: *tied,
        },
    )
}

impl Member {
    /// The shape of a model of this size, of the family of `of`, for counting bytes: its angles are not
    /// those of the model.
    pub fn shape(&self, of: &Config) -> Config {
        let kinds: Vec<LayerKind> = of.kinds.iter().cycle().take(self.layers).copied().collect();
        let rope = || Rope::new(10_000.0, self.head_dim, Scaling::Default);
        Config {
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            feed_forward: self.feed_forward,
            vocab: self.vocab,
            tied: self.tied,
            kinds,
            ropes: of.ropes.iter().map(|_| rope()).collect(),
            quantization: None,
            ..of.clone()
        }
    }

    /// Numbers in its matrices.
    pub fn parameters(&self) -> usize {
        let heads = (2 * self.heads + 2 * self.kv_heads) * self.head_dim;
        let layer = (heads + 3 * self.feed_forward) * self.hidden;
        let embeddings = if self.tied { 1 } else { 2 };
        self.layers * layer + embeddings * self.vocab * self.hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number before `B` in each name is its count of parameters.
    #[test]
    fn sizes_are_those_that_names_tell() {
        for family in ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Gemma3", "Phi3"] {
            let all: Vec<Member> = members(&format!("{family}ForCausalLM")).collect();
            assert!(all.is_sorted_by_key(Member::parameters) && !all.is_empty(), "{family}");
            for member in all {
                let told = member.name.rsplit(' ').next().unwrap().trim_end_matches('B');
                let told: f64 = told.parse().unwrap();
                let billions = member.parameters() as f64 / 1e9;
                let off = billions / told;
                assert!((0.8..1.35).contains(&off), "{}: {billions:.2} billion", member.name);
            }
        }
    }
}
