//! What commands come to: equal to each other, to a reference, and to what was planned.

use std::fs;

use serde_json::Value;

use crate::{Place, QUICK, data, demo, fixture, metrics, model, refusal, stderr};

#[test]
fn the_resolved_settings_repeat_the_run_bit_for_bit() {
    let place = Place::new();
    place.train("a", &["--optimizer", "adamw-8bit", "--no-packing", "--lora-dropout", "0.1"]);
    place.ok(&["--config", "a/train_config.toml", "--output-dir", "b", "--threads", "1"]);
    let file = "adapter_model.safetensors";
    assert_eq!(place.bytes(&format!("a/{file}")), place.bytes(&format!("b/{file}")));
    for name in ["README.md", "adapter_config.json", "metrics.jsonl"] {
        assert!(place.path("a").join(name).is_file(), "{name}");
    }
}

#[test]
fn training_lowers_the_loss_that_eval_measures() {
    let (place, model, data) = (Place::new(), model(), data());
    place.train("a", &["--max-steps", "30", "--eval-data", &data, "--eval-steps", "10"]);
    let before = place.loss(&["eval", &model, &data, "--json"]);
    let result = place.json(&[
        "eval",
        &model,
        &data,
        "--json",
        "--per-record",
        "--adapter",
        "a",
        "--seq-len",
        "64",
    ]);
    let result = &result["results"][0];
    let after = result["loss"].as_f64().unwrap();
    assert!(after < before - 0.5, "{before} -> {after}");
    assert_eq!(result["perplexity"].as_f64().unwrap(), after.exp());
    let records = result["records"].as_array().unwrap();
    let sum: f64 = records.iter().map(|record| record["loss_sum"].as_f64().unwrap()).sum();
    assert_eq!(sum / result["supervised_tokens"].as_f64().unwrap(), after);
    let lines = metrics(&place.path("a/metrics.jsonl"));
    let evaluated: Vec<_> = lines.iter().filter(|line| line["eval_loss"].is_number()).collect();
    assert_eq!(evaluated.len(), 3);
    assert_eq!(evaluated[2]["eval_loss"].as_f64().unwrap(), after);
    assert_eq!(lines.last().unwrap()["summary"], true);
}

#[test]
fn a_quantized_folder_trains_to_the_same_bytes_as_the_model() {
    let (place, data) = (Place::new(), data());
    for (quantization, more) in [("nf4", None), ("fp4", Some("--no-double-quant"))] {
        let (store, ours, theirs) = ("store", "ours", "theirs");
        let model = model();
        let mut flags = vec!["--quantization", quantization];
        flags.extend(more);
        place.ok(&[&["quantize", &model, "--output", store][..], &flags].concat());
        place.train(ours, &flags);
        place.ok(&[&[store, &data, "--output-dir", theirs][..], &QUICK].concat());
        let file = "adapter_model.safetensors";
        let bytes = |folder: &str| place.bytes(&format!("{folder}/{file}"));
        assert!(bytes(ours) == bytes(theirs), "{quantization}");
        // Read when its turn comes, and for every micro-batch again where one lane is all that fits.
        let profile = ["--profile", "profile.json"];
        let streamed = ["--output-dir", "streamed", "--weights", "streamed"];
        let streamed = [&streamed[..], &profile].concat();
        let output = place.run(&[&[store, &data][..], &QUICK, &streamed].concat());
        let told = stderr(&output);
        assert!(told.contains("once back for 2 micro-batches"), "{told}");
        assert!(told.contains("weights read "), "{told}");
        assert!(told.contains("disk: weights") && told.contains("gemm"), "{told}");
        fs::remove_file(place.path("profile.json")).unwrap();
        assert_eq!(
            place.bytes(&format!("{ours}/{file}")),
            place.bytes(&format!("streamed/{file}"))
        );
        let eval = ["eval", store, &data, "--adapter", "streamed", "--json"];
        let (there, passing) =
            (place.loss(&eval), [&eval[..], &["--weights", "streamed"]].concat());
        assert_eq!(there, place.loss(&passing), "evaluated");
        fs::remove_dir_all(place.path("streamed")).unwrap();
        let output = place.run(&["quantize", store, "--output", "again"]);
        assert!(refusal(&output).contains("in four bits already"));
        [store, ours, theirs].iter().for_each(|name| fs::remove_dir_all(place.path(name)).unwrap());
    }
}

