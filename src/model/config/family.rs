//! What each family fixes without writing it into `config.json`, and which fields it takes.
//!
//! The source is the reference's code, `configuration_*.py` and `modeling_*.py` of each family in
//! the Python package transformers.

use serde_json::Value;

use super::fields::Fields;
use super::{Activation, Projections};
use crate::error::{Error, escape};
use crate::ops::rmsnorm::Center;

/// A family of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Phi3,
    Gemma,
    Gemma2,
    Gemma3,
}

use Family::{Gemma, Gemma2, Gemma3, Llama, Mistral, Phi3, Qwen2, Qwen3};

const ALL: [Family; 8] = [Llama, Mistral, Qwen2, Qwen3, Phi3, Gemma, Gemma2, Gemma3];

/// Fields of other families, or of changed copies of these, that change what is computed when they
/// are set.
const FOREIGN: &[&str] = &[
    "attention_multiplier",
    "clip_qkv",
    "dim_model_base",
    "embedding_multiplier",
    "lm_head_bias",
    "logit_scale",
    "logits_scaling",
    "moe_intermediate_size",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "parallel_attn",
    "qk_layernorm",
    "residual_multiplier",
    "rope_interleaved",
    "scale_depth",
    "scale_emb",
    "use_bidirectional_attention",
    "use_mrope",
    "use_parallel_residual",
    "use_qk_norm",
    "vision_config",
];

/// Those of [`FOREIGN`] that multiply, so that 1 changes nothing.
const MULTIPLIERS: &[&str] =
    &["embedding_multiplier", "logit_scale", "logits_scaling", "residual_multiplier", "scale_emb"];

/// Fields that some of the families take, each with those.
const OWN: &[(&str, &[Family])] = &[
    ("attention_bias", &[Llama, Qwen3, Gemma, Gemma2, Gemma3]),
    ("attn_logit_softcapping", &[Gemma2]),
    ("final_logit_softcapping", &[Gemma2, Gemma3]),
    ("mlp_bias", &[Llama]),
    ("query_pre_attn_scalar", &[Gemma2, Gemma3]),
    ("rope_local_base_freq", &[Gemma3]),
    ("use_sliding_window", &[Qwen2, Qwen3]),
];

impl Family {
    /// The family that `architectures` names; `model_type`, where it stands, must agree.
    pub fn find(fields: &Fields) -> Result<Self, Error> {
        let name = architecture(fields)?;
        let Some(family) = ALL.into_iter().find(|family| family.architecture() == name) else {
            return Err(unknown(fields, name));
        };
        match fields.text("model_type")? {
            Some(found) if found != family.model_type() => {
                let what = format!(
                    "\"{}\", but {name} goes with \"{}\": the file mixes two models",
                    escape(found),
                    family.model_type()
                );
                Err(fields.refuse("model_type", what))
            }
            _ => Ok(family),
        }
    }

    /// Refuses set fields that this family does not know and that would change numbers.
    pub fn refuse_foreign(self, fields: &Fields) -> Result<(), Error> {
        let others = OWN.iter().filter(|(_, families)| !families.contains(&self));
        let keys = FOREIGN.iter().chain(others.map(|(key, _)| key));
        let is_neutral = |key: &str| {
            MULTIPLIERS.contains(&key) && fields.value(key).and_then(Value::as_f64) == Some(1.0)
        };
        let mut set = keys.filter(|key| is_set(fields.value(key)) && !is_neutral(key));
        match set.next() {
            None => Ok(()),
            Some(key) => {
                let what = format!(
                    "is set, which would change what {} computes and is not supported: use the \
                     original model",
                    self.architecture()
                );
                Err(fields.refuse(key, what))
            }
        }
    }

