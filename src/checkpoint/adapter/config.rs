//! `adapter_config.json`: the fields that change numbers, understood or refused by name.
//!
//! A key that only steers how training begins, or that this program does not know, is ignored;
//! unknown keys that are switched on are listed in [`AdapterConfig::unknown`] for a warning.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::error::Error;
use crate::json::read_object;

/// How LoRA's product is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// alpha / r.
    Rank,
    /// alpha / sqrt(r): rsLoRA.
    RootRank,
}

/// Which modules the adapter was meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Names or suffixes of names.
    Suffixes(Vec<String>),
    /// A regular expression over whole names, or `all-linear`; kept as written.
    Pattern(String),
}

/// A LoRA configuration as PEFT stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Path or name of the base model, if recorded.
    pub base_model: Option<String>,
    /// Rank R of all modules but those in `rank_pattern`.
    pub rank: usize,
    /// Alpha of all modules but those in `alpha_pattern`.
    pub alpha: f64,
    /// Dropout of training; no effect on a finished adapter.
    pub dropout: f64,
    /// Alpha over rank, or over its root.
    pub scaling: Scaling,
    /// Modules the adapter was made for; the tensors say where it really sits.
    pub target_modules: TargetModules,
    /// Ranks of single modules, by name or suffix; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of single modules, by name or suffix; the first that matches counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Keys that are set, and that neither this program nor the PEFT version it follows knows.
    pub unknown: Vec<String>,
}

impl AdapterConfig {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        if !path.exists() {
            let what = "missing: an adapter folder holds adapter_config.json and \
                        adapter_model.safetensors";
            return Err(Error::input(path, what));
        }
        Self::parse(read_object(path)?, path)
    }

    /// Checks the fields of an object read from `path`.
    pub fn parse(map: Map<String, Value>, path: &Path) -> Result<Self, Error> {
        let fields = Fields { map, path };
        fields.check_kind()?;
        fields.refuse_what_changes_numbers()?;
        fields.check_initialization()?;
        let scaling = match fields.flag("use_rslora")? {
            true => Scaling::RootRank,
            false => Scaling::Rank,
        };
        Ok(Self {
            base_model: fields.text("base_model_name_or_path")?,
            rank: fields.rank("r", fields.map.get("r").unwrap_or(&json!(8)))?,
            alpha: fields
                .number("lora_alpha", fields.map.get("lora_alpha").unwrap_or(&json!(8)))?,
            dropout: fields
                .number("lora_dropout", fields.map.get("lora_dropout").unwrap_or(&json!(0)))?,
            scaling,
            target_modules: fields.target_modules()?,
            rank_pattern: fields.pattern("rank_pattern", Fields::rank)?,
            alpha_pattern: fields.pattern("alpha_pattern", Fields::number)?,
            unknown: fields.unknown(),
        })
    }

    /// Rank of `module`, named as in the base model.
    pub fn rank_of(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// The factor of B·A at `module`.
    pub fn scale_of(&self, module: &str) -> f64 {
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = self.rank_of(module) as f64;
        match self.scaling {
            Scaling::Rank => alpha / rank,
            Scaling::RootRank => alpha / rank.sqrt(),
        }
    }

    /// The file's text: the stable fields that PEFT and vLLM read, keys sorted, two spaces. The
    /// patterns keep their order, by which PEFT chooses.
    pub fn to_json(&self) -> String {
        let value = json!({
            "alpha_pattern": object(&self.alpha_pattern, |&alpha| number(alpha)),
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": object(&self.rank_pattern, |&rank| json!(rank)),
            "target_modules": match &self.target_modules {
                TargetModules::Suffixes(names) => json!(names),
                TargetModules::Pattern(pattern) => json!(pattern),
            },
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.scaling == Scaling::RootRank,
        });
        format!("{value:#}\n")
    }
}

/// The value of the first key that is `module` or a suffix of it at a dot; `^` in front of a key
/// asks for the whole name.
fn first_match<T: Copy>(pattern: &[(String, T)], module: &str) -> Option<T> {
    let matches = |key: &str| match key.strip_prefix('^') {
        Some(whole) => module == whole,
        None => {
            module.strip_suffix(key).is_some_and(|front| front.is_empty() || front.ends_with('.'))
        }
    };
    pattern.iter().find(|(key, _)| matches(key)).map(|&(_, value)| value)
}