#[test]
fn a_model_of_any_shape_is_made_up_and_trained() {
    let (place, data) = (Place::new(), data());
    let shape = format!("{}/config.json", model());
    for more in [&["--seed", "1"][..], &["--seed", "2"], &["--seed", "1", "--threads", "1"]] {
        place.ok(&[&["quantize", "--synthetic", &shape, "--output", "made"], more].concat());
        fs::rename(place.path("made"), place.path(&format!("made{}", more.join("")))).unwrap();
    }
    let bytes = |seed: &str| place.bytes(&format!("made--seed{seed}/model.safetensors"));
    assert!(bytes("1") == bytes("1--threads1") && bytes("1") != bytes("2"));
    place.ok(&[&["made--seed1", &data, "--output-dir", "out"][..], &QUICK].concat());
    let lines = metrics(&place.path("out/metrics.jsonl"));
    assert!(lines.iter().all(|line| line["loss"].as_f64().is_none_or(f64::is_finite)));
    let output =
        place.run(&["quantize", "--synthetic", "made--seed1/config.json", "--output", "x"]);
    assert!(refusal(&output).contains("is not quantized"), "{}", stderr(&output));
    assert!(!place.path("x").exists());
}

#[test]
fn micro_batches_that_are_too_large_become_more_and_smaller_ones() {
    let (place, model, data) = (Place::new(), model(), data());
    let asked = ["--batch-size", "8", "--grad-accum", "2", "--no-packing", "--max-steps", "2"];
    let plan = |more: &[&str]| -> Value {
        place.json(&[&["plan", &model, &data, "--json"][..], &asked, more].concat())
    };
    let whole = plan(&[]);
    assert_eq!(
        (&whole["choices"]["batch_size"], &whole["choices"]["grad_accum"]),
        (&8.into(), &2.into())
    );
    // The smallest that eight at once can do with, less a little.
    let eight = plan(&["--memory-budget", "1KiB", "--grad-accum", "1", "--batch-size", "1"]);
    let budget = eight["device_bytes"].as_u64().unwrap() + (64 << 10);
    let budget = ["--memory-budget", &budget.to_string()];
    let split = plan(&budget);
    let size = split["choices"]["batch_size"].as_u64().unwrap();
    assert!(size < 8 && size * split["choices"]["grad_accum"].as_u64().unwrap() == 16, "{split}");
    let train = |output: &str, more: &[&str]| {
        let flags = ["--output-dir", output, "--save-steps", "1", "--dtype", "f32"];
        let output = place.run(&[&[&*model, &data][..], &flags, &asked, more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    train("whole", &[]);
    let budget = [&budget[..], &["--dtype", "bf16"]].concat();
    let told = train("split", &budget);
    assert!(told.contains(&format!("micro-batches of {size} in place of 8")), "{told}");
    let losses = |folder: &str| -> Vec<f64> {
        let lines = metrics(&place.path(folder).join("metrics.jsonl"));
        lines.iter().filter_map(|line| line["loss"].as_f64()).collect()
    };
    for (whole, split) in losses("whole").iter().zip(losses("split")) {
        assert!((whole - split).abs() < 0.01 * whole, "{split}, not {whole}");
    }
    let settings = String::from_utf8(place.bytes("split/train_config.toml")).unwrap();
    assert!(settings.contains(&format!("batch_size = {size}\n")), "{settings}");
}

#[test]
fn the_longest_sequence_that_a_plan_names_fits_and_a_longer_one_does_not() {
    let (place, model) = (Place::new(), model());
    let plan = |seq_len: u64| -> Value {
        let seq_len = seq_len.to_string();
        let flags = ["--no-packing", "--memory-budget", "3MiB", "--seq-len", &seq_len];
        place.json(&[&["plan", &model, "--json"][..], &flags].concat())
    };
    let longest = plan(64)["outlook"]["longest_sequence"].as_u64().unwrap();
    assert!(longest > 64, "{longest}");
    assert_eq!(
        (&plan(longest)["fits"], &plan(longest + 64)["fits"]),
        (&true.into(), &false.into())
    );
    let outlook = &plan(64)["outlook"];
    assert!(outlook["largest_batch_tokens"].as_u64().unwrap() >= 64);
    assert!(outlook["everything_bytes"].as_u64() >= outlook["resident_bytes"].as_u64());
}

#[test]
fn a_small_budget_makes_a_store_pass_by_and_says_so_beforehand() {
    let (place, data) = (Place::new(), data());
    let shape = fs::read_to_string(format!("{}/config.json", model())).unwrap();
    let mut shape: Value = serde_json::from_str(&shape).unwrap();
    shape["num_hidden_layers"] = 8.into();
    place.write("shape.json", &shape.to_string());
    place.ok(&["quantize", "--synthetic", "shape.json", "--output", "store"]);
    let plan = |more: &[&str]| -> Value {
        place.json(&[&["plan", "store", &data, "--json"][..], &QUICK, more].concat())
    };
    let (all, passing) = (plan(&["--weights", "resident"]), plan(&["--weights", "streamed"]));
    assert_eq!(
        (&all["choices"]["weights"], &all["choices"]["lanes"]),
        (&"resident".into(), &1.into())
    );
    assert_eq!(passing["choices"]["lanes"], 2);
    let weights = |plan: &Value, name: &str| plan["categories"][name].as_u64().unwrap();
    assert!(weights(&passing, "streamed weights") < weights(&all, "base weights") / 3);
    // Too little for the weights of all layers, enough for those of two.
    let least = plan(&["--memory-budget", "1KiB"]);
    assert_eq!((&least["fits"], &least["choices"]["weights"]), (&false.into(), &"streamed".into()));
    let enough = format!("{}", least["device_bytes"].as_u64().unwrap());
    let fits = plan(&["--memory-budget", &enough]);
    assert_eq!(fits["fits"], true, "the smallest budget that was named is enough");
}

#[test]
fn a_merged_model_is_what_base_and_adapter_were() {
    let (place, model, data) = (Place::new(), model(), data());
    let adapter = fixture("curve/final-nf4");
    place.ok(&["merge", &model, "--adapter", &adapter, "--output", "m"]);
    let apart = place.loss(&["eval", &model, &data, "--adapter", &adapter, "--json"]);
    let merged = place.loss(&["eval", "m", &data, "--quantization", "none", "--json"]);
    // One rounding of every weight to bf16.
    assert!((merged / apart - 1.0).abs() < 2f64.powi(-8), "{merged} {apart}");
    let config: Value = serde_json::from_slice(&place.bytes("m/config.json")).unwrap();
    assert!(config.get("quantization_config").is_none());
    place.ok(&["quantize", &model, "--output", "q"]);
    place.ok(&["merge", "q", "--adapter", &adapter, "--output", "mq"]);
    assert_eq!(place.bytes("m/model.safetensors"), place.bytes("mq/model.safetensors"));
}

#[test]
fn a_check_tells_each_comparison_and_holds() {
    let (place, model, data) = (Place::new(), model(), data());
    let text = place.ok(&["check", &model, &data, "--records", "3", "--lora-dropout", "0.5"]);
    let rows: Vec<&str> = text.lines().collect();
    assert!(rows[..rows.len() - 1].iter().all(|row| row.starts_with("  holds ")), "{text}");
    assert_eq!(rows[rows.len() - 1], format!("all {} comparisons hold", rows.len() - 1));
    let found = place.json(&["check", &model, &data, "--json", "--dtype", "f32"]);
    assert_eq!(found["holds"], true);
    assert!(found["comparisons"].as_array().unwrap().len() > 10);
    let output = place.run(&["check", &model, "absent.jsonl"]);
    assert!(refusal(&output).contains("absent.jsonl"), "{}", stderr(&output));
    // Nothing is written.
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 0);
}

#[test]
fn a_head_in_four_bits_is_one_for_everything_else_too() {
    let place = Place::new();
    let (model, tied) = (fixture("models/mistral"), fixture("models/llama"));
    let (data, adapter) = (place.write("d.jsonl", &ids()), fixture("models/mistral/adapter"));
    place.ok(&["quantize", &model, "--output", "q", "--quantize-head"]);
    let config: Value = serde_json::from_slice(&place.bytes("q/config.json")).unwrap();
    assert_eq!(config["quantization_config"]["llm_int8_skip_modules"], serde_json::json!([]));
    let of = |model: &str| place.loss(&["eval", model, &data, "--dtype", "f32", "--json"]);
    let (usual, small) = (of(&model), of("q"));
    assert!(usual != small && (usual / small - 1.0).abs() < 0.05, "{usual} {small}");
    // What merging writes is the dequantized head.
    place.ok(&["merge", "q", "--adapter", &adapter, "--output", "m"]);
    let merged = place.loss(&["eval", "m", &data, "--quantization", "none", "--json"]);
    let apart = place.loss(&["eval", "q", &data, "--adapter", &adapter, "--json"]);
    assert!((merged / apart - 1.0).abs() < 2f64.powi(-8), "{merged} {apart}");
    let output = place.run(&["quantize", &tied, "--output", "x", "--quantize-head"]);
    assert!(refusal(&output).contains("--quantize-head"), "{}", stderr(&output));
    assert!(!place.0.path().join("x").exists());
}

/// Records of tokens.
fn ids() -> String {
    let record = |first: u32| {
        let ids: Vec<u32> = (0..24).map(|i| (first + i * 7) % 64).collect();
        format!("{}\n", serde_json::json!({ "input_ids": ids }))
    };
    (1..6).map(record).collect()
}

#[test]
fn greedy_tokens_are_those_of_the_reference() {
    let place = Place::new();
    for name in ["llama", "qwen3", "gemma3"] {
        let model = fixture(&format!("models/{name}"));
        let text = fs::read_to_string(fixture(&format!("models/{name}/reference.json"))).unwrap();
        let reference: Value = serde_json::from_str(&text).unwrap();
        let ids = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|id| id.to_string()).collect()
        };
        let reference = &reference["bases"]["none"];
        let prompt = ids(&reference["greedy_prompt"]).join(",");
        let expected = ids(&reference["greedy"]);
        let most = expected.len().to_string();
        let result = place.json(&[
            "generate",
            &model,
            "--prompt-ids",
            &prompt,
            "--max-new-tokens",
            &most,
            "--json",
            "--quantization",
            "none",
            "--dtype",
            "f32",
        ]);
        assert_eq!(ids(&result["tokens"]), expected, "{name}");
        assert_eq!(ids(&result["prompt_tokens"]).join(","), prompt);
    }
}

