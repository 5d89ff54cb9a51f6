//! What a run costs beside what it was planned to cost, and what around it must not matter.

use std::fs;
use std::process::Stdio;

use crate::{Place, QUICK, data, demo, model, refusal};

/// Runs to success and gives the most memory that the process held, in bytes.
#[allow(clippy::zombie_processes, reason = "the system is asked for its usage as it is waited for")]
fn peak(place: &Place, arguments: &[&str]) -> u64 {
    let mut command = place.command(arguments);
    // The allocator gives back what is freed, so that this measures what is held.
    command.env("MALLOC_TRIM_THRESHOLD_", "65536").env("MALLOC_MMAP_THRESHOLD_", "65536");
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both are written by the call; the child is waited for here only.
    let usage = unsafe {
        libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr());
        usage.assume_init()
    };
    assert_eq!(status, 0, "{arguments:?}");
    usage.ru_maxrss as u64 * 1024
}

#[test]
fn a_save_takes_no_more_memory_than_an_adapter_and_a_map_of_it() {
    let place = Place::new();
    let measured = ["8", "256"].map(|rank| {
        let (model, data) = (demo("model"), demo("train.jsonl"));
        let mut arguments = vec![&*model, &data, "--device", "cpu", "--lora-r", rank];
        arguments.extend(["--max-steps", "2", "--save-steps", "1", "--batch-size", "1"]);
        arguments.extend(["--seq-len", "64", "--output-dir", rank]);
        let planned = place.json(&[&["plan"], &arguments[..], &["--json"]].concat());
        let planned = planned["device_bytes"].as_u64().unwrap();
        let held = peak(&place, &arguments);
        let adapter = place.bytes(&format!("{rank}/adapter_model.safetensors")).len() as u64;
        (planned, held, adapter)
    });
    let [small, large] = measured;
    let (held, planned) = (large.1 - small.1, large.0 - small.0);
    let beside = held.saturating_sub(planned) as f64 / (large.2 - small.2) as f64;
    assert!(beside < 2.3, "{beside:.2} times the adapter: {measured:?}");
}

#[test]
fn evaluation_keeps_no_logits() {
    let place = Place::new();
    let records = fs::read_to_string(data()).unwrap();
    let few = place.write("few.jsonl", &records);
    let many = place.write("many.jsonl", &records.repeat(100));
    let [few, many] = [few, many].map(|data| peak(&place, &["eval", &model(), &data]));
    // 143,400 tokens by 101 logits would be 58 MB in f32.
    assert!(many < few + (16 << 20), "{few} bytes for 65 records, {many} for 6500");
}

#[test]
fn checkpoints_go_by_their_step_and_not_by_their_name() {
    let place = Place::new();
    place.train("out", &["--max-steps", "11", "--save-steps", "1", "--keep-checkpoints", "2"]);
    let entries = fs::read_dir(place.path("out")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<_> = names.filter(|name| name.starts_with("checkpoint-")).collect();
    left.sort();
    assert_eq!(left, ["checkpoint-10", "checkpoint-11"]);
}

#[test]
fn the_language_of_the_system_changes_no_byte() {
    let place = Place::new();
    let record = |text: &str| serde_json::json!({ "text": text }).to_string() + "\n";
    let texts = ["naïve – “quoted”", "\u{1F600} smile", "öäü ß"];
    let data = place.write("data.jsonl", &texts.map(record).concat());
    let adapters = ["C", "C.UTF-8", "tr_TR.UTF-8"].map(|language| {
        let (model, out) = (demo("model"), format!("out-{language}"));
        let arguments = [&[&*model, &data, "--output-dir", &out], &QUICK[..]].concat();
        let mut command = place.command(&arguments);
        let output = command.env("LC_ALL", language).env("LANG", language).output().unwrap();
        assert!(output.status.success(), "{language}: {}", crate::stderr(&output));
        place.bytes(&format!("{out}/adapter_model.safetensors"))
    });
    assert!(adapters.iter().all(|adapter| *adapter == adapters[0]));
}

#[test]
fn a_record_of_seventy_megabytes_is_named_and_not_held() {
    let place = Place::new();
    let text = "x".repeat(70 << 20);
    let data =
        place.write("data.jsonl", &format!("{{\"text\": \"a\"}}\n{{\"text\": \"{text}\"}}\n"));
    let output = place.run(&[&demo("model"), &data, "--output-dir", "out"]);
    let line = refusal(&output);
    assert!(line.contains("data.jsonl: line 2") && line.contains("64 MiB"), "{line}");
    assert!(line.len() < 500 && !place.path("out").exists());
}

#[test]
fn head_and_embeddings_that_may_share_their_numbers_take_no_adapter() {
    let place = Place::new();
    let (model, data) = (demo("model"), demo("train.jsonl"));
    for module in ["lm_head", "embed_tokens"] {
        let targets = ["--target-modules", module, "--output-dir", "out"];
        let line = refusal(&place.run(&[&[&*model, &data], &targets[..]].concat()));
        assert!(line.contains(module) && line.contains("q_proj"), "{line}");
    }
}
