//! The program on a GPU: an emulated one, which it finds as it finds any driver.

use std::os::unix::fs::symlink;
use std::process::Output;

use crate::{Place, QUICK, data, metrics, model, refusal, stderr};

/// What a user has to be told of.
const CARD: (&str, &str) = ("PTX_EMU_MEMORY", "134217728");

impl Place {
    /// Runs with the emulator as the driver of the machine, and a card as `settings` say.
    fn with_gpu(&self, settings: &[(&str, &str)], arguments: &[&str]) -> Output {
        let driver = self.path("libcuda.so");
        if !driver.exists() {
            let emulator = std::env::current_exe().unwrap().with_file_name("libptx_emu.so");
            symlink(emulator, &driver).unwrap();
        }
        let mut command = self.command(arguments);
        command.env("LD_LIBRARY_PATH", self.path("")).env_remove("CUDA_VISIBLE_DEVICES");
        command.envs([CARD]).envs(settings.iter().copied()).output().unwrap()
    }

    fn trained_on_gpu(&self, settings: &[(&str, &str)], more: &[&str]) -> Output {
        let (model, data) = (model(), data());
        let arguments = [&[&*model, &data, "--output-dir", "gpu"][..], &QUICK, more].concat();
        self.with_gpu(settings, &arguments)
    }
}

#[test]
fn a_run_on_a_gpu_has_the_losses_of_the_cpu_and_the_memory_that_was_planned() {
    let place = Place::new();
    let short = ["--max-steps", "2", "--optimizer", "adamw-8bit", "--lora-dropout", "0.1"];
    place.train("cpu", &[&short[..], &["--device", "cpu"]].concat());
    let losses = |folder: &str| -> Vec<f64> {
        let lines = metrics(&place.path(folder).join("metrics.jsonl"));
        lines.iter().filter_map(|line| line["loss"].as_f64()).collect()
    };
    let cpu = losses("cpu");
    let (model, data) = (model(), data());
    let plan = [&["plan", &*model, &data, "--json"][..], &QUICK, &short].concat();
    // Without a GPU and for a named size, the plan is that of a card that decodes weights before products.
    let budget = ["--device", "cuda", "--memory-budget", "128MiB"];
    let named = place.json(&[&plan[..], &budget].concat());
    for (capability, spelled) in [("86", "8.6"), ("80", "8.0")] {
        let card = [("PTX_EMU_CAPABILITY", capability)];
        let output = place.trained_on_gpu(&card, &short);
        assert!(output.status.success(), "{}", stderr(&output));
        let (told, on) = (
            stderr(&output),
            format!("device: cuda:0, Emulated card, compute capability {spelled}"),
        );
        assert!(told.contains(&on), "{told}");
        let gpu = losses("gpu");
        assert_eq!((gpu.len(), cpu.len()), (2, 2));
        for (gpu, cpu) in gpu.iter().zip(&cpu) {
            assert!((gpu - cpu).abs() <= 0.01 * cpu, "{gpu} on the GPU, {cpu} on the CPU");
        }
        let summary = metrics(&place.path("gpu").join("metrics.jsonl")).pop().unwrap();
        std::fs::remove_dir_all(place.path("gpu")).unwrap();
        let planned = place.with_gpu(&card, &plan);
        let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).unwrap();
        assert_eq!(planned["choices"]["device"], "cuda:0");
        assert_eq!(planned["device_bytes"], summary["peak_memory_bytes"], "{capability}");
        if capability == "80" {
            assert_eq!(named["categories"], planned["categories"]);
        }
    }
}