#[test]
fn the_planned_bytes_are_the_measured_ones() {
    let (place, model, data) = (Place::new(), model(), data());
    let cases: [&[&str]; 4] = [
        &[],
        &["--optimizer", "adamw-8bit", "--lora-dropout", "0.1", "--quantization", "fp4"],
        &["--dtype", "f32", "--no-packing", "--threads", "1", "--quantization", "none"],
        &["--eval-data", &data, "--no-double-quant", "--target-modules", "q_proj,down_proj"],
    ];
    for (number, more) in cases.into_iter().enumerate() {
        let output = format!("a{number}");
        place.train(&output, more);
        let plan = place.json(&[&["plan", &model, &data, "--json"][..], &QUICK, more].concat());
        let summary = metrics(&place.path(&output).join("metrics.jsonl")).pop().unwrap();
        assert_eq!(plan["device_bytes"], summary["peak_memory_bytes"], "{more:?}");
        assert_eq!(plan["fits"], true);
        let smaller = (plan["device_bytes"].as_u64().unwrap() - 1).to_string();
        let budget = ["--memory-budget", &smaller];
        let tight = [&["plan", &model, &data, "--json"][..], &QUICK, more, &budget].concat();
        assert_eq!(place.json(&tight)["choices"]["keep"], "inputs", "{more:?}");
    }
}

