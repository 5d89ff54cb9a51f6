//! What a run proves, refuses and leaves out.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{Place, QUICK, copy, data, demo, metrics, model, refusal, stderr};

/// A copy of the model, in which `spoil` changes the f32 numbers of tensors.
fn spoilt(place: &Place, name: &str, spoil: impl Fn(&str, &mut [u8])) -> String {
    let to = place.path(name);
    copy(Path::new(&model()), &to);
    let path = to.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + head]).unwrap();
    for (tensor, entry) in header.as_object().unwrap() {
        let Some(offsets) = entry["data_offsets"].as_array() else { continue };
        let offset = |i: usize| 8 + head + offsets[i].as_u64().unwrap() as usize;
        spoil(tensor, &mut bytes[offset(0)..offset(1)]);
    }
    fs::write(&path, bytes).unwrap();
    to.to_str().unwrap().to_owned()
}

/// A record that ends with the token 5, or another one.
fn record(poisoned: bool, number: usize) -> String {
    let mut ids: Vec<usize> = (0..12).map(|i| 6 + (number * 7 + i * 5) % 50).collect();
    if poisoned {
        ids[11] = 5;
    }
    format!("{}\n", serde_json::json!({ "input_ids": ids }))
}

/// The model, made so that nothing can be so unlikely as the token 5: where it is to be learned, the loss is
/// infinite. The first number of each embedding is large, and that of the head's row for 5 far below zero.
fn poisonous(place: &Place) -> String {
    const ROW: usize = 64 * 4;
    spoilt(place, "poisonous", |tensor, bytes| match tensor {
        "model.embed_tokens.weight" => {
            let rows = bytes.chunks_mut(ROW);
            rows.for_each(|row| row[..4].copy_from_slice(&100.0_f32.to_le_bytes()));
        }
        "lm_head.weight" => {
            bytes[5 * ROW..5 * ROW + 4].copy_from_slice(&(-3e38_f32).to_le_bytes());
        }
        _ => (),
    })
}

#[test]
fn a_record_that_overflows_costs_its_step_and_is_named() {
    let place = Place::new();
    let model = poisonous(&place);
    let records: String = (0..8).map(|i| record(i == 5, i)).collect();
    let data = place.write("data.jsonl", &records);
    let arguments = ["--output-dir", "out", "--no-shuffle", "--no-packing", "--grad-accum", "2"];
    let output = place.run(&[&[&model[..], &data], &arguments[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("step 3 is left out: loss"), "{told}");
    assert!(told.contains("data.jsonl: line 6"), "{told}");
    let lines = metrics(&place.path("out/metrics.jsonl"));
    let skipped: Vec<&Value> = lines.iter().filter(|line| line["skipped"] == true).collect();
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0]["records"][0].as_str().unwrap().ends_with("line 6"), "{skipped:?}");
    assert_eq!(lines.last().unwrap()["skipped_steps"], 1);
    // What was learned is finite: the adapter is read.
    place.loss(&[
        "eval",
        &model,
        &place.write("e.jsonl", &record(false, 1)),
        "--adapter",
        "out",
        "--json",
    ]);
}