#[test]
fn what_was_trained_on_a_gpu_is_evaluated_and_asked_there() {
    let place = Place::new();
    let output = place.trained_on_gpu(&[], &["--max-steps", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (model, data) = (model(), data());
    let eval = ["eval", &model, &data, "--adapter", "gpu", "--seq-len", "64", "--json"];
    let on_gpu: serde_json::Value =
        serde_json::from_slice(&place.with_gpu(&[], &eval).stdout).unwrap();
    let on_gpu = on_gpu["results"][0]["loss"].as_f64().unwrap();
    let on_cpu = place.loss(&[&eval[..], &["--device", "cpu"]].concat());
    assert!((on_gpu - on_cpu).abs() <= 0.01 * on_cpu, "{on_gpu}, on the CPU {on_cpu}");
    let generate = ["generate", &model, "--adapter", "gpu", "--prompt-ids", "3,5,7", "--json"];
    let more = ["--max-new-tokens", "3", "--temperature", "0"];
    let output = place.with_gpu(&[], &[&generate[..], &more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let on_gpu: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let on_cpu = place.json(&[&generate[..], &more, &["--device", "cpu"]].concat());
    assert_eq!(on_gpu["tokens"], on_cpu["tokens"]);
}

/// A rank with which the run takes tens of mebibytes.
const LARGE: [&str; 4] = ["--lora-r", "512", "--max-steps", "1"];

#[test]
fn a_run_fits_on_a_card_of_128_mib_and_one_of_8_is_out_of_memory_with_the_plan_beside_it() {
    let place = Place::new();
    // What is free is planned for, 64 MiB of it for the driver.
    let output = place.trained_on_gpu(&[("PTX_EMU_MEMORY", "75497472")], &LARGE);
    assert!(refusal(&output).contains("--memory-budget: "), "{}", stderr(&output));
    // A budget that the card does not have: the plan fits, the card does not.
    let hoped = [&LARGE[..], &["--memory-budget", "128MiB"]].concat();
    let output = place.trained_on_gpu(&[("PTX_EMU_MEMORY", "8388608")], &hoped);
    assert!(refusal(&output).contains("cuda:0: out of memory: "), "{}", stderr(&output));
    assert!(stderr(&output).contains("memory plan"), "{}", stderr(&output));
    assert!(stderr(&output).contains("optimizer moments"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
    let output = place.trained_on_gpu(&[], &LARGE);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = metrics(&place.path("gpu").join("metrics.jsonl")).pop().unwrap();
    assert!(summary["peak_memory_bytes"].as_u64().unwrap() > 72 << 20, "{summary}");
}

/// A run on the smallest card that can hold it: weights pass by, layer inputs and moments wait in host
/// memory; stopped after its first step and gone on with.
#[test]
fn the_smallest_card_that_a_run_fits_on_gives_the_adapter_of_a_large_one() {
    let (place, data) = (Place::new(), data());
    let shape = std::fs::read_to_string(format!("{}/config.json", model())).unwrap();
    let mut shape: serde_json::Value = serde_json::from_str(&shape).unwrap();
    shape["num_hidden_layers"] = 4.into();
    place.write("shape.json", &shape.to_string());
    place.ok(&["quantize", "--synthetic", "shape.json", "--output", "store"]);
    let flags = ["--seq-len", "64", "--grad-accum", "2", "--lora-r", "256", "--max-steps", "2"];
    let plan = ["plan", "store", &data, "--json", "--device", "cuda", "--memory-budget"];
    let plan = place.json(&[&plan[..], &["1KiB"], &flags].concat());
    let choices = &plan["choices"];
    assert_eq!((&choices["weights"], &choices["paged"]), (&"streamed".into(), &true.into()));
    assert!(choices["parked"] == true && plan["host_bytes"].as_u64().unwrap() > 1 << 20, "{plan}");
    let budget = plan["device_bytes"].to_string();
    let train = |output: &str, more: &[&str]| {
        let arguments = ["store", &data, "--output-dir", output, "--save-steps", "1"];
        let output = place.with_gpu(&[], &[&arguments[..], &flags, more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    train("large", &[]);
    let told = train("small", &["--memory-budget", &budget]);
    assert!(told.contains("layer inputs and moments wait in"), "{told}");
    let first = place.path("again").join("checkpoint-1");
    std::fs::create_dir_all(&first).unwrap();
    for entry in std::fs::read_dir(place.path("small").join("checkpoint-1")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), first.join(entry.file_name())).unwrap();
    }
    let told = train("again", &["--memory-budget", &budget, "--resume", "auto"]);
    assert!(told.contains("going on after step 1 of 2"), "{told}");
    let adapter = |folder: &str| place.bytes(&format!("{folder}/adapter_model.safetensors"));
    assert!(adapter("small") == adapter("large"), "the size of the card changes a bit");
    assert!(adapter("again") == adapter("large"), "going on changes a bit");
}

#[test]
fn a_profile_times_every_kernel_between_two_events() {
    let place = Place::new();
    let more = ["--max-steps", "2", "--profile", "profile.json"];
    let output = place.trained_on_gpu(&[], &more);
    assert!(output.status.success(), "{}", stderr(&output));
    let told = stderr(&output);
    for kernel in ["matmul_nt", "attention_64", "rmsnorm_backward", "adamw", "copies: upload"] {
        assert!(told.contains(kernel), "{kernel} in {told}");
    }
    let text = std::fs::read_to_string(place.path("profile.json")).unwrap();
    let timeline: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = timeline["traceEvents"].as_array().unwrap();
    let of = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    let products = events.iter().filter(|event| event["name"] == "matmul_nt");
    assert!(products.clone().count() > 10 && of("memory") > 0 && of("thread_name") == 4);
    let time = |event: &serde_json::Value| event["dur"].as_f64().unwrap();
    assert!(products.map(time).sum::<f64>() > 0.0, "kernels take time");
    // Kernels of one stream do not overlap.
    let compute = events.iter().filter(|event| event["ph"] == "X" && event["tid"] == 0);
    let mut spans: Vec<_> = compute.map(|e| (e["ts"].as_f64().unwrap(), time(e))).collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Times of events are in milliseconds of f32.
    assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0 + 5.0));
}

#[test]
fn neither_the_order_of_warps_blocks_and_streams_nor_what_a_driver_has_not_changes_a_bit() {
    let place = Place::new();
    let mut adapters = Vec::new();
    let lacks = [
        ("PTX_EMU_GRAPHS", "1000"),
        ("PTX_EMU_GRAPHS", "1000"),
        ("PTX_EMU_GRAPHS", "3"),
        ("PTX_EMU_GRAPHS", "0"),
        ("PTX_EMU_GRAPH_UPDATES", "5"),
        ("PTX_EMU_GRAPH_UPDATES", "0"),
        ("PTX_EMU_POOLS", "0"),
        ("PTX_EMU_MACHINE_CODE", "0"),
    ];
    for (seed, lack) in (1..).zip(lacks) {
        let short = ["--max-steps", "2", "--no-packing", "--lora-dropout", "0.1"];
        let card = [("PTX_EMU_SEED", &*format!("{seed}")), lack];
        let output = place.trained_on_gpu(&card, &short);
        assert!(output.status.success(), "{}", stderr(&output));
        let folder = place.path("gpu");
        adapters.push(std::fs::read(folder.join("adapter_model.safetensors")).unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }
    assert!(adapters.iter().all(|adapter| *adapter == adapters[0]));
}

#[test]
fn a_gpu_that_cannot_be_used_is_refused_in_one_line() {
    let place = Place::new();
    let cases = [
        (
            ("PTX_EMU_DRIVER", "11080"),
            "cuda",
            "bf16",
            "11.8, and this program needs 12.0: install driver R525",
        ),
        (("PTX_EMU_CAPABILITY", "75"), "cuda", "bf16", "compute capability 7.5"),
        (("PTX_EMU_DEVICES", "0"), "cuda", "bf16", "the driver finds no GPU"),
        (("PTX_EMU_DEVICES", "1"), "cuda:1", "bf16", "no such GPU: the last one is cuda:0"),
        (("PTX_EMU_DEVICES", "1"), "cuda", "f32", "--dtype: f32 is for the CPU"),
        (
            ("PTX_EMU_IMAGES", "0"),
            "cuda",
            "bf16",
            "the kernels of adamw: CUDA_ERROR_INVALID_IMAGE (CUDA_ERROR_INVALID_IMAGE): ptxas fatal",
        ),
    ];
    for (card, device, dtype, fragment) in cases {
        let flags = ["--device", device, "--dtype", dtype];
        let output = place.trained_on_gpu(&[card], &flags);
        let line = refusal(&output);
        assert!(line.contains(fragment), "{flags:?}: {line}");
        assert!(!place.path("gpu").exists(), "{flags:?}: something was written");
    }
    let old = [("PTX_EMU_CAPABILITY", "75")];
    let output = place.trained_on_gpu(&old, &["--max-steps", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("device: cpu (auto: Emulated card has compute capability 7.5")
    );
}

#[test]
fn the_doctor_says_what_there_is() {
    let place = Place::new();
    let output = place.with_gpu(&[], &["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("GPU      Emulated card, compute capability 8.6, 128.0 MiB"), "{text}");
    assert!(text.contains("cuda:0 will be used"), "{text}");
    let output = place.with_gpu(&[("PTX_EMU_DRIVER", "11080")], &["doctor", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["gpu"]["found"], &told["device"]), (&false.into(), &"cpu".into()));
    let output = place.with_gpu(&[("PTX_EMU_DEVICES", "0")], &["doctor", "--kernels"]);
    assert!(refusal(&output).contains("the driver finds no GPU"), "{}", stderr(&output));
}

#[test]
fn each_card_gets_its_machine_code_or_ptx_and_the_doctor_says_which() {
    let place = Place::new();
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[], "machine code for sm_86 (prebuilt), loaded in"),
        (&[("PTX_EMU_CAPABILITY", "90")], "machine code for sm_90 (prebuilt), loaded in"),
        (&[("PTX_EMU_CAPABILITY", "121")], "machine code for sm_120 (prebuilt), loaded in"),
        (&[("PTX_EMU_CAPABILITY", "87")], "PTX (prebuilt), compiled by the driver in"),
        (&[("PTX_EMU_CAPABILITY", "110")], "PTX (prebuilt), compiled by the driver in"),
        (
            &[("PTX_EMU_MACHINE_CODE", "0")],
            "which did not take sm_86: CUDA_ERROR_NO_BINARY_FOR_GPU",
        ),
        // The oldest driver takes both.
        (&[("PTX_EMU_DRIVER", "12000"), ("PTX_EMU_MACHINE_CODE", "0")], "compiled by the driver"),
    ];
    for (card, expected) in cases {
        let output = place.with_gpu(card, &["doctor"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(expected), "{card:?}: {text}");
    }
}

#[test]
fn the_doctor_says_what_each_kernel_takes_of_a_multiprocessor() {
    let place = Place::new();
    let blocks = |capability: &str| -> u64 {
        let card = [("PTX_EMU_CAPABILITY", capability)];
        let output = place.with_gpu(&card, &["doctor", "--kernels", "--json"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let kernels = told["kernels"].as_array().unwrap();
        assert_eq!(kernels.len(), 35);
        let large = kernels.iter().find(|kernel| kernel["kernel"] == "matmul_large_nt").unwrap();
        // Three stages of both operands, 128 rows of 64 numbers of two bytes.
        assert_eq!(large["shared_bytes"], 3 * 2 * 128 * 64 * 2);
        assert_eq!(large["binary_version"].to_string(), capability);
        large["blocks_per_multiprocessor"].as_u64().unwrap()
    };
    // 100 KiB of shared memory, and 228.
    assert_eq!((blocks("86"), blocks("90")), (1, 2));
    let output = place.with_gpu(&[], &["doctor", "--kernels"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("matmul_large_nt                256         0      0   98304"), "{text}");
    assert!(text.ends_with("no kernel uses local memory\n"), "{text}");
}

#[test]
fn what_the_driver_takes_is_measured_and_set_against_the_plan() {
    let place = Place::new();
    // Equal shapes, whose passes become graphs in the first step.
    let record =
        |i: u32| format!("{{\"input_ids\": [{i}, 2, 3, 4, 5], \"labels\": [{i}, 2, 3, 4, 5]}}\n");
    place.write("equal.jsonl", &(1..9).map(record).collect::<String>());
    let run = |bytes: &str| {
        let card = [("PTX_EMU_MEMORY", "1073741824"), ("PTX_EMU_GRAPH_BYTES", bytes)];
        let flags =
            ["--output-dir", "gpu", "--no-packing", "--grad-accum", "4", "--max-steps", "2"];
        let output = place.with_gpu(&card, &[&[&*model(), "equal.jsonl"][..], &flags].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let summary = metrics(&place.path("gpu").join("metrics.jsonl")).pop().unwrap();
        std::fs::remove_dir_all(place.path("gpu")).unwrap();
        assert_eq!(summary["driver_memory_planned_bytes"], 64 << 20);
        (summary["driver_memory_bytes"].as_u64().unwrap(), stderr(&output))
    };
    let (small, told) = run("1024");
    assert!(small < 1 << 20 && !told.contains("the driver takes"), "{small}: {told}");
    let (large, told) = run("33554432");
    assert!((large - small).is_multiple_of(33_553_408), "whole graphs: {small} and {large}");
    assert!(
        told.contains("MiB for kernels, graphs and whole pages, 64 MiB were planned"),
        "{told}"
    );
}