#[test]
fn a_plan_needs_no_more_than_a_configuration() {
    let place = Place::new();
    fs::copy(fixture("curve/model/config.json"), place.path("config.json")).unwrap();
    let alone = place.json(&["plan", ".", "--json"]);
    let whole = place.json(&["plan", &model(), "--json"]);
    let of = |plan: &Value, label: &str| plan["categories"][label].as_u64().unwrap();
    for label in ["base weights", "activations", "optimizer moments", "adapter values"] {
        assert_eq!(of(&alone, label), of(&whole, label), "{label}");
    }
}

#[test]
fn a_conversation_is_trained_and_asked_in_the_same_tokens() {
    let (place, model, records) = (Place::new(), demo("model"), demo("train.jsonl"));
    let shown = place.json(&["inspect", &model, &records, "--records", "1", "--json"]);
    assert_eq!(shown["end_token_supervised"], shown["records"]);
    let record = &shown["records_shown"][0];
    let supervised = record["supervised"].as_array().unwrap();
    let first = supervised.iter().position(|target| target == true).unwrap();
    let line = fs::read_to_string(&records).unwrap().lines().next().unwrap().to_owned();
    let line: Value = serde_json::from_str(&line).unwrap();
    let question = Value::from(vec![line["messages"][0].clone()]);
    let messages = place.write("question.json", &question.to_string());
    let arguments = ["generate", &model, "--messages", &messages, "--json"];
    let result = place.json(&[&arguments[..], &["--max-new-tokens", "3"]].concat());
    let ids = record["ids"].as_array().unwrap();
    assert_eq!(result["prompt_tokens"].as_array().unwrap(), &ids[..first]);
    let text = place.ok(&[&arguments[..4], &["--max-new-tokens", "3"]].concat());
    assert_eq!(text.trim_end_matches('\n'), result["text"].as_str().unwrap());
}

