//! Runs that are killed, and disks that fail at any call: what is resumed ends in the bytes of a run that
//! nothing happened to, and what cannot be saved is an error that names the file.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_qlora-train");

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/curve/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A run of a few steps with a checkpoint after every other one, mid-epoch, packed and shuffled.
fn command(out: &Path, steps: &str, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    let (model, data) = (fixture("model"), fixture("data.jsonl"));
    command.args([&model, &data, "--device", "cpu", "--output-dir"]).arg(out);
    command.args(["--seq-len", "64", "--batch-size", "2", "--grad-accum", "2", "--lora-r", "2"]);
    command.args(["--target-modules", "q_proj", "--lora-dropout", "0.1", "--max-steps", steps]);
    command.args(["--save-steps", "2", "--resume", "auto"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn adapter(out: &Path) -> Vec<u8> {
    let bytes = fs::read(out.join("adapter_model.safetensors"));
    bytes.unwrap_or_else(|error| panic!("{}: {error}", out.display()))
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The adapter of a run that nothing happens to.
fn whole(folder: &Path, steps: &str) -> Vec<u8> {
    let out = folder.join("whole");
    let output = command(&out, steps, &[]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    adapter(&out)
}

/// Goes on with what a run has left, to the end; gives after which step.
fn finish(out: &Path, steps: &str, expected: &[u8], what: &str) -> u64 {
    let output = command(out, steps, &[]).output().unwrap();
    assert!(output.status.success(), "{what}: {}", told(&output));
    assert!(adapter(out) == expected, "{what}: another adapter");
    let names = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "{what}: {left:?} is left");
    let text = told(&output);
    let step = text.split_once("going on after step ").and_then(|(_, rest)| rest.split_once(' '));
    step.map_or(0, |(step, _)| step.parse().unwrap())
}

/// Whether a checkpoint is being written.
fn is_saving(out: &Path) -> bool {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
}

#[test]
fn fifty_kills_at_any_moment_change_no_byte() {
    const STEPS: &str = "40";
    let folder = tempfile::tempdir().unwrap();
    let expected = whole(folder.path(), STEPS);
    let (mut kills, mut within_saving, mut runs) = (0, 0, 0_u64);
    while kills < 50 {
        let out = folder.path().join(format!("run-{runs}"));
        let threads = ["1", "2", "3"][runs as usize % 3];
        runs += 1;
        // The same run again and again, until one comes to its end.
        for attempt in 0.. {
            let begun = Instant::now();
            let mut child = command(&out, STEPS, &["--threads", threads]).spawn().unwrap();
            let wait =
                Duration::from_micros(1_000 * (17 + (kills * 7_919 + attempt * 104_729) % 150));
            // Every other kill waits for a checkpoint that is being written.
            let at_once = kills % 2 == 0;
            let ended = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if begun.elapsed() > wait && (at_once || is_saving(&out)) {
                    break None;
                }
                std::thread::sleep(Duration::from_micros(200));
            };
            match ended {
                Some(status) => {
                    assert!(status.success(), "run {runs}, attempt {attempt}: {status}");
                    break;
                }
                None => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    kills += 1;
                    within_saving += u64::from(is_saving(&out));
                }
            }
        }
        assert!(adapter(&out) == expected, "run {runs} after {kills} kills");
    }
    assert!(within_saving > 0, "no kill met a checkpoint that was being written");
}

/// The library that makes the disk fail, which the build has put beside this program.
fn faulty_disk() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libfaulty_disk.so")
}

const STEPS: &str = "5";

/// Where a run on the disk `disk` saves.
fn output_of(disk: &Path) -> PathBuf {
    disk.join("run")
}

/// A run on the new disk `disk`, which fails at call `call`; gives what came of it and how many calls it made.
fn on_faulty_disk(disk: &Path, call: u64, how: &str, more: &[&str]) -> (Output, u64) {
    let count = disk.with_extension("count");
    fs::create_dir(disk).unwrap();
    let mut run = command(&output_of(disk), STEPS, more);
    run.env("LD_PRELOAD", faulty_disk()).env("FAULTY_FOLDER", disk).env("FAULTY_COUNT", &count);
    let output = run.env("FAULTY_CALL", call.to_string()).env("FAULTY_HOW", how).output().unwrap();
    let calls = fs::read_to_string(&count).ok().and_then(|text| text.parse().ok());
    (output, calls.unwrap_or(0))
}

/// What came of a fault.
#[derive(Clone, Copy)]
struct Outcome {
    /// The run came to its end by itself.
    unhurt: bool,
    /// After which step the next one went on.
    kept: u64,
}

/// What a fault at call `call` must come to.
fn one_fault(disk: &Path, call: u64, how: &str, more: &[&str], expected: &[u8]) -> Outcome {
    let (what, out) = (format!("{how} at call {call}"), output_of(disk));
    let (output, _) = on_faulty_disk(disk, call, how, more);
    match output.status.code() {
        Some(0) => assert!(adapter(&out) == expected, "{what}: exit 0, another adapter"),
        Some(1) => {
            let text = told(&output);
            let errors: Vec<&str> =
                text.lines().filter(|line| line.starts_with("error: ")).collect();
            assert_eq!(errors.len(), 1, "{what}: {text}");
            let named = errors[0].contains(&*disk.to_string_lossy());
            assert!(named, "{what}: which file? {}", errors[0]);
        }
        // Killed as asked for, and not ended by a disk that could not be made to fail.
        None if ["kill", "torn", "forgotten", "names"].contains(&how) => {
            assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{what}");
        }
        other => panic!("{what}: {other:?}: {}", told(&output)),
    }
    let kept = finish(&out, STEPS, expected, &what);
    let _ = fs::remove_dir_all(disk);
    Outcome { unhurt: output.status.success(), kept }
}

/// What came of a fault at each of so many calls, in their order.
fn each_call(folder: &Path, calls: u64, how: &str, more: &[&str], expected: &[u8]) -> Vec<Outcome> {
    let next = AtomicU64::new(1);
    let outcomes = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let call = next.fetch_add(1, Ordering::SeqCst);
            if call > calls {
                return;
            }
            let disk = folder.join(format!("{how}-{}-{call}", more.len()));
            let outcome = one_fault(&disk, call, how, more, expected);
            outcomes.lock().unwrap().insert(call, outcome);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    outcomes.into_inner().unwrap().into_values().collect()
}

/// How many calls a run makes that nothing happens to.
fn calls(folder: &Path) -> u64 {
    let (output, calls) = on_faulty_disk(&folder.join("counted"), 0, "kill", &[]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(calls > 60, "{calls} calls were counted");
    calls
}

#[test]
fn a_fault_at_any_call_loses_nothing_but_the_steps_since_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, calls) = (whole(folder.path(), STEPS), calls(folder.path()));
    for how in ["kill", "torn", "eio", "enospc", "full"] {
        each_call(folder.path(), calls, how, &[], &expected);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_a_warning_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, calls) = (whole(folder.path(), STEPS), calls(folder.path()));
    let more = ["--on-save-error", "continue"];
    let outcomes = each_call(folder.path(), calls, "enospc", &more, &expected);
    // Of the files of a run, those of its checkpoints are by far the most.
    let unhurt = outcomes.iter().filter(|outcome| outcome.unhurt).count() as u64;
    assert!(unhurt > calls / 2, "{unhurt} of {calls} runs came to their end");
}

/// A process that is killed keeps what it has written, a machine without power what was forced to the disk.
#[test]
fn power_that_goes_at_any_call_costs_no_more_than_a_kill_a_call_earlier() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, calls) = (whole(folder.path(), STEPS), calls(folder.path()));
    let killed = each_call(folder.path(), calls, "kill", &[], &expected);
    assert!(killed.iter().any(|outcome| outcome.kept > 0), "no checkpoint was ever kept");
    for how in ["forgotten", "names"] {
        // The last one: the power goes when all is done.
        let outcomes = each_call(folder.path(), calls + 1, how, &[], &expected);
        assert!(outcomes.last().unwrap().unhurt, "{how}");
        for (call, (kill, power)) in killed.iter().zip(&outcomes[1..]).enumerate() {
            let (was, is) = (kill.kept, power.kept);
            assert!(is >= was, "{how} at call {}: {is}, and {was} one before", call + 2);
        }
    }
}
