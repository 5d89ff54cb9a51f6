//! Flags out of range and of wrong type, settings files, and commands on what they cannot use.

use crate::{
    CHAT, Case, Done, IDS, Refused, Usage, Verdict, battery, case, ids_model, text, text_model,
    train, words,
};

fn flag(flag: &'static str, value: &'static str) -> Case {
    case(format!("{flag} {value}"), Usage(flag), move |folder| {
        let mut line = train(text(ids_model()), folder.write("data.jsonl", IDS));
        line.retain(|word| word != flag);
        line.truncate(2);
        line.push(format!("{flag}={value}"));
        line
    })
}

#[test]
fn numbers_out_of_range() {
    let counts = [
        "--lora-r",
        "--max-steps",
        "--batch-size",
        "--grad-accum",
        "--seq-len",
        "--eval-steps",
        "--save-steps",
        "--keep-checkpoints",
        "--threads",
    ];
    let reals =
        ["--lora-alpha", "--epochs", "--learning-rate", "--max-grad-norm", "--adam-epsilon"];
    let wrong_counts = ["0", "-1", "1.5", "x", "", "18446744073709551616", "1e3"];
    let wrong_reals = ["0", "-1", "x", "", "nan", "inf", "1e999"];
    let shares = ["--lora-dropout", "--adam-beta1", "--adam-beta2"];
    let wrong_shares = ["1", "-0.1", "x", "", "nan"];
    let mut cases = Vec::new();
    for (flags, values) in
        [(&counts[..], &wrong_counts[..]), (&reals, &wrong_reals), (&shares, &wrong_shares)]
    {
        cases.extend(flags.iter().flat_map(|name| values.iter().map(|value| flag(name, value))));
    }
    battery(&cases);
}

#[test]
fn words_that_mean_nothing() {
    battery(&[
        flag("--warmup-steps", "-1"),
        flag("--weight-decay", "-1"),
        flag("--seed", "1.5"),
        flag("--optimizer", "sgd"),
        flag("--lr-scheduler", "step"),
        flag("--quantization", "int8"),
        flag("--method", "full"),
        flag("--dtype", "f16"),
        flag("--device", "cuda:x"),
        flag("--device", "\u{1b}[31m"),
        flag("--train-on", "prompt"),
        flag("--memory-budget", "-1GiB"),
        flag("--memory-budget", "99999999999999999999GiB"),
        flag("--memory-budget", "nanGiB"),
        flag("--date", "2024-02-30"),
        flag("--target-modules", ""),
        flag("--packing", "yes"),
        flag("--learning_rate", "1"),
    ]);
}

/// A command with these words behind it; `IDS` and `TEXT` stand for models, `DATA` for records.
fn command(name: &str, verdict: Verdict, line: &'static [&'static str]) -> Case {
    case(name, verdict, move |folder| {
        folder.write("file.jsonl", CHAT);
        let word = |word: &&str| match *word {
            "IDS" => text(ids_model()),
            "TEXT" => text(text_model()),
            "DATA" => folder.write("data.jsonl", IDS),
            "CHAT" => folder.write("chat.jsonl", CHAT),
            "FILE" => folder.name("file.jsonl"),
            "UNDER" => folder.name("file.jsonl/out"),
            other => other.to_owned(),
        };
        line.iter().map(word).collect()
    })
}

