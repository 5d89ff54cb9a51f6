//! `config.json` of every family in the older and the newer spelling, and what is refused.

use std::fs;
use std::path::Path;

use qlora_train::device::Dtype;
use qlora_train::error::Error;
use qlora_train::model::config::{Activation, Config, Projections};
use qlora_train::ops::rmsnorm::Center;
use serde_json::{Map, Value};

/// What all families share, except the architecture.
const COMMON: &str = r#"
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-6, "bos_token_id": 1,
    "eos_token_id": [2, 3], "pad_token_id": null, "max_position_embeddings": 256"#;

const LLAMA: &str = r#""architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "rope_theta": 5e5, "torch_dtype": "bfloat16", "mlp_bias": true,
    "attention_bias": true, "tie_word_embeddings": true, "pretraining_tp": 1,
    "rope_scaling": {"type": "llama3", "rope_type": "llama3", "factor": 8,
    "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}"#;
const MISTRAL: &str = r#""architectures": ["MistralForCausalLM"], "hidden_act": "silu",
    "sliding_window": 32, "rope_theta": 10000.0, "head_dim": 32"#;
const QWEN2: &str = r#""architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu",
    "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 4, "rope_theta": 1e6,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}"#;
const QWEN3: &str = r#""architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "head_dim": 32,
    "attention_bias": false, "use_sliding_window": false, "sliding_window": null,
    "max_window_layers": 6, "rope_theta": 1000000, "rope_scaling": null"#;
const PHI3: &str = r#""architectures": ["Phi3ForCausalLM"], "hidden_act": "silu",
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "sliding_window": 2047,
    "original_max_position_embeddings": 64, "rope_scaling": {"type": "su",
    "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [1, 2, 3, 4, 5, 6, 7, 8.5]}"#;
const GEMMA: &str = r#""architectures": ["GemmaForCausalLM"], "hidden_act": "gelu",
    "hidden_activation": null, "head_dim": 32, "rope_theta": 10000"#;
const GEMMA2: &str = r#""architectures": ["Gemma2ForCausalLM"], "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 32, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "rope_theta": 10000.0"#;
const GEMMA3: &str = r#""architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "sliding_window": 32,
    "sliding_window_pattern": 3, "query_pre_attn_scalar": 16, "attn_logit_softcapping": null,
    "rope_theta": 1000000, "rope_local_base_freq": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0}"#;

/// Fields to replace in a family's older spelling to get the newer one; null removes.
const NEWER: [(&str, &str); 8] = [
    (
        LLAMA,
        r#""torch_dtype": null, "dtype": "bfloat16", "rope_theta": null, "rope_scaling": null,
        "head_dim": 16, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3",
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}"#,
    ),
    (
        MISTRAL,
        r#""rope_theta": null, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}"#,
    ),
    (
        QWEN2,
        r#""rope_theta": null, "rope_scaling": null, "layer_types": ["full_attention",
        "full_attention", "full_attention", "full_attention", "sliding_attention",
        "sliding_attention"], "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "yarn",
        "factor": 4.0, "original_max_position_embeddings": 64}"#,
    ),
    (
        QWEN3,
        r#""rope_theta": null, "rope_parameters": {"rope_theta": 1000000.0}, "layer_types":
        ["full_attention", "full_attention", "full_attention", "full_attention", "full_attention",
        "full_attention"]"#,
    ),
    (
        PHI3,
        r#""rope_scaling": null, "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4,
        "partial_rotary_factor": 1.0, "original_max_position_embeddings": 64,
        "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [1, 2, 3, 4, 5, 6, 7, 8.5]}"#,
    ),
    (
        GEMMA,
        r#""hidden_act": "gelu_pytorch_tanh", "rope_theta": null, "tie_word_embeddings": true,
        "use_bidirectional_attention": null, "rope_parameters": {"rope_type": "default"}"#,
    ),
    (
        GEMMA2,
        r#""hidden_act": null, "layer_types": ["sliding_attention", "full_attention",
        "sliding_attention", "full_attention", "sliding_attention", "full_attention"]"#,
    ),
    (
        GEMMA3,
        r#""rope_theta": null, "rope_local_base_freq": null, "rope_scaling": null,
        "_sliding_window_pattern": 3, "sliding_window_pattern": null,
        "use_bidirectional_attention": false, "layer_types": ["sliding_attention",
        "sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
        "full_attention"], "rope_parameters": {"full_attention": {"rope_type": "linear",
        "factor": 8.0, "rope_theta": 1000000.0}, "sliding_attention": {"rope_type": "default",
        "rope_theta": 10000.0}}"#,
    ),
];

