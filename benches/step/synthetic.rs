//! Models of named shapes with random weights, written as NF4 stores.

use std::fs;
use std::path::Path;

use qlora_train::error::Error;
use qlora_train::model::config::Config;
use qlora_train::model::load::ScaleForm;
use qlora_train::model::quantize::StoreForm;
use qlora_train::model::synthetic;
use qlora_train::quant::Kind;

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

    /// Writes the store into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join("config.json");
        fs::write(&path, self.config().to_string()).map_err(Error::io(&path))?;
        let config = Config::read(&path)?;
        let how = StoreForm { kind: Kind::Nf4, scales: ScaleForm::Nested, head: false };
        synthetic::write(&folder.join("model.safetensors"), &config, how, 42, |_, _| Ok(()))
    }
}
