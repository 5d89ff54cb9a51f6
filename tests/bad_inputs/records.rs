//! Data: encodings, lines, shapes, labels.

use crate::{
    CHAT, Case, Done, IDS, Refused, Verdict, battery, case, ids_model, text, text_model, train,
};

/// Records for the model without tokenizer.
fn ids(name: &str, verdict: Verdict, bytes: impl AsRef<[u8]> + 'static) -> Case {
    file(name, "data.jsonl", verdict, bytes)
}

fn file(name: &str, at: &'static str, verdict: Verdict, bytes: impl AsRef<[u8]> + 'static) -> Case {
    case(name, verdict, move |folder| train(text(ids_model()), folder.write(at, bytes.as_ref())))
}

/// Records for the model with tokenizer and chat template.
fn texts(name: &str, verdict: Verdict, bytes: impl AsRef<[u8]> + 'static) -> Case {
    texts_in(name, "data.jsonl", verdict, bytes)
}

fn texts_in(
    name: &str,
    at: &'static str,
    verdict: Verdict,
    bytes: impl AsRef<[u8]> + 'static,
) -> Case {
    case(name, verdict, move |folder| train(text(text_model()), folder.write(at, bytes.as_ref())))
}

fn utf16(text: &str) -> Vec<u8> {
    [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

#[test]
fn good_data_in_odd_clothes() {
    battery(&[
        ids("plain", Done, IDS),
        ids("byte order mark", Done, format!("\u{feff}{IDS}")),
        ids("Windows line ends", Done, IDS.replace('\n', "\r\n")),
        ids("no last line end", Done, IDS.trim_end()),
        ids("blank lines", Done, format!("\n\n{IDS}\n  \n")),
        file("array", "data.json", Done, "[{\"input_ids\": [1, 2, 3]}]"),
        texts("text", Done, "{\"text\": \"a cat\"}\n"),
        texts("emoji", Done, "{\"text\": \"\u{1f980} \u{1f468}\u{200d}\u{1f469}\"}\n"),
        texts("escaped pair", Done, "{\"text\": \"\\ud83e\\udd80\"}\n"),
        texts("NUL", Done, "{\"text\": \"a\\u0000b\"}\n"),
        texts("chat", Done, CHAT),
        texts("pairs", Done, "{\"prompt\": \"a\", \"completion\": \"b\"}\n"),
        texts(
            "instruction",
            Done,
            "{\"instruction\": \"a\", \"input\": \"\", \"output\": \"b\"}\n",
        ),
        texts(
            "ShareGPT",
            Done,
            "{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}]}\n",
        ),
        texts("mixed shapes", Done, format!("{CHAT}{{\"text\": \"a\"}}\n")),
        texts_in("text file", "data.txt", Done, "a cat\n\na dog\n"),
    ]);
}

#[test]
fn bytes_that_are_no_records() {
    let line_2 =
        |line: &[u8]| [IDS.lines().next().unwrap().as_bytes(), b"\n", line, b"\n"].concat();
    battery(&[
        ids("empty", Refused("data.jsonl: "), ""),
        ids("blank lines only", Refused("data.jsonl: "), "\n \n\t\n"),
        ids("a byte order mark only", Refused("data.jsonl: "), "\u{feff}"),
        ids("UTF-16", Refused("UTF-16"), utf16(IDS)),
        ids("not UTF-8", Refused("line 2"), line_2(b"{\"text\": \"\xff\"}")),
        ids("unfinished", Refused("line 2"), line_2(b"{\"input_ids\": [1,")),
        ids(
            "two on a line",
            Refused("line 2"),
            line_2(b"{\"input_ids\": [1, 2]} {\"input_ids\": [1, 2]}"),
        ),
        ids("an array", Refused("line 2"), line_2(b"[1, 2]")),
        ids("null", Refused("line 2"), line_2(b"null")),
        ids("a number", Refused("line 2"), line_2(b"7")),
        ids("a string", Refused("line 2"), line_2(b"\"text\"")),
        ids("NaN", Refused("line 2"), line_2(b"{\"input_ids\": [NaN, 1]}")),
        ids("Python quotes", Refused("line 2"), line_2(b"{'input_ids': [1, 2]}")),
        ids("a comment", Refused("line 2"), line_2(b"// {}")),
        ids("nested 100k deep", Refused("line 2"), line_2("[".repeat(100_000).as_bytes())),
        ids(
            "nested 100k deep in a field",
            Refused("line 2"),
            line_2(format!("{{\"x\": {}", "{\"a\":".repeat(100_000)).as_bytes()),
        ),
        ids(
            "a number of 400 digits elsewhere",
            Refused("line 1"),
            format!("{{\"id\": {}, \"input_ids\": [1, 2]}}\n", "9".repeat(400)),
        ),
        ids("NULs", Refused("binary"), vec![0; 4096]),
        ids("one line of 50 MB without an end", Refused("line 1"), "x".repeat(50 << 20)),
        ids("gzip", Refused("data.jsonl"), b"\x1f\x8b\x08\0\0\0\0\0"),
        texts("lone surrogate", Refused("line 1"), "{\"text\": \"\\ud800\"}\n"),
        texts("raw line end in a string", Refused("line 1"), "{\"text\": \"a\nb\"}\n"),
        file("object for an array", "data.json", Refused("data.json"), "{\"input_ids\": [1, 2]}"),
        file("empty array", "data.json", Refused("data.json"), "[]"),
        file("array of numbers", "data.json", Refused("data.json"), "[1, 2]"),
        file("unfinished array", "data.json", Refused("data.json"), "[{\"input_ids\": [1, 2]},"),
        file(
            "more after the array",
            "data.json",
            Refused("data.json"),
            "[{\"input_ids\": [1, 2]}] x",
        ),
        file("lines for an array", "data.json", Refused("data.json"), IDS),
        texts_in("empty text", "data.txt", Refused("data.txt"), ""),
        texts_in("text not UTF-8", "data.txt", Refused("data.txt"), b"a\n\xff\xfe\xfd"),
    ]);
}

#[test]
fn token_ids_that_cannot_be() {
    let record = |name: &str, fragment: &'static str, record: &'static str| {
        ids(name, Refused(fragment), record)
    };
    let labels = "line 1: field labels";
    let tokens = "line 1: field input_ids";
    battery(&[
        record("beyond the vocabulary", tokens, "{\"input_ids\": [1, 80]}"),
        record("negative", tokens, "{\"input_ids\": [1, -1]}"),
        record("beyond 32 bits", tokens, "{\"input_ids\": [1, 4294967297]}"),
        record("beyond 64 bits", "line 1", "{\"input_ids\": [1, 99999999999999999999]}"),
        record("fractions", tokens, "{\"input_ids\": [1.5, 2]}"),
        record("strings", tokens, "{\"input_ids\": [\"1\", 2]}"),
        record("nested", tokens, "{\"input_ids\": [[1, 2]]}"),
        record("null", tokens, "{\"input_ids\": null}"),
        record("an object", tokens, "{\"input_ids\": {\"0\": 1}}"),
        record("none", "line 1", "{\"input_ids\": []}"),
        record("shorter labels", labels, "{\"input_ids\": [1, 2, 3], \"labels\": [1, 2]}"),
        record("longer labels", labels, "{\"input_ids\": [1, 2], \"labels\": [1, 2, 3]}"),
        record(
            "labels that are other tokens",
            labels,
            "{\"input_ids\": [1, 2, 3], \"labels\": [1, 9, 3]}",
        ),
        record("labels below -100", labels, "{\"input_ids\": [1, 2], \"labels\": [1, -101]}"),
        record("labels of text", labels, "{\"input_ids\": [1, 2], \"labels\": \"all\"}"),
        record("labels with null", labels, "{\"input_ids\": [1, 2], \"labels\": [1, null]}"),
        record(
            "nothing supervised",
            "teaches nothing",
            "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}",
        ),
        record(
            "only the first supervised",
            "teaches nothing",
            "{\"input_ids\": [1, 2], \"labels\": [1, -100]}",
        ),
        record("equal keys", "line 1", "{\"input_ids\": [1, 2], \"input_ids\": [3, 4]}"),
    ]);
}

#[test]
fn records_of_wrong_shape() {
    let record = |name: &str, fragment: &'static str, record: &'static str| {
        texts(name, Refused(fragment), record)
    };
    battery(&[
        record("no known key", "line 1", "{\"content\": \"a\"}"),
        record("no keys", "line 1", "{}"),
        record("key in capitals", "line 1", "{\"Text\": \"a\"}"),
        record("text null", "line 1: field text", "{\"text\": null}"),
        record("text a number", "line 1: field text", "{\"text\": 5}"),
        record("text a list", "line 1: field text", "{\"text\": [\"a\"]}"),
        record("text twice", "line 1", "{\"text\": \"a\", \"text\": \"b\"}"),
        record("no completion", "line 1", "{\"prompt\": \"a\"}"),
        record(
            "completion null",
            "line 1: field completion",
            "{\"prompt\": \"a\", \"completion\": null}",
        ),
        record("no output", "line 1", "{\"instruction\": \"a\"}"),
        record(
            "output a number",
            "line 1: field output",
            "{\"instruction\": \"a\", \"output\": 1}",
        ),
        record("no messages", "line 1: field messages", "{\"messages\": []}"),
        record("messages null", "line 1: field messages", "{\"messages\": null}"),
        record("messages a string", "line 1: field messages", "{\"messages\": \"hi\"}"),
        record("a message a string", "line 1: field messages[0]", "{\"messages\": [\"hi\"]}"),
        record("no role", "line 1: field messages[0]", "{\"messages\": [{\"content\": \"a\"}]}"),
        record(
            "no content",
            "line 1: field messages[1]",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\"}]}",
        ),
        record(
            "role a number",
            "line 1: field messages[0].role",
            "{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}",
        ),
        record(
            "content null",
            "line 1: field messages[1].content",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": null}]}",
        ),
        record(
            "no assistant",
            "line 1",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
        ),
        record(
            "unknown speaker",
            "line 1: field conversations[0]",
            "{\"conversations\": [{\"from\": \"\\u001b[1malien\", \"value\": \"a\"}]}",
        ),
        record(
            "value null",
            "line 1: field conversations[1]",
            "{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": null}]}",
        ),
        record(
            "history of strings",
            "line 1: field history",
            "{\"instruction\": \"a\", \"output\": \"b\", \"history\": [\"a\", \"b\"]}",
        ),
    ]);
}

#[test]
fn lengths_that_cut_everything() {
    let cut = |name: &str, verdict, data: String, length: &'static str| {
        case(name, verdict, move |folder| {
            let mut line = train(text(text_model()), folder.write("data.jsonl", &data));
            line.extend(["--seq-len".to_owned(), length.to_owned()]);
            line
        })
    };
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"b\"}}\n", "a cat ".repeat(500));
    battery(&[
        cut("prompt fills the row", Refused("--seq-len"), long.clone(), "64"),
        cut(
            "one of two",
            Done,
            format!("{long}{{\"prompt\": \"a\", \"completion\": \"b\"}}\n"),
            "64",
        ),
        cut("longer than the model", Done, CHAT.into(), "100000"),
        cut("long text", Done, format!("{{\"text\": \"{}\"}}\n", "a cat ".repeat(5000)), "64"),
    ]);
}