/// Whole numbers without a decimal point, as PEFT writes its integer alphas.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn object<T>(pattern: &[(String, T)], value: impl Fn(&T) -> Value) -> Value {
    pattern.iter().map(|(key, v)| (key.clone(), value(v))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<AdapterConfig, String> {
        let Value::Object(map) = value else {
            panic!("an object is needed, got {value}");
        };
        AdapterConfig::parse(map, Path::new("c")).map_err(|e| e.to_string())
    }

    fn with(key: &str, value: Value) -> Result<AdapterConfig, String> {
        let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8,
            "target_modules": ["q_proj"]});
        config[key] = value;
        parse(config)
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let config = AdapterConfig {
            base_model: Some("org/base".into()),
            rank: 16,
            alpha: 32.0,
            dropout: 0.05,
            scaling: Scaling::RootRank,
            target_modules: TargetModules::Suffixes(vec!["q_proj".into(), "v_proj".into()]),
            rank_pattern: vec![("layers.0.q_proj".into(), 4)],
            alpha_pattern: vec![("v_proj".into(), 2.5)],
            unknown: Vec::new(),
        };
        let text = config.to_json();
        assert!(text.contains("\n  \"lora_alpha\": 32,\n"), "{text}");
        assert_eq!(parse(serde_json::from_str(&text).unwrap()).unwrap(), config);
        let keys: Vec<_> = text.lines().filter(|l| l.starts_with("  \"")).collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }

    #[test]
    fn writing_does_not_change_which_pattern_comes_first() {
        let patterns = json!({"v_proj": 2, "layers.0.v_proj": 7});
        let mut config = with("rank_pattern", patterns.clone()).unwrap();
        config.alpha_pattern = with("alpha_pattern", patterns).unwrap().alpha_pattern;
        let again = parse(serde_json::from_str(&config.to_json()).unwrap()).unwrap();
        assert_eq!(again.rank_of("model.layers.0.v_proj"), 2);
        assert_eq!(again.scale_of("model.layers.0.v_proj"), 1.0);
    }

    #[test]
    fn scales_follow_patterns_first_match_first() {
        let mut config = with("rank_pattern", json!({"layers.1.q_proj": 2, "^k_proj": 9})).unwrap();
        config.alpha_pattern = vec![("q_proj".into(), 6.0)];
        assert_eq!(config.rank_of("model.layers.1.q_proj"), 2);
        assert_eq!(config.rank_of("model.layers.11.q_proj"), 4);
        assert_eq!(config.rank_of("model.k_proj"), 4);
        assert_eq!(config.rank_of("k_proj"), 9);
        assert_eq!(config.scale_of("model.layers.1.q_proj"), 3.0);
        config.scaling = Scaling::RootRank;
        assert_eq!(config.scale_of("v_proj"), 4.0);
    }

    #[test]
    fn fields_that_would_change_numbers_are_refused_by_name() {
        let cases = [
            ("peft_type", json!("IA3"), "field peft_type: IA3"),
            ("peft_type", json!(null), "field peft_type: missing"),
            ("bias", json!("all"), "field bias: all"),
            ("use_dora", json!(true), "field use_dora: is set"),
            ("lora_bias", json!(true), "field lora_bias: is set"),
            ("fan_in_fan_out", json!(true), "field fan_in_fan_out: is set"),
            ("modules_to_save", json!(["lm_head"]), "field modules_to_save"),
            ("layer_replication", json!([[0, 1]]), "field layer_replication"),
            ("trainable_token_indices", json!([1]), "field trainable_token_indices"),
            ("init_lora_weights", json!("pissa_niter_4"), "convert the adapter"),
            ("use_rslora", json!("false"), "field use_rslora: a string"),
            ("r", json!(0), "field r: 0, expected a rank"),
            ("r", json!(1e9), "expected a rank"),
            ("r", json!("8"), "expected a rank"),
            ("lora_alpha", json!(-1), "field lora_alpha: -1, expected a number"),
            ("lora_alpha", json!(1e300), "expected a number"),
            ("target_modules", json!(null), "field target_modules"),
            ("target_modules", json!([1]), "field target_modules"),
            ("rank_pattern", json!({".*q": 2}), "field rank_pattern: \".*q\" is a pattern"),
            ("rank_pattern", json!({"q": 0}), "field rank_pattern.q: 0, expected a rank"),
            ("alpha_pattern", json!([]), "field alpha_pattern: a list"),
        ];
        for (key, value, fragment) in cases {
            let message = with(key, value).unwrap_err();
            assert!(message.contains(fragment), "{message}");
        }
    }

    #[test]
    fn harmless_fields_pass_and_unknown_ones_are_listed() {
        let config = with("eva_config", json!({"rho": 2})).unwrap();
        assert!(config.unknown.is_empty());
        assert!(with("some_new_thing", json!(null)).unwrap().unknown.is_empty());
        assert_eq!(with("some_new_thing", json!(3)).unwrap().unknown, ["some_new_thing"]);
        let defaults = parse(json!({"peft_type": "LORA", "target_modules": "all-linear"})).unwrap();
        assert_eq!((defaults.rank, defaults.alpha), (8, 8.0));
    }
}