#[test]
fn files_that_the_adapter_needs_lie_beside_it() {
    let (place, model, records) = (Place::new(), demo("model"), demo("valid.jsonl"));
    place.ok(&[&model, &records, "--output-dir", "a", "--max-steps", "1"]);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let original = fs::read(format!("{model}/{name}")).unwrap();
        assert!(place.bytes(&format!("a/{name}")) == original, "{name}");
    }
    let config: Value = serde_json::from_slice(&place.bytes("a/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], model);
    place.ok(&["quantize", &model, "--output", "q"]);
    place.ok(&["eval", "q", &records, "--adapter", "a"]);
}

#[test]
fn the_demo_teaches_what_it_promises_and_cleans_up() {
    let place = Place::new();
    fs::create_dir(place.path("tmp")).unwrap();
    let mut command = place.command(&["demo"]);
    let output = command.env("TMPDIR", place.path("tmp")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let (before, after) = text.split_once("And what it writes now").unwrap();
    for start in ["Name: ", "Job: ", "Home: ", "Pet: ", "Food: "] {
        let count = |text: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!((count(before), count(after)), (0, 2), "{start}: {text}");
    }
    assert_eq!(place.names(), ["tmp"]);
    assert_eq!(fs::read_dir(place.path("tmp")).unwrap().count(), 0);
}
