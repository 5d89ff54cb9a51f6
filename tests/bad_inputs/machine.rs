//! What the machine does to a run: signals, full disks, closed streams, damaged checkpoints.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Folder, PROGRAM, ids_model, stderr, text, text_model};

const ADAPTER: &str = "adapter_model.safetensors";

fn line(folder: &Folder, output: &str, steps: &str) -> Vec<String> {
    let data = ids_model().with_file_name("data.jsonl");
    [
        &*text(ids_model()),
        &*text(data),
        "--output-dir",
        &folder.name(output),
        "--max-steps",
        steps,
        "--save-steps",
        "2",
        "--seq-len",
        "64",
        "--grad-accum",
        "2",
        "--keep-checkpoints",
        "3",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Runs `script` of the shell with the program and `arguments` as `"$0" "$@"`.
fn shell(script: &str, arguments: &[String]) -> (Option<i32>, String) {
    let mut command = Command::new("sh");
    command.args(["-c", script, PROGRAM]).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap();
    let told = stderr(&output);
    assert!(!told.contains("panicked"), "{script}: {told}");
    (output.status.code(), told)
}

fn adapter(folder: &Folder, output: &str) -> Vec<u8> {
    fs::read(folder.at(output).join(ADAPTER)).unwrap()
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    let run = "exec \"$0\" \"$@\"";
    assert_eq!(shell(run, &line(&folder, "whole", "12")).0, Some(0));
    for (signal, code, lines) in [("INT", 130, 3), ("TERM", 143, 6)] {
        let output = format!("out-{signal}");
        let arguments = line(&folder, &output, "12");
        let mut child =
            Command::new(PROGRAM).args(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        (0..lines).for_each(|_| drop(told.read_line(&mut String::new())));
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        let ended = child.wait().unwrap().code();
        assert!(ended == Some(code) || ended == Some(0), "{signal}: {ended:?}: {rest}");
        let resumed = [arguments, vec!["--resume".into(), "auto".into()]].concat();
        let (code, told) = shell(run, &resumed);
        assert_eq!(code, Some(0), "{signal}: {told}");
        assert_eq!(adapter(&folder, &output), adapter(&folder, "whole"), "{signal}");
    }
}

#[test]
fn streams_that_nobody_reads_end_no_run() {
    let folder = Folder::new();
    let model = text(text_model());
    let plan = ["plan", &model].map(str::to_owned);
    let generate =
        ["generate", &model, "--prompt", "a", "--max-new-tokens", "20"].map(str::to_owned);
    for arguments in [&plan[..], &generate] {
        for script in [
            "\"$0\" \"$@\" | head -c 0",
            "exec \"$0\" \"$@\" >&-",
            "exec \"$0\" \"$@\" 2>&-",
            "exec \"$0\" \"$@\" >&- 2>&- <&-",
            "exec \"$0\" \"$@\" 2>/dev/full >/dev/null",
        ] {
            let (code, told) = shell(script, arguments);
            assert!(matches!(code, Some(0 | 1)), "{script}: {code:?} {told}");
        }
        let (code, told) = shell("exec \"$0\" \"$@\" >/dev/full", arguments);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("error: ") && told.contains("No space"), "{told}");
    }
    let (code, told) = shell("exec \"$0\" \"$@\" >&- 2>&-", &line(&folder, "out", "2"));
    assert_eq!(code, Some(0), "{told}");
    assert!(folder.at("out").join(ADAPTER).exists());
}

#[test]
fn a_full_disk_is_told_and_costs_no_checkpoint() {
    let folder = Folder::new();
    let run = "exec \"$0\" \"$@\"";
    // Blocks of 512 bytes; SIGXFSZ ignored makes the write fail instead.
    for blocks in [0, 1, 20, 100] {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let (code, told) = shell(&script, &line(&folder, "full", "2"));
        assert_eq!(code, Some(1), "{blocks}: {told}");
        let last = told.lines().last().unwrap();
        assert!(last.starts_with("error: "), "{blocks}: {told}");
        assert_eq!(last.matches("File too large").count(), 1, "{blocks}: {told}");
        assert!(!folder.at("full").exists(), "{blocks}: {:?}", folder.contents().keys());
    }
    assert_eq!(shell(run, &line(&folder, "out", "2")).0, Some(0));
    let before = fs::read(folder.at("out/checkpoint-2").join(ADAPTER)).unwrap();
    let resumed = [line(&folder, "out", "6"), vec!["--resume".into(), "auto".into()]].concat();
    let (code, told) = shell("trap '' XFSZ; ulimit -f 20; exec \"$0\" \"$@\"", &resumed);
    assert_eq!(code, Some(1), "{told}");
    assert_eq!(fs::read(folder.at("out/checkpoint-2").join(ADAPTER)).unwrap(), before);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_or_refused_by_name() {
    let folder = Folder::new();
    let run = "exec \"$0\" \"$@\"";
    assert_eq!(shell(run, &line(&folder, "whole", "6")).0, Some(0));
    let whole = adapter(&folder, "whole");
    let files = [
        "trainer_state.json",
        "optimizer.safetensors",
        ADAPTER,
        "adapter_config.json",
        "digests.json",
    ];
    for what in ["empty", "cut", "absent", "garbage", "one byte", "folder"] {
        for file in files {
            let copy = format!("{what}-{file}");
            let from = folder.name("whole");
            assert!(
                Command::new("cp")
                    .args(["-r", &from, &folder.name(&copy)])
                    .status()
                    .unwrap()
                    .success()
            );
            damage(what, &folder.at(&copy).join("checkpoint-6").join(file));
            damage(what, &folder.at(&copy).join("checkpoint-4").join(file));
            let named = folder.name(&format!("{copy}/checkpoint-6"));
            let arguments = line(&folder, &copy, "6");
            let (code, told) = shell(run, &[&arguments[..], &["--resume".into(), named]].concat());
            assert_eq!(code, Some(1), "{copy} by name: {told}");
            assert!(told.contains("error: ") && told.contains(file), "{copy}: {told}");
            let auto = [&arguments[..], &["--resume".into(), "auto".into()]].concat();
            let (code, told) = shell(run, &auto);
            assert_eq!(code, Some(0), "{copy} by auto: {told}");
            assert_eq!(told.matches("passed over").count(), 2, "{copy}: {told}");
            assert_eq!(adapter(&folder, &copy), whole, "{copy}");
        }
    }
}

fn damage(what: &str, path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() * 3 / 4;
    match what {
        "empty" => bytes.clear(),
        "cut" => bytes.truncate(middle),
        "garbage" => bytes = vec![0xff; 300],
        "one byte" => bytes[middle] ^= 0x40,
        _ => {
            fs::remove_file(path).unwrap();
            if what == "folder" {
                fs::create_dir(path).unwrap();
            }
            return;
        }
    }
    fs::write(path, bytes).unwrap();
}
