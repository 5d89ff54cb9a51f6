//! Adapters and checkpoints that are damaged or belong elsewhere.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Case, Folder, IDS, Refused, battery, case, ids_model, text, words};

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/curve/final-nf4")
}

fn copy(folder: &Folder, from: &Path, to: &str) -> String {
    fs::create_dir_all(folder.at(to)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.at(to).join(path.file_name().unwrap())).unwrap();
        }
    }
    folder.name(to)
}

/// `eval` and `merge` with an adapter that `change` has spoiled.
fn spoiled(
    name: &str,
    fragment: &'static str,
    change: impl Fn(&Folder) + Clone + 'static,
) -> [Case; 2] {
    let again = change.clone();
    let merge = case(format!("merge: {name}"), Refused(fragment), move |folder| {
        let adapter = copy(folder, &fixture(), "adapter");
        again(folder);
        [words(["merge", &text(ids_model()), "--adapter", &adapter]), words(["--output", "m"])]
            .concat()
    });
    let eval = case(format!("eval: {name}"), Refused(fragment), move |folder| {
        let adapter = copy(folder, &fixture(), "adapter");
        change(folder);
        let data = folder.write("data.jsonl", IDS);
        words(["eval", &text(ids_model()), &data, "--adapter", &adapter])
    });
    [eval, merge]
}

fn field(name: &'static str, value: Value) -> [Case; 2] {
    spoiled(&format!("{name} = {value}"), name, move |folder| {
        folder.edit("adapter/adapter_config.json", |config| config[name] = value.clone());
    })
}

#[test]
fn adapters_that_cannot_be_used() {
    let config = "adapter/adapter_config.json";
    let file = "adapter/adapter_model.safetensors";
    battery(
        &[
            field("peft_type", json!("IA3")),
            field("peft_type", json!(null)),
            field("r", json!(0)),
            field("r", json!(-1)),
            field("r", json!(1u64 << 62)),
            field("r", json!("16")),
            field("r", json!(5)),
            field("lora_alpha", json!("x")),
            field("lora_alpha", json!(1e308)),
            field("lora_alpha", json!(null)),
            field("target_modules", json!(5)),
            field("rank_pattern", json!([1])),
            field("use_dora", json!(true)),
            field("bias", json!("all")),
            field("modules_to_save", json!(["lm_head"])),
            spoiled("rank of another map", "rank 8, expected 3 by adapter_config.json", move |f| {
                f.edit(config, |config| config["rank_pattern"] = json!({"q_proj": 3}));
            }),
            spoiled("config empty", "adapter_config.json", move |f| drop(f.write(config, ""))),
            spoiled("config nested", "adapter_config.json", move |f| {
                f.write(config, "[".repeat(100_000));
            }),
            spoiled("no weights", "adapter", move |f| fs::remove_file(f.at(file)).unwrap()),
            spoiled("weights empty", "adapter_model.safetensors", move |f| drop(f.write(file, ""))),
            spoiled("weights cut", "adapter_model.safetensors", move |f| {
                let bytes = fs::read(f.at(file)).unwrap();
                f.write(file, &bytes[..bytes.len() - 1]);
            }),
            spoiled("weights NaN", "adapter_model.safetensors: tensor", move |f| {
                let mut bytes = fs::read(f.at(file)).unwrap();
                let end = bytes.len() - 4;
                bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
                f.write(file, bytes);
            }),
            spoiled("of another model", "adapter", move |f| {
                let other = Path::new(env!("CARGO_MANIFEST_DIR"));
                copy(f, &other.join("tests/fixtures/models/qwen2/adapter"), "adapter");
            }),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>(),
    );
}
