//! The raw object of `adapter_config.json`: which keys are allowed, and single fields with their
//! checks. What the fields mean together is in `config`.

use std::path::Path;

use serde_json::{Map, Value};

use super::TargetModules;
use crate::error::{Error, Place, escape};
use crate::json::kind;

/// Largest rank taken; real ones end at some hundreds.
const LARGEST_RANK: u64 = 65_536;

/// Keys that change what the adapter computes when they are set, and that are not supported.
const REFUSED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Keys that are read, or that have no effect on a finished adapter.
const KNOWN: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// The object with its path, for messages.
pub(super) struct Fields<'a> {
    pub map: Map<String, Value>,
    pub path: &'a Path,
}

impl Fields<'_> {
    fn refuse(&self, key: &str, what: impl Into<String>) -> Error {
        Error::input(Place::file(self.path).field(key), what)
    }

    /// Present and neither null, false nor empty.
    pub fn is_set(&self, key: &str) -> bool {
        match self.map.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Bool(true) | Value::Number(_)) => true,
        }
    }

    /// A key that must be true or false; absent means false.
    pub fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(self.refuse(key, format!("{}, expected true or false", kind(other))))
            }
        }
    }

    pub fn check_kind(&self) -> Result<(), Error> {
        match self.text("peft_type")?.as_deref() {
            Some("LORA") => {}
            Some(other) => {
                let what = format!("{}, only LORA adapters can be read", escape(other));
                return Err(self.refuse("peft_type", what));
            }
            None => return Err(self.refuse("peft_type", "missing, expected LORA")),
        }
        match self.text("bias")?.as_deref() {
            None | Some("none") => Ok(()),
            Some(other) => Err(self.refuse(
                "bias",
                format!("{}, only none can be read: biases were trained", escape(other)),
            )),
        }
    }

    pub fn refuse_what_changes_numbers(&self) -> Result<(), Error> {
        match REFUSED.iter().find(|key| self.is_set(key)) {
            None => Ok(()),
            Some(key) => Err(self.refuse(
                key,
                "is set, and is not supported: only plain LoRA and rsLoRA adapters can be read",
            )),
        }
    }

    /// Some initializations move part of the base weight into the adapter; such an adapter is only
    /// right on the changed base.
    pub fn check_initialization(&self) -> Result<(), Error> {
        let harmless = ["gaussian", "eva", "orthogonal"];
        match self.map.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => Ok(()),
            Some(Value::String(name)) if harmless.contains(&name.as_str()) => Ok(()),
            Some(other) => Err(self.refuse(
                "init_lora_weights",
                format!(
                    "{}, which changes the base model's weights: convert the adapter to plain LoRA \
                     with peft",
                    escape(&other.to_string())
                ),
            )),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<String>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.refuse(key, format!("{}, expected a string", kind(other)))),
        }
    }

    pub fn rank(&self, key: &str, value: &Value) -> Result<usize, Error> {
        match value.as_u64() {
            Some(rank) if (1..=LARGEST_RANK).contains(&rank) => Ok(rank as usize),
            _ => Err(self.refuse(
                key,
                format!("{}, expected a rank from 1 to {LARGEST_RANK}", escape(&value.to_string())),
            )),
        }
    }

    pub fn number(&self, key: &str, value: &Value) -> Result<f64, Error> {
        match value.as_f64() {
            Some(number) if number >= 0.0 && number <= f64::from(f32::MAX) => Ok(number),
            _ => Err(self.refuse(
                key,
                format!("{}, expected a number, not negative", escape(&value.to_string())),
            )),
        }
    }

    pub fn target_modules(&self) -> Result<TargetModules, Error> {
        let key = "target_modules";
        let wrong = || self.refuse(key, "expected a list of names or a pattern");
        match self.map.get(key) {
            Some(Value::String(pattern)) => Ok(TargetModules::Pattern(pattern.clone())),
            Some(Value::Array(list)) => list
                .iter()
                .map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong))
                .collect::<Result<_, _>>()
                .map(TargetModules::Suffixes),
            _ => Err(wrong()),
        }
    }

    /// A map from module names to values. PEFT takes the keys for regular expressions; those that
    /// are more than a name are refused.
    pub fn pattern<T>(
        &self,
        field: &str,
        read: impl Fn(&Self, &str, &Value) -> Result<T, Error>,
    ) -> Result<Vec<(String, T)>, Error> {
        let map = match self.map.get(field) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(map)) => map,
            Some(other) => {
                return Err(self.refuse(field, format!("{}, expected an object", kind(other))));
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        map.iter()
            .map(|(key, value)| {
                if !key.trim_start_matches('^').chars().all(plain) {
                    let what = format!("\"{}\" is a pattern, only names can be read", escape(key));
                    return Err(self.refuse(field, what));
                }
                Ok((key.clone(), read(self, &format!("{field}.{key}"), value)?))
            })
            .collect()
    }

    pub fn unknown(&self) -> Vec<String> {
        let is_known = |key: &str| KNOWN.contains(&key) || REFUSED.contains(&key);
        let keys = self.map.keys().filter(|key| !is_known(key) && self.is_set(key));
        keys.map(|key| escape(key)).collect()
    }
}
