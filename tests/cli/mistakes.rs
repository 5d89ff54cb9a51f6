//! What is asked for wrongly: usage, inputs, settings files. Nothing may be left behind.

use std::fs;

use serde_json::Value;

use crate::{Place, data, fixture, model, refusal, stderr};

#[test]
fn pages_that_are_asked_for_are_results() {
    let place = Place::new();
    assert!(place.ok(&["--version"]).starts_with("qlora-train "));
    let commands =
        ["eval", "generate", "inspect", "check", "plan", "quantize", "merge", "doctor", "demo"];
    let page = place.ok(&["--help"]);
    for command in commands {
        assert!(page.contains(command), "{command} is not in {page}");
        assert!(place.ok(&[command, "--help"]).contains("Usage: qlora-train"));
    }
    for flag in ["--lora-r", "--per-device-train-batch-size", "--resume", "--memory-budget"] {
        assert!(page.contains(flag), "{flag} is not in {page}");
    }
}

#[test]
fn what_cannot_be_meant_is_usage() {
    let (place, model, data) = (Place::new(), model(), data());
    let cases: [(&[&str], &str); 21] = [
        (&[], "required"),
        (&[&model], "required"),
        (&["eval", &model], "required"),
        (&["generate", &model], "required"),
        (&["generate", &model, "--prompt", "a", "--prompt-ids", "1"], "cannot be used with"),
        (&[&model, &data, "--no-such-flag"], "--no-such-flag"),
        (&[&model, &data, "--lora-r", "0"], "--lora-r"),
        (&[&model, &data, "--lora-r", "4097"], "--lora-r"),
        (&[&model, &data, "--lora-r", "x"], "--lora-r"),
        (&[&model, &data, "--lora-alpha", "nan"], "a number above 0"),
        (&[&model, &data, "--lora-dropout", "1"], "less than 1"),
        (&[&model, &data, "--learning-rate", "0"], "--learning-rate"),
        (&[&model, &data, "--learning-rate", "inf"], "--learning-rate"),
        (&[&model, &data, "--epochs", "-1"], "--epochs"),
        (&[&model, &data, "--seq-len", "1"], "--seq-len"),
        (&[&model, &data, "--batch-size", "99999999999999999999"], "--batch-size"),
        (&[&model, &data, "--method", "ia3"], "lora"),
        (&[&model, &data, "--device", "tpu"], "cuda:N"),
        (&[&model, &data, "--memory-budget", "much"], "24GiB"),
        (&[&model, &data, "--seed", "-1"], "--seed"),
        (&["plan", &model, "--date", "tomorrow"], "YYYY-MM-DD"),
    ];
    for (arguments, fragment) in cases {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(fragment), "{arguments:?}: {}", stderr(&output));
    }
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn what_cannot_be_done_is_told_in_one_line_and_leaves_nothing() {
    let (place, inputs, model, data) = (Place::new(), Place::new(), model(), data());
    let adapter = fixture("curve/final-nf4");
    let text = inputs.write("text.jsonl", "{\"text\": \"a\"}\n");
    let broken = inputs.write("broken.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1,\n");
    let large = inputs.write("large.jsonl", "{\"input_ids\": [1, 80]}\n");
    let nothing =
        inputs.write("nothing.jsonl", "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n");
    let empty = inputs.write("empty.jsonl", "");
    let csv = inputs.write("a.csv", "a,b\n");
    let cases: [(&[&str], &str); 25] = [
        (&["no-model", &data], "no-model: no such file or folder"),
        (&["evla", &model, &data], "evla: no such file"),
        (&[&adapter, &data], "is a PEFT adapter, not a model"),
        (&[&data, &data], "not a tensor file"),
        (&[&model, "no-data.jsonl"], "no-data.jsonl"),
        (&[&model, &text], "line 1: needs a tokenizer"),
        (&[&model, &broken], "broken.jsonl: line 2"),
        (&[&model, &large], "line 1: field input_ids: holds the id 80"),
        (&[&model, &nothing], "teaches nothing"),
        (&[&model, &empty], "holds no record"),
        (&[&model, &csv], ".jsonl"),
        (&[&model, &data, "--device", "cuda"], "; --device cpu works without one"),
        (&[&model, &data, "--memory-budget", "64KiB"], "--memory-budget: "),
        (&[&model, &data, "--target-modules", "c_attn"], "no linear map is called c_attn"),
        (&[&model, &data, "--target-modules", "all-linear,q_proj"], "stands alone"),
        (&[&model, &data, "--init-adapter", &adapter, "--lora-r", "3"], "--lora-r: the adapter"),
        (&[&model, &data, "--eval-steps", "2"], "--eval-steps: there is nothing to evaluate"),
        (&[&model, &data, "--resume", "no-checkpoint"], "no-checkpoint"),
        (&["eval", &model, &data, "--adapter", &model], "adapter_config.json"),
        (&[&model, &data, "--profile", "no/such/p.json"], "--profile: no/such/p.json: is no name"),
        (&[&model, &data, "--weights", "streamed"], "q_proj.weight: is not in the form in which"),
        (
            &["eval", &model, &data, "--memory-budget", "64KiB"],
            "with --memory-budget: cpu: out of memory",
        ),
        (&["generate", &model, "--prompt", "a"], "--prompt: needs a tokenizer"),
        (&["generate", &model, "--prompt-ids", "80"], "--prompt-ids: 80"),
        (&["quantize", &model, "--output", "q", "--quantization", "none"], "--quantization"),
    ];
    for (arguments, fragment) in cases {
        let output = place.run(arguments);
        let line = refusal(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {line}");
        assert!(line.contains(fragment), "{arguments:?}: {line}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
        assert_eq!(place.names(), [""; 0], "{arguments:?}");
    }
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_left_alone() {
    let (place, model, data) = (Place::new(), model(), data());
    let adapter = fixture("curve/final-nf4");
    place.write("thesis.tex", "all my work");
    let cases: [&[&str]; 3] = [
        &[&model, &data, "--output-dir", "."],
        &["quantize", &model, "--output", "."],
        &["merge", &model, "--adapter", &adapter, "--output", "."],
    ];
    for arguments in cases {
        let output = place.run(arguments);
        assert!(refusal(&output).contains("already holds thesis.tex"));
        assert_eq!(output.status.code(), Some(1));
    }
    assert_eq!(place.names(), ["thesis.tex"]);
}

#[test]
fn damaged_weights_are_refused_without_a_trace() {
    let (place, inputs) = (Place::new(), Place::new());
    fs::copy(fixture("curve/model/config.json"), inputs.path("config.json")).unwrap();
    let mut bytes = fs::read(fixture("curve/model/model.safetensors")).unwrap();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(inputs.path("model.safetensors"), bytes).unwrap();
    let folder = inputs.0.path().to_str().unwrap();
    let output = place.run(&[folder, &data()]);
    let line = refusal(&output);
    assert!(line.contains("model.safetensors: tensor") && line.contains("NaN"), "{line}");
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn settings_from_a_file_give_way_to_the_command_line() {
    let (place, model, data) = (Place::new(), model(), data());
    let told = format!("model = {model:?}\ndata = [{data:?}]\n");
    let file = place.write("a.toml", &(told + "lora_r = 4\nmax_steps = 2\nshuffle = false\n"));
    place.ok(&["--config", &file, "--output-dir", "a", "--lora-r", "2", "--seq-len", "64"]);
    let config: toml::Table =
        String::from_utf8(place.bytes("a/train_config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["lora_r"].as_integer(), Some(2));
    assert_eq!(config["max_steps"].as_integer(), Some(2));
    assert_eq!(config["no_shuffle"].as_bool(), Some(true));
    let adapter: Value = serde_json::from_slice(&place.bytes("a/adapter_config.json")).unwrap();
    assert_eq!(adapter["r"], 2);
}

#[test]
fn mistakes_in_a_settings_file_name_the_key() {
    let (place, model, data) = (Place::new(), model(), data());
    let cases = [
        ("learing_rate = 1e-3", "field learing_rate: no such setting; did you mean learning_rate?"),
        ("lora_r = \"16\"", "field lora_r: a string, expected a whole number"),
        ("lora_r = 1.5", "field lora_r: a number with a point"),
        ("lora_r = 0", "field lora_r: invalid value"),
        ("packing = 1", "field packing: a whole number, expected true or false"),
        ("target_modules = [1]", "field target_modules: a whole number, expected a string"),
        ("method = \"ia3\"", "field method: invalid value 'ia3'"),
        ("learning_rate = nan", "field learning_rate: invalid value 'NaN'"),
        ("[lora]\nr = 1", "field lora: no such setting"),
        ("seed = 1\nseed = 2", "line 2: not valid TOML"),
        ("config = \"b.toml\"", "field config: no such setting"),
    ];
    for (text, fragment) in cases {
        let file = place.write("a.toml", text);
        let output = place.run(&[&model, &data, "--config", &file]);
        let line = refusal(&output);
        assert!(line.contains("a.toml: ") && line.contains(fragment), "{text}: {line}");
        assert_eq!(output.status.code(), Some(1));
    }
}
