//! Real pretrained models against the reference stack, and fine-tuning tasks that they visibly
//! learn. Needs the shared data; says so and passes where that is absent.

mod common;

use std::path::Path;
use std::process::Command;

use common::{json, shared};
use serde_json::Value;

/// Runs the program and gives its standard output.
fn run(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_qlora-train"))
        .args(args)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn run_json(args: &[&str]) -> Value {
    serde_json::from_str(&run(args)).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn greedy_continuations_are_those_of_the_reference() {
    let Some(shared) = shared() else { return };
    for name in ["stories260k", "babyllama-105"] {
        let model = shared.join("data/models").join(name);
        for prompt in json(&model.join("reference.json"))["prompts"].as_array().unwrap() {
            let count = prompt["greedy_ids"].as_array().unwrap().len().to_string();
            let given = prompt["text"].as_str().unwrap();
            let found = run_json(&[
                "generate",
                text(&model),
                "--prompt",
                given,
                "--max-new-tokens",
                &count,
                "--dtype",
                "f32",
                "--quantization",
                "none",
                "--json",
            ]);
            assert_eq!(found["prompt_tokens"], prompt["ids"], "{name}: {given}");
            assert_eq!(found["tokens"], prompt["greedy_ids"], "{name}: {given}");
            assert_eq!(found["text"], prompt["greedy_text"], "{name}: {given}");
        }
    }
}

#[test]
fn sharded_bf16_weights_give_the_losses_of_the_single_file() {
    let Some(shared) = shared() else { return };
    let data = shared.join("data/demo/cards_valid.jsonl");
    let loss = |name: &str| {
        let model = shared.join("data/models").join(name);
        let found =
            run_json(&["eval", text(&model), text(&data), "--quantization", "none", "--json"]);
        found["results"][0]["loss"].as_f64().unwrap()
    };
    let (single, sharded) = (loss("babyllama-105"), loss("babyllama-105-bf16-sharded"));
    assert!((single - sharded).abs() < 0.01 * single, "{single} and {sharded}");
}

/// Trains as the demonstration's README says, and gives the losses before and after.
fn fine_tune(shared: &Path, output: &Path, task: &str, steps: &str, rate: &str) -> [f64; 2] {
    let model = shared.join("data/models/stories260k");
    let file = |part: &str| shared.join("data/demo").join(format!("{task}_{part}.jsonl"));
    let (train, valid) = (file("train"), file("valid"));
    let warmup = (steps.parse::<f64>().unwrap() * 0.05).ceil().to_string();
    run(&[
        text(&model),
        text(&train),
        "--output-dir",
        text(output),
        "--lora-r",
        "8",
        "--lora-alpha",
        "16",
        "--batch-size",
        "16",
        "--grad-accum",
        "1",
        "--no-packing",
        "--max-steps",
        steps,
        "--learning-rate",
        rate,
        "--warmup-steps",
        &warmup,
        "--seq-len",
        "256",
    ]);
    let loss = |adapter: &[&str]| {
        let args = ["eval", text(&model), text(&valid), "--seq-len", "256", "--json"];
        run_json(&[&args, adapter].concat())["results"][0]["loss"].as_f64().unwrap()
    };
    [loss(&[]), loss(&["--adapter", text(output)])]
}

#[test]
fn cards_are_learned_as_well_as_by_the_reference_stack() {
    let Some(shared) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("cards");
    let [before, after] = fine_tune(&shared, &output, "cards", "200", "5e-3");
    assert!((before - 4.450).abs() < 0.01, "loss before: {before}");
    assert!(after < 0.04, "loss after: {after}, the reference reached 0.019");
    let exact = exact_answers(&shared, &output, 40);
    assert!(exact >= 26, "{exact} of 40 answers are exact, the reference reached 83 %");
}

#[test]
fn pirate_talk_is_learned_as_well_as_by_the_reference_stack() {
    let Some(shared) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("pirate");
    let [before, after] = fine_tune(&shared, &output, "pirate", "200", "3e-3");
    assert!((before - 2.174).abs() < 0.1, "loss before: {before}");
    assert!(after < 1.43, "loss after: {after}, the reference reached 1.387");
}

/// How many of the first `count` test cards are answered exactly.
fn exact_answers(shared: &Path, adapter: &Path, count: usize) -> usize {
    let model = shared.join("data/models/stories260k");
    let cards = std::fs::read_to_string(shared.join("data/demo/cards_test.jsonl")).unwrap();
    let exact = |line: &&str| {
        let card: Value = serde_json::from_str(line).unwrap();
        let found = run_json(&[
            "generate",
            text(&model),
            "--adapter",
            text(adapter),
            "--prompt",
            card["prompt"].as_str().unwrap(),
            "--max-new-tokens",
            "60",
            "--json",
        ]);
        // The tokenizer's own decoder leaves out the space before the first word.
        found["text"].as_str().unwrap() == card["completion"].as_str().unwrap().trim_start()
    };
    cards.lines().take(count).filter(exact).count()
}