#[test]
fn both_spellings_mean_the_same_model() {
    for (older, changes) in NEWER {
        assert_eq!(config(older, ""), config(older, changes), "{older}");
    }
}

#[test]
fn llama_keeps_its_sizes_and_biases() {
    let c = config(LLAMA, "");
    assert_eq!(c.architecture, "LlamaForCausalLM");
    assert_eq!((c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim), (64, 6, 4, 2, 16));
    assert_eq!((c.feed_forward, c.vocab, c.max_positions, c.eps), (96, 100, 256, 1e-6));
    assert!(c.tied && c.qkv_bias && c.o_bias && c.mlp_bias && !c.qk_norm && !c.sandwich);
    assert_eq!((c.center, c.activation), (Center::Zero, Activation::Silu));
    assert_eq!((c.attention_scale, c.projections), (0.25, Projections::Separate));
    assert_eq!((c.bos, c.eos, c.pad), (vec![1], vec![2, 3], None));
    assert_eq!(c.ropes[0].width(), 16);
}

#[test]
fn the_first_llama_files_lack_fields_that_have_one_meaning() {
    let c =
        config(LLAMA, r#""num_key_value_heads": null, "rope_scaling": null, "rope_theta": null"#);
    let plain = config(MISTRAL, r#""head_dim": 16, "sliding_window": null"#);
    assert_eq!(c.kv_heads, 4);
    assert_eq!(c.ropes, plain.ropes);
}

#[test]
fn families_differ_where_the_reference_says() {
    let [qwen2, qwen3, phi3] = [QWEN2, QWEN3, PHI3].map(|family| config(family, ""));
    assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.tied);
    assert!(!qwen3.qkv_bias && qwen3.qk_norm && qwen3.head_dim == 32);
    assert!(phi3.projections == Projections::Fused && !phi3.qkv_bias);
    let [gemma, gemma2, gemma3] = [GEMMA, GEMMA2, GEMMA3].map(|family| config(family, ""));
    for c in [&gemma, &gemma2, &gemma3] {
        assert_eq!((c.center, c.activation), (Center::One, Activation::GeluTanh));
        assert!(c.tied);
    }
    assert!(!gemma.sandwich && gemma2.sandwich && gemma3.sandwich);
    assert!(!gemma.qk_norm && !gemma2.qk_norm && gemma3.qk_norm);
    assert_eq!((gemma2.attention_soft_cap, gemma2.final_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma3.attention_soft_cap, gemma3.final_soft_cap), (None, None));
    assert_eq!((gemma2.attention_scale, gemma3.attention_scale), (0.125, 0.25));
}

#[test]
fn windows_and_rotary_tables_fall_on_the_right_layers() {
    let windows = |family, changes| -> Vec<usize> {
        let kinds = config(family, changes).kinds;
        kinds.iter().map(|kind| kind.window.unwrap_or(0)).collect()
    };
    assert_eq!(windows(LLAMA, ""), [0; 6]);
    assert_eq!(windows(MISTRAL, ""), [32; 6]);
    assert_eq!(windows(QWEN2, ""), [0, 0, 0, 0, 16, 16]);
    assert_eq!(windows(QWEN2, r#""max_window_layers": 0"#), [16; 6]);
    assert_eq!(windows(QWEN2, r#""use_sliding_window": false"#), [0; 6]);
    assert_eq!(windows(QWEN2, r#""use_sliding_window": true, "max_window_layers": 9"#), [0; 6]);
    assert_eq!(windows(PHI3, ""), [2047; 6]);
    assert_eq!(windows(GEMMA2, ""), [32, 0, 32, 0, 32, 0]);
    assert_eq!(windows(GEMMA3, ""), [32, 32, 0, 32, 32, 0]);
    let c = config(GEMMA3, "");
    let ropes: Vec<usize> = c.kinds.iter().map(|kind| kind.rope).collect();
    assert_eq!(ropes, [1, 1, 0, 1, 1, 0]);
    let local = config(MISTRAL, r#""sliding_window": null"#);
    assert_eq!(c.ropes[1], local.ropes[0]);
}

#[test]
fn gemma_embeddings_are_scaled_by_a_rounded_root() {
    let c = config(GEMMA, r#""hidden_size": 3072"#);
    assert_eq!(c.embedding_scale(Dtype::Bf16), 55.5);
    assert_eq!(c.embedding_scale(Dtype::F32), 55.425_625_f32);
    assert_eq!(config(LLAMA, "").embedding_scale(Dtype::Bf16), 1.0);
}

#[test]
fn fields_of_other_families_that_say_nothing_are_passed_over() {
    let changes = r#""residual_multiplier": 1.0, "num_experts": 0, "use_mrope": false,
        "attention_dropout": 0.1, "use_sliding_window": false, "_name_or_path": "x""#;
    assert_eq!(config(LLAMA, ""), config(LLAMA, changes));
}

#[test]
fn quantization_is_handed_on_as_found() {
    let c = config(LLAMA, r#""quantization_config": {"quant_method": "bitsandbytes", "x": [1]}"#);
    assert_eq!(c.quantization.unwrap()["x"][0], 1);
}

#[test]
fn bad_configs_are_refused_with_file_field_and_advice() {
    for (family, changes, fragments) in BAD {
        let message = parse(&text(family, changes)).unwrap_err().to_string();
        assert!(message.starts_with("config.json: field "), "{changes}: {message}");
        for fragment in *fragments {
            assert!(message.contains(fragment), "{changes}: {message}");
        }
        assert!(message.len() < 400 && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_missing_field_is_named() {
    let keys = "architectures hidden_size intermediate_size num_hidden_layers num_attention_heads \
                num_key_value_heads vocab_size rms_norm_eps max_position_embeddings head_dim \
                hidden_activation query_pre_attn_scalar sliding_window";
    for key in keys.split_whitespace() {
        let mut map = map(&text(GEMMA2, ""));
        map.remove(key);
        let message = Config::parse(map, Path::new("c")).unwrap_err().to_string();
        assert!(message.starts_with(&format!("c: field {key}: missing, expected ")), "{message}");
    }
}

#[test]
fn text_that_is_not_an_object_is_refused_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    for (text, fragment) in [
        ("[]", "holds a list, expected a JSON object"),
        ("{\"rms_norm_eps\": NaN}", "not valid JSON"),
        (
            "{\"vocab_size\": 1,\n\"vocab_size\": 2}",
            "line 2: column 12: the key \"vocab_size\" stands twice",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let message = Config::read(&path).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.contains(fragment), "{message}");
    }
}

#[test]
fn damaged_text_never_panics_and_never_makes_an_inconsistent_config() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (family, newer) in NEWER {
        for original in [text(family, ""), text(family, newer)] {
            for _ in 0..2000 {
                let damaged = damage(original.clone(), &mut state);
                if let Ok(Value::Object(map)) = serde_json::from_str(&damaged)
                    && let Ok(c) = Config::parse(map, Path::new("config.json"))
                {
                    check(&c, &damaged);
                }
            }
        }
    }
}

/// What a config promises, used once.
fn check(c: &Config, text: &str) {
    assert!(c.kinds.len() == c.layers && c.heads.is_multiple_of(c.kv_heads), "{text}");
    assert!(c.eps > 0.0 && c.attention_scale.is_finite() && c.attention_scale > 0.0, "{text}");
    assert!(c.kinds.iter().all(|kind| kind.rope < c.ropes.len()), "{text}");
    for rope in &c.ropes {
        assert!(rope.width() % 2 == 0 && rope.width() <= c.head_dim, "{text}");
        let mut row = vec![f32::NAN; rope.width()];
        rope.fill(3..4, 1000, &mut row);
        assert!(row.iter().all(|number| number.is_finite()), "{text}");
    }
}

/// One to three bytes replaced by bytes that mean something in a config.
fn damage(text: String, state: &mut u64) -> String {
    let mut bytes = text.into_bytes();
    let mut draw = |below: usize| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 33) as usize % below
    };
    for _ in 0..=draw(3) {
        let at = draw(bytes.len());
        bytes[at] = b"0123456789-.eE,:[]{}\" ntx"[draw(25)];
    }
    String::from_utf8(bytes).unwrap()
}

fn config(family: &str, changes: &str) -> Config {
    parse(&text(family, changes)).unwrap()
}

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(map(text), Path::new("config.json"))
}

fn map(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

/// The family's file, with the fields of `changes` put over it.
fn text(family: &str, changes: &str) -> String {
    let mut whole = map(&format!("{{{COMMON}, {family}}}"));
    whole.extend(map(&format!("{{{changes}}}")));
    Value::Object(whole).to_string()
}

/// Family, changed fields, and what the message must say.
#[rustfmt::skip] // one case a line
const BAD: &[(&str, &str, &[&str])] = &[
    (LLAMA, r#""architectures": ["FooForCausalLM"]"#, &["architectures", "FooForCausalLM", "LlamaForCausalLM", "Gemma3ForCausalLM"]),
    (LLAMA, r#""architectures": ["A\u001b[31m"]"#, &["A\\u{1b}[31m is not a known"]),
    (LLAMA, r#""architectures": ["Phi3SmallForCausalLM"], "auto_map": {"AutoModel": "x"}"#, &["auto_map", "never run"]),
    (GEMMA3, r#""architectures": ["Gemma3ForConditionalGeneration"]"#, &["text and images", "Gemma3ForCausalLM"]),
    (LLAMA, r#""architectures": "LlamaForCausalLM""#, &["architectures", "expected a list"]),
    (LLAMA, r#""architectures": []"#, &["architectures", "one of LlamaForCausalLM"]),
    (LLAMA, r#""architectures": ["LlamaForCausalLM", "MistralForCausalLM"]"#, &["architectures", "one of"]),
    (LLAMA, r#""model_type": "mistral""#, &["model_type", "\"mistral\"", "mixes two models"]),
    (LLAMA, r#""hidden_size": 0"#, &["hidden_size", "0, expected a whole number from 1"]),
    (LLAMA, r#""hidden_size": -64"#, &["hidden_size", "-64, expected"]),
    (LLAMA, r#""hidden_size": 64.0"#, &["hidden_size", "64.0, expected a whole number"]),
    (LLAMA, r#""hidden_size": "64""#, &["hidden_size", "\"64\", expected a whole number"]),
    (LLAMA, r#""hidden_size": 1048577"#, &["hidden_size", "from 1 to 1048576"]),
    (LLAMA, r#""hidden_size": 66"#, &["head_dim", "66 is no multiple of num_attention_heads 4"]),
    (LLAMA, r#""vocab_size": 16777217"#, &["vocab_size", "16777216"]),
    (LLAMA, r#""num_hidden_layers": 18446744073709551615"#, &["num_hidden_layers", "expected"]),
    (LLAMA, r#""num_attention_heads": true"#, &["num_attention_heads", "true, expected"]),
    (LLAMA, r#""num_key_value_heads": 3"#, &["num_key_value_heads", "no multiple"]),
    (LLAMA, r#""num_key_value_heads": 8"#, &["num_key_value_heads", "no multiple"]),
    (LLAMA, r#""head_dim": 15"#, &["head_dim", "15, expected an even number"]),
    (LLAMA, r#""head_dim": 8192"#, &["head_dim", "4096"]),
    (LLAMA, r#""hidden_size": 1048576"#, &["head_dim", "262144"]),
    (LLAMA, r#""rms_norm_eps": 0"#, &["rms_norm_eps", "0, expected a small positive number"]),
    (LLAMA, r#""rms_norm_eps": 1e-60"#, &["rms_norm_eps", "positive"]),
    (LLAMA, r#""rms_norm_eps": "NaN""#, &["rms_norm_eps", "\"NaN\", expected a number"]),
    (LLAMA, r#""hidden_act": "relu""#, &["hidden_act", "\"relu\"", "silu"]),
    (LLAMA, r#""hidden_act": 1"#, &["hidden_act", "expected a string"]),
    (LLAMA, r#""tie_word_embeddings": 1"#, &["tie_word_embeddings", "expected true or false"]),
    (LLAMA, r#""eos_token_id": 100"#, &["eos_token_id", "100, expected a token from 0 to 99"]),
    (LLAMA, r#""eos_token_id": [1, "x"]"#, &["eos_token_id", "\"x\", expected a token"]),
    (LLAMA, r#""pad_token_id": -1"#, &["pad_token_id", "-1", "or null"]),
    (LLAMA, r#""quantization_config": "nf4""#, &["quantization_config", "expected an object"]),
    (LLAMA, r#""sliding_window": 4"#, &["sliding_window", "sees all tokens"]),
    (LLAMA, r#""num_experts": 8"#, &["num_experts", "not supported"]),
    (LLAMA, r#""logits_scaling": 8"#, &["logits_scaling", "not supported"]),
    (LLAMA, r#""torch_dtype": 16"#, &["torch_dtype", "16, expected a string"]),
    (LLAMA, r#""query_pre_attn_scalar": 1"#, &["query_pre_attn_scalar", "not supported"]),
    (LLAMA, r#""max_position_embeddings": 4294967296"#, &["max_position_embeddings", "expected"]),
    (LLAMA, r#""rope_theta": 0"#, &["rope_theta", "0, expected a number from"]),
    (LLAMA, r#""partial_rotary_factor": 0.5"#, &["partial_rotary_factor", "whole heads"]),
    (LLAMA, r#""rope_parameters": {"rope_type": "default"}"#, &["rope_scaling", "remove one"]),
    (LLAMA, r#""rope_scaling": "linear""#, &["rope_scaling", "expected an object"]),
    (LLAMA, r#""rope_scaling": {"type": "cubic"}"#, &["rope_scaling.type", "cubic, known are default"]),
    (LLAMA, r#""rope_scaling": {"type": "linear", "rope_type": "yarn"}"#, &["rope_scaling.type", "make them equal"]),
    (LLAMA, r#""rope_scaling": {"type": "linear"}"#, &["rope_scaling.factor: missing"]),
    (LLAMA, r#""rope_scaling": {"factor": 4}"#, &["rope_scaling.factor", "default", "name the type"]),
    (LLAMA, r#""rope_scaling": {"type": "linear", "factor": 0.5}"#, &["rope_scaling.factor", "0.5, expected"]),
    (LLAMA, r#""rope_scaling": {"type": "default", "mrope_section": [1]}"#, &["rope_scaling.mrope_section", "not known"]),
    (LLAMA, r#""rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}"#, &["high_freq_factor", "more than low_freq_factor 4"]),
    (LLAMA, r#""rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}"#, &["original_max_position_embeddings", "missing"]),
    (LLAMA, r#""rope_scaling": {"type": "yarn", "factor": 8, "beta_fast": 1, "beta_slow": 2}"#, &["beta_fast", "at least beta_slow"]),
    (LLAMA, r#""head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}"#, &["at least 4"]),
    (MISTRAL, r#""layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention", "full_attention", "full_attention"]"#, &["layer_types", "entry 0 differs"]),
    (MISTRAL, r#""attention_bias": true"#, &["attention_bias", "MistralForCausalLM"]),
    (MISTRAL, r#""rope_parameters": {"rope_theta": 500000.0}"#, &["rope_theta", "make them equal"]),
    (QWEN2, r#""use_sliding_window": false, "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention", "full_attention", "full_attention"]"#, &["use_sliding_window", "make them agree"]),
    (QWEN2, r#""max_window_layers": null"#, &["max_window_layers", "missing"]),
    (QWEN3, r#""layer_types": ["full_attention"]"#, &["layer_types", "has 1 entries", "6 layers"]),
    (PHI3, r#""original_max_position_embeddings": null"#, &["original_max_position_embeddings", "missing"]),
    (PHI3, r#""rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}"#, &["rope_scaling.short_factor", "has 1 numbers", "8"]),
    (PHI3, r#""rope_scaling": {"type": "longrope", "short_factor": [1,1,1,1,1,1,1,1], "long_factor": [1,1,1,1,1,1,1,0]}"#, &["rope_scaling.long_factor", "positive"]),
    (PHI3, r#""rope_scaling": {"type": "linear", "factor": 2}"#, &["linear, Phi-3 knows"]),
    (PHI3, r#""partial_rotary_factor": 0.2"#, &["partial_rotary_factor", "rotates 3 of the 16"]),
    (GEMMA, r#""use_bidirectional_attention": true"#, &["use_bidirectional_attention"]),
    (GEMMA2, r#""sliding_window": null"#, &["sliding_window", "missing"]),
    (GEMMA2, r#""attn_logit_softcapping": -1"#, &["attn_logit_softcapping", "-1, expected a number from"]),
    (GEMMA3, r#""attn_logit_softcapping": 50.0"#, &["attn_logit_softcapping", "Gemma3ForCausalLM"]),
    (GEMMA3, r#""rope_scaling": null, "rope_parameters": {"rope_type": "default"}"#, &["rope_parameters", "holds rope_type", "full_attention"]),
    (GEMMA3, r#""layer_types": ["local", "full_attention", "full_attention", "full_attention", "full_attention", "full_attention"]"#, &["layer_types", "expected full_attention"]),
];