#[test]
fn commands_on_what_they_cannot_use() {
    battery(&[
        command("output a file", Refused("file.jsonl"), &["IDS", "DATA", "--output-dir", "FILE"]),
        command(
            "output under a file",
            Refused("file.jsonl"),
            &["IDS", "DATA", "--output-dir", "UNDER"],
        ),
        command(
            "output nowhere",
            Refused("/proc/none"),
            &["IDS", "DATA", "--output-dir", "/proc/none"],
        ),
        command("output of no name", Usage("--output-dir"), &["IDS", "DATA", "--output-dir", ""]),
        command(
            "quantize to a file",
            Refused("file.jsonl"),
            &["quantize", "IDS", "--output", "FILE"],
        ),
        command(
            "quantize nowhere",
            Refused("/proc/none"),
            &["quantize", "IDS", "--output", "/proc/none"],
        ),
        command("quantize data", Refused("data.jsonl"), &["quantize", "DATA", "--output", "q"]),
        command(
            "merge without adapter",
            Refused("adapter"),
            &["merge", "IDS", "--adapter", "IDS", "--output", "m"],
        ),
        command(
            "merge with a file",
            Refused("data.jsonl"),
            &["merge", "IDS", "--adapter", "DATA", "--output", "m"],
        ),
        command("resume from nothing", Refused("absent"), &["IDS", "DATA", "--resume", "absent"]),
        command("resume from a file", Refused("file.jsonl"), &["IDS", "DATA", "--resume", "FILE"]),
        command(
            "init from nothing",
            Refused("absent"),
            &["IDS", "DATA", "--init-adapter", "absent"],
        ),
        command(
            "eval data absent",
            Refused("absent.jsonl"),
            &["IDS", "DATA", "--eval-data", "absent.jsonl"],
        ),
        command(
            "budget too small",
            Refused("--memory-budget"),
            &["IDS", "DATA", "--memory-budget", "1MiB"],
        ),
        command(
            "plan, budget too small",
            Done,
            &["plan", "IDS", "DATA", "--memory-budget", "1MiB"],
        ),
        command("row of 10^7", Done, &["IDS", "DATA", "--seq-len", "10000000"]),
        command("plan of a huge batch", Done, &["plan", "IDS", "DATA", "--batch-size", "65536"]),
        command(
            "huge batch",
            Done,
            &[
                "IDS",
                "DATA",
                "--batch-size",
                "65536",
                "--seq-len",
                "256",
                "--memory-budget",
                "64MiB",
            ],
        ),
        command("eval without a tokenizer", Refused("tokenizer"), &["eval", "IDS", "CHAT"]),
        command("inspect without a tokenizer", Refused("tokenizer"), &["inspect", "IDS", "CHAT"]),
        command(
            "inspect no records",
            Usage("--records"),
            &["inspect", "IDS", "DATA", "--records", "x"],
        ),
        command(
            "messages absent",
            Refused("absent.json"),
            &["generate", "TEXT", "--messages", "absent.json"],
        ),
        command(
            "messages of token ids",
            Refused("data.jsonl"),
            &["generate", "TEXT", "--messages", "DATA"],
        ),
        command(
            "prompt of nothing",
            Done,
            &["generate", "TEXT", "--prompt", "", "--max-new-tokens", "1"],
        ),
        command(
            "prompt ids of nothing",
            Usage("--prompt-ids"),
            &["generate", "IDS", "--prompt-ids", ""],
        ),
        command("prompt ids negative", Usage("-1"), &["generate", "IDS", "--prompt-ids=-1"]),
        command(
            "temperature negative",
            Usage("--temperature"),
            &["generate", "IDS", "--prompt-ids", "1", "--temperature=-1"],
        ),
        command(
            "temperature tiny",
            Done,
            &[
                "generate",
                "IDS",
                "--prompt-ids",
                "1",
                "--temperature",
                "1e-300",
                "--max-new-tokens",
                "2",
            ],
        ),
        command(
            "temperature huge",
            Done,
            &[
                "generate",
                "IDS",
                "--prompt-ids",
                "1",
                "--temperature",
                "1e300",
                "--max-new-tokens",
                "2",
            ],
        ),
        command(
            "top-p of 0",
            Usage("--top-p"),
            &["generate", "IDS", "--prompt-ids", "1", "--top-p", "0"],
        ),
        command(
            "more tokens than the model has room for",
            Done,
            &["generate", "IDS", "--prompt-ids", "1", "--max-new-tokens", "16000000"],
        ),
        command(
            "a device that is not there",
            Refused("--device"),
            &["IDS", "DATA", "--device", "cuda:7"],
        ),
        command(
            "a method for all but one map",
            Refused("--target-modules"),
            &["IDS", "DATA", "--target-modules", "q_proj,\u{1b}[1m"],
        ),
    ]);
}

/// A settings file of these bytes.
fn settings(name: &str, fragment: &'static str, bytes: impl AsRef<[u8]> + 'static) -> Case {
    case(name, Refused(fragment), move |folder| {
        let file = folder.write("a.toml", &bytes);
        [train(text(ids_model()), folder.write("data.jsonl", IDS)), vec!["--config".into(), file]]
            .concat()
    })
}

#[test]
fn settings_files_that_are_wrong() {
    battery(&[
        settings("not UTF-8", "a.toml", b"a = \"\xff\""),
        settings("UTF-16", "a.toml", b"\xff\xfea\0"),
        settings("not TOML", "a.toml: line 1", "{\"lora_r\": 4}"),
        settings("nested 100k deep", "a.toml", format!("a = {}", "[".repeat(100_000))),
        settings("tables nested 100k deep", "a.toml", format!("[a{}]\n", ".a".repeat(100_000))),
        settings("kebab-case", "a.toml: field weight-decays", "weight-decays = 4"),
        settings("escape codes", "a.toml", "\"\\u001b[31m\" = 1"),
        settings("a list for a number", "a.toml: field seed", "seed = [4]"),
        settings("a date", "a.toml: field date", "date = 2024-01-01T00:00:00Z"),
        settings("a table", "a.toml: field seed", "[seed]\nx = 1"),
        settings("beyond 64 bits", "a.toml", "lora_r = 99999999999999999999"),
        settings("infinity", "a.toml: field learning_rate", "learning_rate = inf"),
        settings("100 MB", "a.toml", format!("a = \"{}\"", "x".repeat(100 << 20))),
        case("absent", Refused("absent.toml"), |_| words(["--config", "absent.toml"])),
        case("a folder", Refused("error: "), |folder| vec!["--config".into(), folder.name("")]),
        case("a device", Refused("/dev/zero"), |_| words(["--config", "/dev/zero"])),
        case("twice", Refused("b.toml"), |_| words(["--config", "a.toml", "--config", "b.toml"])),
        case("without a value", Usage("--config"), |_| words(["--config"])),
    ]);
}
