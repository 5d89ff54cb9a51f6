//! Models of named shapes with synthetic weights, written as NF4 stores.
//!
//! Speed does not depend on what the weights are, so codes are any bytes and scales small numbers.

use std::fs;
use std::path::Path;

use qlora_train::checkpoint::bitsandbytes::{self, CodeBook, NewScales, NewWeight, ScaleKind};
use qlora_train::checkpoint::tensors::DType;
use qlora_train::checkpoint::writer::{Align, TensorSpec, TensorWriter};
use qlora_train::error::Error;
use qlora_train::model::config::Config;
use qlora_train::model::load::tables;
use qlora_train::quant;

use crate::support::shapes::Shape;

impl Shape {
    fn config(&self) -> serde_json::Value {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab,
        })
    }

    /// Writes the store into `folder` and gives its config.
    pub fn write(&self, folder: &Path) -> Result<Config, Error> {
        let path = folder.join("config.json");
        fs::write(&path, self.config().to_string()).map_err(Error::io(&path))?;
        let dense = |name: &str, shape: &[usize]| TensorSpec::new(name, DType::BF16, shape);
        let tables = ["model.embed_tokens.weight", "lm_head.weight"];
        let tables = &tables[..if self.tied { 1 } else { 2 }];
        let mut groups = vec![vec![dense("model.norm.weight", &[self.hidden])]];
        groups[0].extend(tables.iter().map(|name| dense(name, &[self.vocab, self.hidden])));
        groups.extend((0..self.layers).map(|layer| self.layer_specs(layer)));
        let path = folder.join("model.safetensors");
        let mut writer = TensorWriter::create(&path, groups, Align::Cache)?;
        writer.write("model.norm.weight", &bf16_bytes(self.hidden, 1.0))?;
        for name in tables {
            writer.write(name, &bf16_bytes(self.vocab * self.hidden, 0.02))?;
        }
        for layer in 0..self.layers {
            self.write_layer(&mut writer, layer)?;
        }
        writer.finish()?;
        Config::read(&folder.join("config.json"))
    }

    fn layer_specs(&self, layer: usize) -> Vec<TensorSpec> {
        let norm = |name| {
            let name = format!("model.layers.{layer}.{name}.weight");
            TensorSpec::new(name, DType::BF16, &[self.hidden])
        };
        let mut specs = vec![norm("input_layernorm"), norm("post_attention_layernorm")];
        for (name, outputs, inputs) in self.linears() {
            let name = format!("model.layers.{layer}.{name}.weight");
            let (book, shape) = (CodeBook::Nf4, [outputs, inputs]);
            let scales = ScaleKind::Nested;
            specs.extend(bitsandbytes::parts(&name, shape, DType::BF16, book, scales));
        }
        specs
    }

    fn write_layer(&self, writer: &mut TensorWriter, layer: usize) -> Result<(), Error> {
        for name in ["input_layernorm", "post_attention_layernorm"] {
            let name = format!("model.layers.{layer}.{name}.weight");
            writer.write(&name, &bf16_bytes(self.hidden, 1.0))?;
        }
        for (name, outputs, inputs) in self.linears() {
            let count = outputs * inputs;
            let (codes, absmax) = (bytes(quant::code_bytes(count)), bytes(quant::blocks(count)));
            let nested_absmax = vec![0.01; quant::nested_blocks(absmax.len())];
            let weight = NewWeight {
                book: CodeBook::Nf4,
                shape: [outputs, inputs],
                dtype: DType::BF16,
                codes: &codes,
                scales: NewScales::Nested {
                    absmax: &absmax,
                    nested_absmax: &nested_absmax,
                    offset: 0.03,
                },
            };
            let name = format!("model.layers.{layer}.{name}.weight");
            bitsandbytes::write(writer, &name, &weight, tables())?;
        }
        Ok(())
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Numbers in ±`size`; all `size` where it is 1, as norms have them.
fn bf16_bytes(count: usize, size: f32) -> Vec<u8> {
    let number = |byte: u8| match size {
        1.0 => size,
        _ => size * (f32::from(byte) / 128.0 - 1.0),
    };
    let numbers = bytes(count).into_iter().map(number).map(half::bf16::from_f32);
    numbers.flat_map(half::bf16::to_le_bytes).collect()
}
