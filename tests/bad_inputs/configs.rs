//! `config.json` with every field wrong in turn.

use serde_json::{Value, json};

use crate::{Case, IDS, Refused, battery, case, train};

/// `config.json` with a field of another value; the refusal names file and field.
fn field(name: &'static str, value: Value) -> Case {
    case(format!("{name} = {value}"), Refused(name), move |folder| {
        let model = folder.model();
        folder.edit("model/config.json", |config| config[name] = value.clone());
        train(model, folder.write("data.jsonl", IDS))
    })
}

#[test]
fn fields_out_of_range() {
    let counts = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    let wrong = [json!(0), json!(-1), json!(1.5), json!("64"), json!([64]), json!(1u64 << 62)];
    let cases: Vec<_> = counts
        .iter()
        .flat_map(|name| wrong.iter().map(|value| field(name, value.clone())))
        .collect();
    battery(&cases);
}

#[test]
fn fields_that_mean_nothing() {
    battery(&[
        field("model_type", json!("mamba")),
        field("model_type", json!(7)),
        field("model_type", json!("\u{1b}[31m")),
        field("hidden_act", json!("swish2")),
        field("hidden_act", json!(1)),
        field("rms_norm_eps", json!(-1.0)),
        field("rms_norm_eps", json!("small")),
        field("rms_norm_eps", json!(1e300)),
        field("tie_word_embeddings", json!("yes")),
        field("attention_bias", json!(3)),
        field("rope_parameters", json!({"rope_type": "unheard", "rope_theta": 1e4})),
        field("rope_parameters", json!({"rope_type": "default", "rope_theta": 0})),
        field("rope_parameters", json!({"rope_type": "default", "rope_theta": "x"})),
        field("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 1e4})),
        field("rope_parameters", json!({"rope_type": "linear", "rope_theta": 1e4, "factor": 0})),
        field("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": -3})),
        field(
            "rope_parameters",
            json!({
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1], "long_factor": [],
                "original_max_position_embeddings": 64
            }),
        ),
        field("rope_parameters", json!([1])),
        field("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
        field("quantization_config", json!({"quant_method": "awq"})),
        field("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_8bit": true})),
        field("quantization_config", json!("nf4")),
    ]);
}

/// `config.json` with this text.
fn written(name: &str, fragment: &'static str, text: impl Into<Vec<u8>>) -> Case {
    let text = text.into();
    case(name, Refused(fragment), move |folder| {
        let model = folder.model();
        folder.write("model/config.json", &text);
        train(model, folder.write("data.jsonl", IDS))
    })
}

#[test]
fn files_that_are_no_config() {
    battery(&[
        written("empty", "config.json", ""),
        written("an array", "config.json", "[]"),
        written("null", "config.json", "null"),
        written("no fields", "config.json", "{}"),
        written("HTML", "config.json", "<html></html>"),
        written("UTF-16", "config.json", b"\xff\xfe{\0}\0".to_vec()),
        written("not UTF-8", "config.json", b"{\"a\": \"\xff\"}".to_vec()),
        written("unfinished", "config.json", "{\"model_type\": \"llama\","),
        written("nested 100k deep", "config.json", format!("{{\"a\": {}", "[".repeat(100_000))),
        written(
            "equal keys",
            "config.json",
            "{\"model_type\": \"llama\", \"model_type\": \"llama\"}",
        ),
        written("40 MB", "config.json", format!("{{\"a\": \"{}\"}}", "x".repeat(40 << 20))),
        written(
            "a number of 400 digits",
            "config.json",
            format!("{{\"hidden_size\": {}}}", "9".repeat(400)),
        ),
    ]);
}

#[test]
fn fields_that_do_not_belong_together() {
    battery(&[
        field("num_key_value_heads", json!(3)),
        field("num_attention_heads", json!(5)),
        field("head_dim", json!(15)),
    ]);
}