    pub fn architecture(self) -> &'static str {
        match self {
            Llama => "LlamaForCausalLM",
            Mistral => "MistralForCausalLM",
            Qwen2 => "Qwen2ForCausalLM",
            Qwen3 => "Qwen3ForCausalLM",
            Phi3 => "Phi3ForCausalLM",
            Gemma => "GemmaForCausalLM",
            Gemma2 => "Gemma2ForCausalLM",
            Gemma3 => "Gemma3ForCausalLM",
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Llama => "llama",
            Mistral => "mistral",
            Qwen2 => "qwen2",
            Qwen3 => "qwen3",
            Phi3 => "phi3",
            Gemma => "gemma",
            Gemma2 => "gemma2",
            Gemma3 => "gemma3_text",
        }
    }

    pub fn is_gemma(self) -> bool {
        matches!(self, Gemma | Gemma2 | Gemma3)
    }

    /// Old files of these families have no `num_key_value_heads`.
    pub fn kv_heads_default_to_heads(self) -> bool {
        matches!(self, Llama | Phi3)
    }

    /// In the others a head's size is independent of the hidden size.
    pub fn head_dim_defaults_to_share(self) -> bool {
        matches!(self, Llama | Mistral | Qwen2 | Phi3)
    }

    pub fn center(self) -> Center {
        if self.is_gemma() { Center::One } else { Center::Zero }
    }

    pub fn projections(self) -> Projections {
        if self == Phi3 { Projections::Fused } else { Projections::Separate }
    }

    pub fn qk_norm(self) -> bool {
        matches!(self, Qwen3 | Gemma3)
    }

    pub fn sandwich(self) -> bool {
        matches!(self, Gemma2 | Gemma3)
    }

    pub fn qkv_bias(self, fields: &Fields) -> Result<bool, Error> {
        let written = fields.flag("attention_bias", false)?;
        Ok(self == Qwen2 || written)
    }

    pub fn o_bias(self, fields: &Fields) -> Result<bool, Error> {
        fields.flag("attention_bias", false)
    }

    pub fn mlp_bias(self, fields: &Fields) -> Result<bool, Error> {
        fields.flag("mlp_bias", false)
    }

    /// 1/√D, or for Gemma 2 and 3 1/√`query_pre_attn_scalar`.
    pub fn attention_scale(self, fields: &Fields, head_dim: usize) -> Result<f32, Error> {
        let key = "query_pre_attn_scalar";
        let below = if self.sandwich() {
            let found = fields.number_within(key, 1e-3, 1e9)?;
            fields.needed(key, found, "the number whose root divides attention scores")?
        } else {
            head_dim as f64
        };
        Ok(below.sqrt().recip() as f32)
    }

    pub fn attention_soft_cap(self, fields: &Fields) -> Result<Option<f32>, Error> {
        self.soft_cap(fields, "attn_logit_softcapping")
    }

    pub fn final_soft_cap(self, fields: &Fields) -> Result<Option<f32>, Error> {
        self.soft_cap(fields, "final_logit_softcapping")
    }

    /// Gemma 2 caps unless told not to, so silence is no answer there.
    fn soft_cap(self, fields: &Fields, key: &str) -> Result<Option<f32>, Error> {
        if self == Gemma2 && !fields.stands(key) {
            return Err(fields.refuse(key, "missing, expected the cap, or null for none"));
        }
        let cap = fields.number_within(key, 1e-3, 1e9)?;
        Ok(cap.map(|cap| cap as f32))
    }

    /// The first Gemma was published with `"hidden_act": "gelu"` but computes the tanh form.
    pub fn activation(self, fields: &Fields) -> Result<Activation, Error> {
        let newer = "hidden_activation";
        let key = match self {
            Gemma2 | Gemma3 => newer,
            Gemma if fields.value(newer).is_some() => newer,
            _ => "hidden_act",
        };
        let name = fields.needed(key, fields.text(key)?, "the activation of the MLP's gate")?;
        match name {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            "gelu" if self == Gemma => Ok(Activation::GeluTanh),
            "gelu" => Ok(Activation::Gelu),
            _ => {
                let known = "known are silu, gelu, gelu_new and gelu_pytorch_tanh";
                Err(fields.refuse_value(key, known))
            }
        }
    }
}

fn architecture<'a>(fields: &Fields<'a>) -> Result<&'a str, Error> {
    let key = "architectures";
    let list = fields.list(key)?.map(Vec::as_slice);
    match fields.needed(key, list, &format!("a list with one of {}", names()))? {
        [Value::String(name)] => Ok(name),
        _ => Err(fields.refuse(key, format!("expected a list with one of {}", names()))),
    }
}

fn unknown(fields: &Fields, name: &str) -> Error {
    let name = escape(name);
    let why = if name == "Gemma3ForConditionalGeneration" {
        "a model of text and images: save its language model as Gemma3ForCausalLM first; known are"
    } else if is_set(fields.value("auto_map")) {
        "computed by Python code in its folder (auto_map), which is never run; known are"
    } else {
        "not a known architecture; known are"
    };
    fields.refuse("architectures", format!("{name} is {why} {}", names()))
}

fn names() -> String {
    ALL.map(Family::architecture).join(", ")
}

/// Neither absent nor a value that says no: false, 0, nothing inside.
fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::Bool(true) | Value::String(_)) => true,
    }
}
