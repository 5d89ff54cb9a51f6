//! Runs that are cut short, go on, or lose their readers.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use crate::{Place, QUICK, copy, data, metrics, model, refusal, stderr};

const ADAPTER: &str = "adapter_model.safetensors";

/// A run with checkpoints 2, 4 and 6, and a copy of its folder as it stood after step 4.
fn interrupted(place: &Place, more: &[&str]) {
    place.train("whole", &[&["--save-steps", "2", "--keep-checkpoints", "9"], more].concat());
    for name in ["checkpoint-2", "checkpoint-4", "metrics.jsonl", "train_config.toml"] {
        let (from, to) = (place.path("whole").join(name), place.path("cut").join(name));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(&from, &to).unwrap()),
        }
    }
}

fn resume(place: &Place, how: &str, more: &[&str]) -> std::process::Output {
    let (model, data) = (model(), data());
    let arguments = [&model, &data, "--output-dir", "cut", "--resume", how];
    place.run(&[&arguments[..], &QUICK, &["--save-steps", "2"], more].concat())
}

#[test]
fn a_resumed_run_ends_in_the_bytes_of_an_uninterrupted_one() {
    for more in [["--lora-dropout", "0.2"], ["--optimizer", "adamw-8bit"]] {
        let place = Place::new();
        let more = &[&more[..], &["--lora-r", "64"]].concat();
        interrupted(&place, more);
        let output = resume(&place, "auto", more);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("going on after step 4 of 6"), "{}", stderr(&output));
        let bytes = |folder: &str| place.bytes(&format!("{folder}/{ADAPTER}"));
        assert!(bytes("cut") == bytes("whole"), "{more:?}");
        let losses = |folder: &str| -> Vec<f64> {
            let lines = metrics(&place.path(folder).join("metrics.jsonl"));
            lines.iter().filter_map(|line| line["loss"].as_f64()).collect()
        };
        assert_eq!(losses("cut"), losses("whole"));
        assert_eq!(losses("cut").len(), 6);
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_named() {
    let place = Place::new();
    interrupted(&place, &[]);
    let damaged = place.path("cut/checkpoint-4").join(ADAPTER);
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() - 1]).unwrap();
    let output = resume(&place, "cut/checkpoint-4", &[]);
    assert!(refusal(&output).contains("checkpoint-4"), "{}", stderr(&output));
    let output = resume(&place, "auto", &[]);
    let told = stderr(&output);
    assert!(told.contains("passed over: cut/checkpoint-4"), "{told}");
    assert!(told.contains("going on after step 2 of 6"), "{told}");
    let bytes = |folder: &str| place.bytes(&format!("{folder}/{ADAPTER}"));
    assert!(bytes("cut") == bytes("whole"));
}

#[test]
fn checkpoints_of_other_settings_are_neither_used_nor_overwritten() {
    let place = Place::new();
    interrupted(&place, &[]);
    let before = place.bytes("cut/metrics.jsonl");
    for how in ["auto", "cut/checkpoint-4"] {
        let output = resume(&place, how, &["--seed", "7"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(refusal(&output).contains("checkpoint-"), "{}", stderr(&output));
    }
    assert!(place.bytes("cut/metrics.jsonl") == before);
    assert!(place.path("cut/checkpoint-4").is_dir());
}

/// Starts a run that would take very long, and waits until it is under way.
fn start_long_run(place: &Place, more: &[&str]) -> (Child, BufReader<std::process::ChildStderr>) {
    let (model, data) = (model(), data());
    let arguments = [&model, &data, "--output-dir", "long", "--max-steps", "1000000"];
    let mut command = place.command(&[&arguments[..], more].concat());
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("step ") {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0, "the run ended by itself");
    }
    (child, told)
}

fn stop(
    mut child: Child,
    mut told: BufReader<std::process::ChildStderr>,
    signal: &str,
) -> ExitStatus {
    let id = child.id().to_string();
    let sent = std::process::Command::new("kill").args([signal, &id]).status().unwrap();
    assert!(sent.success());
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("a checkpoint was written"), "{rest}");
    child.wait().unwrap()
}

#[test]
fn a_signal_leaves_a_checkpoint_from_which_the_run_goes_on() {
    let place = Place::new();
    let (child, told) = start_long_run(&place, &[]);
    assert_eq!(stop(child, told, "-INT").code(), Some(130));
    let checkpoints = || -> Vec<PathBuf> {
        let entries = fs::read_dir(place.path("long")).unwrap();
        let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.is_dir());
        found.sort();
        found
    };
    assert_eq!(checkpoints().len(), 1, "{:?}", checkpoints());
    let (child, told) = start_long_run(&place, &["--resume", "auto"]);
    assert_eq!(stop(child, told, "-TERM").code(), Some(143));
    assert_eq!(checkpoints().len(), 2, "{:?}", checkpoints());
}

#[test]
fn a_second_signal_leaves_at_once_and_nothing_half_written_counts() {
    let place = Place::new();
    // The first save of a run is at the signal: the second one comes before, within or after it.
    for milliseconds in [0, 2, 8] {
        let (mut child, mut told) = start_long_run(&place, &["--resume", "auto"]);
        let (id, begun) = (child.id(), std::time::Instant::now());
        let script = format!(
            "kill -INT {id}; sleep 0.{milliseconds:03}; kill -INT {id} 2>/dev/null || true"
        );
        let sent = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        assert!(sent.success() && !rest.contains("panicked"), "{rest}");
        assert_eq!(child.wait().unwrap().code(), Some(130), "{milliseconds} ms: {rest}");
        assert!(begun.elapsed().as_secs() < 5, "{milliseconds} ms");
    }
    let (child, told) = start_long_run(&place, &["--resume", "auto"]);
    let entries = fs::read_dir(place.path("long")).unwrap();
    let names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("tmp")), "{names:?}");
    assert_eq!(stop(child, told, "-TERM").code(), Some(143));
}

#[test]
fn a_reader_of_results_that_went_away_is_no_failure_and_a_full_disk_is_one() {
    let place = Place::new();
    let mut child = place.command(&["--help"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let (model, data) = (model(), data());
    let arguments = ["inspect", &model, &data, "--records", "65"];
    let mut command = place.command(&arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    if let Ok(full) = fs::File::options().write(true).open("/dev/full") {
        let output = place.command(&arguments).stdout(full).output().unwrap();
        assert!(refusal(&output).contains("standard output"), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(1));
    }
}