#[test]
fn too_many_steps_that_cannot_be_applied_end_the_run_with_a_checkpoint_of_those_before() {
    let place = Place::new();
    let model = poisonous(&place);
    let records: String = (0..8).map(|i| record(i >= 3, i)).collect();
    let data = place.write("data.jsonl", &records);
    let flags = ["--no-shuffle", "--no-packing", "--grad-accum", "1", "--max-skipped-steps", "3"];
    let run = |more: &[&str]| {
        place.run(&[&[&model[..], &data, "--output-dir", "out"], &flags[..], more].concat())
    };
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(refusal(&output).contains("data.jsonl: line 6: step 6"), "{}", stderr(&output));
    assert!(place.path("out/checkpoint-6/adapter_model.safetensors").is_file());
    assert!(!place.path("out/adapter_model.safetensors").exists());
    // Nothing has changed: it stops where it stopped before, or one later.
    let output = run(&["--resume", "auto"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(refusal(&output).contains("line 7: step 7"), "{}", stderr(&output));
}

#[test]
fn an_adapter_is_read_back_and_what_it_does_is_told() {
    let place = Place::new();
    let (model, data) = (model(), data());
    let output = place.run(&[&[&model[..], &data, "--output-dir", "out"], &QUICK[..]].concat());
    assert!(
        stderr(&output).contains("adapter read back and verified; loss of"),
        "{}",
        stderr(&output)
    );
    // One step at a learning rate that starts from 0 changes nothing, and says so.
    let output = place.run(&[&model, &data, "--output-dir", "one", "--max-steps", "1"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("the adapter changes nothing"), "{}", stderr(&output));
}

#[test]
fn an_adapter_tells_the_settings_it_was_trained_with_and_no_path() {
    let place = Place::new();
    place.ok(&[
        "quantize",
        &model(),
        "--quantization",
        "fp4",
        "--no-double-quant",
        "--output",
        "store",
    ]);
    place.ok(&[&["store", &data(), "--output-dir", "out"][..], &QUICK].concat());
    let bytes = place.bytes("out/adapter_model.safetensors");
    let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + head]).unwrap();
    let settings = header["__metadata__"]["settings"].as_str().unwrap();
    let told: toml::Table = settings.parse().unwrap();
    let saved = fs::read_to_string(place.path("out/train_config.toml")).unwrap();
    let saved: toml::Table = saved.parse().unwrap();
    assert_eq!(
        told["quantization"].as_str(),
        Some("fp4"),
        "what the store holds, not the usual value"
    );
    assert_eq!(told["no_double_quant"].as_bool(), Some(true));
    let steps = metrics(&place.path("out/metrics.jsonl"));
    let last = steps.iter().filter_map(|line| line["step"].as_i64()).max();
    assert_eq!(told["max_steps"].as_integer(), last);
    for (key, value) in told.iter().filter(|(key, _)| *key != "max_steps") {
        assert_eq!(saved.get(key), Some(value), "{key}");
    }
    assert!(!settings.contains("store") && !settings.contains(".jsonl"), "{settings}");
}

#[test]
fn an_adapter_is_used_on_its_own_base_only_unless_told_otherwise() {
    let (place, model, data) = (Place::new(), model(), data());
    place.train("out", &[]);
    let with_another = |name: &str, changed: &'static str| {
        let spoil = move |tensor: &str, bytes: &mut [u8]| {
            if tensor == changed {
                bytes[2] ^= 1;
            }
        };
        spoilt(&place, name, spoil)
    };
    let other = with_another("other", "model.norm.weight");
    let commands: [&[&str]; 4] = [
        &["eval", &other, &data, "--adapter", "out"],
        &["generate", &other, "--prompt-ids", "1,2", "--adapter", "out"],
        &["merge", &other, "--adapter", "out", "--output", "merged"],
        &[&other, &data, "--init-adapter", "out", "--output-dir", "on"],
    ];
    for command in commands {
        let output = place.run(command);
        assert!(refusal(&output).contains("--any-base"), "{command:?}: {}", stderr(&output));
        let output = place.run(&[command, &["--any-base"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("warning: out: was trained on"), "{}", stderr(&output));
    }
    // A store in four bits of the same model is the same base; one of a model whose linear maps alone are
    // others, as those of a merged one, is not, nor is that model itself.
    place.ok(&["quantize", &model, "--output", "store"]);
    place.ok(&["eval", "store", &data, "--adapter", "out"]);
    let merged = with_another("merged-base", "model.layers.0.mlp.up_proj.weight");
    place.ok(&["quantize", &merged, "--output", "merged-store"]);
    for base in [&merged[..], "merged-store"] {
        let output = place.run(&["eval", base, &data, "--adapter", "out"]);
        assert!(refusal(&output).contains("--any-base"), "{base}: {}", stderr(&output));
    }
}

#[test]
fn the_chat_template_of_an_adapter_is_used_and_another_one_of_the_model_told() {
    let (place, model, records) = (Place::new(), demo("model"), demo("valid.jsonl"));
    place.ok(&[&model, &records, "--output-dir", "a", "--max-steps", "2"]);
    let config = demo_config();
    let (template, end) = (config["chat_template"].as_str(), config["eos_token"].as_str());
    let template = format!("Once upon a time{}", template.unwrap());
    let changed = with_template(&place, &template, end.unwrap());
    let messages = place.write("m.json", r#"[{"role": "user", "content": "Hi"}]"#);
    let run = |model: &str, more: &[&str]| {
        let usual = ["generate", model, "--messages", &messages, "--json", "--max-new-tokens", "1"];
        let output = place.run(&[&usual[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        (result["prompt_tokens"].clone(), stderr(&output))
    };
    let (trained, _) = run(&model, &["--adapter", "a"]);
    let (with, told) = run(&changed, &["--adapter", "a"]);
    assert_eq!(with, trained);
    assert!(told.contains("warning: a: brings a chat template of its own"), "{told}");
    let (without, told) = run(&changed, &[]);
    assert!(without != trained && !told.contains("chat template"), "{told}");
}

#[test]
fn a_longer_run_goes_on_from_a_shorter_one_and_says_so() {
    let place = Place::new();
    let (model, data) = (model(), data());
    let run = |more: &[&str]| {
        let usual = [&model[..], &data, "--output-dir", "out", "--lr-scheduler", "constant"];
        let output =
            place.run(&[&usual[..], &["--warmup-steps", "0", "--save-steps", "2"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    run(&["--max-steps", "4"]);
    let told = run(&["--max-steps", "6", "--resume", "auto"]);
    assert!(told.contains("the run has 6 steps now and had 4"), "{told}");
    let long = place.bytes("out/adapter_model.safetensors");
    fs::remove_dir_all(place.path("out")).unwrap();
    run(&["--max-steps", "6"]);
    assert!(place.bytes("out/adapter_model.safetensors") == long);
}

fn demo_config() -> Value {
    serde_json::from_slice(&fs::read(demo("model/tokenizer_config.json")).unwrap()).unwrap()
}

/// A copy of the demo's model whose template is `template`, and whose files name `end` as the end token.
fn with_template(place: &Place, template: &str, end: &str) -> String {
    let (model, to) = (demo("model"), place.path("templated"));
    copy(Path::new(&model), &to);
    let mut config = demo_config();
    config["chat_template"] = template.into();
    config["eos_token"] = end.into();
    fs::write(to.join("tokenizer_config.json"), config.to_string()).unwrap();
    to.to_str().unwrap().to_owned()
}

const CHAT: &str =
    r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}"#;

#[test]
fn answers_that_never_end_are_refused_before_anything_is_learned() {
    let place = Place::new();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let model = with_template(&place, template, demo_config()["eos_token"].as_str().unwrap());
    let data = place.write("chat.jsonl", CHAT);
    let output = place.run(&[&model, &data, "--output-dir", "out"]);
    let told = refusal(&output);
    assert!(
        told.contains("chat.jsonl: no answer ends in a token that the model stops at"),
        "{told}"
    );
    assert!(!place.path("out").exists());
    let report = place.json(&["inspect", &model, &data, "--json"]);
    assert!(report["refused"].as_str().unwrap().contains("never learn to stop"), "{report}");
    assert_eq!(report["kinds"][0]["kind"], "conversation");
}

#[test]
fn a_template_that_writes_special_tokens_which_the_tokenizer_splits_is_refused() {
    let place = Place::new();
    let template = "{% for m in messages %}{{ m.content }}<|end of my turn|>{% endfor %}";
    let model = with_template(&place, template, "<|end of my turn|>");
    let data = place.write("chat.jsonl", CHAT);
    let output = place.run(&[&model, &data, "--output-dir", "out"]);
    let told = refusal(&output);
    assert!(
        told.contains("chat.jsonl: line 1: the chat template writes the special token <|end"),
        "{told}"
    );
    assert!(!place.path("out").exists());
}

#[test]
fn a_page_shows_what_will_be_learned_and_no_text_of_it_is_markup() {
    let (place, model) = (Place::new(), demo("model"));
    let text = r#"{"prompt": "<script>alert(1)</script>", "completion": " Yes & no"}"#;
    let data = place.write("d.jsonl", text);
    place.ok(&["inspect", &model, &data, "--html", "page.html"]);
    let page = String::from_utf8(place.bytes("page.html")).unwrap();
    assert!(page.contains("<td>prompt and completion</td><td>1</td>"), "{page}");
    assert!(page.contains("class=\"learned\"") && !page.contains("<script>"), "{page}");
    let output = place.run(&["inspect", &model, &data, "--html", "no/such/page.html"]);
    assert!(refusal(&output).contains("no/such/page.html"), "{}", stderr(&output));
}

#[test]
fn a_begin_token_that_stands_twice_or_not_at_all_is_told_with_its_record() {
    let (place, model) = (Place::new(), demo("model"));
    let shown = place.json(&["inspect", &model, &demo("valid.jsonl"), "--json", "--records", "1"]);
    assert_eq!(shown["begin_twice"], serde_json::json!([]));
    let first = shown["records_shown"][0]["ids"][0].as_u64().unwrap();
    let ids = serde_json::json!({ "input_ids": [first, first, 9, 10, 11] });
    let data = place.write("ids.jsonl", &format!("{ids}\n"));
    let twice = place.json(&["inspect", &model, &data, "--json"]);
    let begins = twice["begin_twice"].as_array().unwrap();
    assert!(begins.len() == 1 && begins[0].as_str().unwrap().ends_with("line 1"), "{twice}");
    let data = place.write("none.jsonl", "{\"input_ids\": [9, 10, 11]}\n");
    let missing = place.json(&["inspect", &model, &data, "--json"]);
    assert_eq!(missing["begin_missing"].as_array().unwrap().len(), 1, "{missing}");
}

#[test]
fn what_has_changed_since_a_checkpoint_is_named() {
    let (place, model, data) = (Place::new(), model(), data());
    let run = |model: &str, data: &str, more: &[&str]| {
        let usual = [model, data, "--output-dir", "out", "--save-steps", "2", "--resume", "auto"];
        place.run(&[&usual[..], &QUICK, more].concat())
    };
    assert_eq!(run(&model, &data, &[]).status.code(), Some(0));
    // The same names and sizes, and one number of one linear map.
    let other = spoilt(&place, "other", |tensor, bytes| {
        if tensor == "model.layers.1.mlp.down_proj.weight" {
            bytes[2] ^= 1;
        }
    });
    let records = fs::read_to_string(&data).unwrap();
    let fewer: String = records.lines().skip(1).map(|line| format!("{line}\n")).collect();
    let fewer = place.write("fewer.jsonl", &fewer);
    let cases: [(&str, &str, &[&str], &str); 4] = [
        (&other, &data, &[], "made with other model:"),
        (&model, &fewer, &[], "made with other data:"),
        (&model, &data, &["--seed", "7"], "made with other settings:"),
        (&model, &fewer, &["--lora-alpha", "7"], "made with other data and other settings:"),
    ];
    for (model, data, more, what) in cases {
        let output = run(model, data, more);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(what), "{what} {}", stderr(&output));
    }
}
