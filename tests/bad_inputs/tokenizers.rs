//! `tokenizer.json` and its companions: damaged, of another model, or made to bring a program down.

use serde_json::{Value, json};

use crate::{Case, Done, Refused, Verdict, battery, case, train};

const TEXT: &str = "{\"text\": \"the cat aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab\"}\n";

/// The model with a changed `tokenizer.json`.
fn changed(name: &str, verdict: Verdict, change: impl Fn(&mut Value) + 'static) -> Case {
    case(name, verdict, move |folder| {
        let model = folder.text_model();
        // The file's own rules for the first token count.
        folder.edit("model/tokenizer_config.json", |config| config["add_bos_token"] = Value::Null);
        folder.edit("model/tokenizer.json", &change);
        train(model, folder.write("data.jsonl", TEXT))
    })
}

fn written(name: &str, bytes: impl AsRef<[u8]> + 'static) -> Case {
    case(name, Refused("tokenizer.json"), move |folder| {
        let model = folder.text_model();
        folder.write("model/tokenizer.json", &bytes);
        train(model, folder.write("data.jsonl", TEXT))
    })
}

#[test]
fn tokenizers_made_to_panic() {
    let refused = Refused("tokenizer.json: ");
    battery(&[
        changed("untouched", Done, |_| {}),
        changed("merge beyond the vocabulary", refused, |t| {
            t["model"]["merges"] = json!([["he", "zzzz"]])
        }),
        changed("merge of one part", refused, |t| t["model"]["merges"] = json!(["he"])),
        changed("empty vocabulary", refused, |t| t["model"]["vocab"] = json!({})),
        changed("id of 2^32 - 6", refused, |t| t["model"]["vocab"]["zz"] = json!(4_294_967_290u32)),
        changed("id beyond 32 bits", refused, |t| t["model"]["vocab"]["zz"] = json!(1u64 << 40)),
        changed("negative id", refused, |t| t["model"]["vocab"]["zz"] = json!(-1)),
        changed("id above the embedding", refused, |t| t["model"]["vocab"]["zz"] = json!(960)),
        changed("two tokens, one id", refused, |t| t["model"]["vocab"]["zz"] = json!(20)),
        changed("template without its token", refused, |t| {
            t["post_processor"]["special_tokens"] = json!({});
        }),
        changed("template token out of range", refused, |t| {
            t["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([70_000]);
        }),
        changed("Strip decoder", Done, |t| {
            t["decoder"] = json!({"type": "Strip", "content": " ", "start": 9, "stop": 9});
        }),
        changed("unknown decoder", refused, |t| t["decoder"] = json!({"type": "Rot13"})),
        changed("unknown model", refused, |t| t["model"]["type"] = json!("Neural")),
        changed("bad map of the normalizer", refused, |t| {
            t["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
        }),
        changed("regex that does not parse", refused, |t| t["pre_tokenizer"] = split("(")),
        changed("regex that backtracks without end", Done, |t| {
            t["pre_tokenizer"] = split("(a|aa)+(?!b)\\1c")
        }),
        changed("padding of 10^9", Done, |t| {
            t["padding"] = json!({
                "strategy": {"Fixed": 1_000_000_000}, "direction": "Left", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"
            });
        }),
        changed("padding to a multiple of 0", Done, |t| {
            t["padding"] = json!({
                "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 0,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"
            });
        }),
        changed("truncation to 4", Done, |t| t["truncation"] = truncation(4, 0)),
        changed("stride above the length", Done, |t| t["truncation"] = truncation(1, 9)),
        changed("added token of no letters", Done, |t| {
            t["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": 5, "content": "", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            }));
        }),
    ]);
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn truncation(length: usize, stride: usize) -> Value {
    json!({"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": stride})
}

#[test]
fn files_that_are_no_tokenizer() {
    battery(&[
        written("empty", ""),
        written("null", "null"),
        written("an object", "{}"),
        written("HTML", "<html>"),
        written(
            "LFS pointer",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        ),
        written("not UTF-8", b"{\"version\": \"\xff\"}"),
        written("nested 100k deep", format!("{{\"model\": {}", "[".repeat(100_000))),
        written(
            "error text with escape codes",
            "{\"version\": \"1.0\", \"model\": {\"type\": \"\\u001b[31m\"}}",
        ),
        case("absent", Refused("tokenizer.json"), |folder| {
            let model = folder.text_model();
            std::fs::remove_file(folder.at("model/tokenizer.json")).unwrap();
            train(model, folder.write("data.jsonl", TEXT))
        }),
        case("only SentencePiece", Refused("tokenizer.model"), |folder| {
            let model = folder.text_model();
            std::fs::rename(folder.at("model/tokenizer.json"), folder.at("model/tokenizer.model"))
                .unwrap();
            train(model, folder.write("data.jsonl", TEXT))
        }),
    ]);
}

#[test]
fn companions_that_are_wrong() {
    let companion = |name: &str, at: &'static str, text: &'static str| {
        case(name, Refused(at), move |folder| {
            let model = folder.text_model();
            folder.write(&format!("model/{at}"), text);
            train(model, folder.write("data.jsonl", TEXT))
        })
    };
    battery(&[
        companion("config an array", "tokenizer_config.json", "[]"),
        companion("config not JSON", "tokenizer_config.json", "{"),
        companion(
            "config with equal keys",
            "tokenizer_config.json",
            "{\"eos_token\": \"</s>\", \"eos_token\": \"<s>\"}",
        ),
        companion("end token a number", "tokenizer_config.json", "{\"eos_token\": 2}"),
        companion("BOS rule a number", "tokenizer_config.json", "{\"add_bos_token\": \"maybe\"}"),
        companion("template a number", "tokenizer_config.json", "{\"chat_template\": 5}"),
        companion("generation config an array", "generation_config.json", "[]"),
        companion("end id of text", "generation_config.json", "{\"eos_token_id\": \"two\"}"),
        companion(
            "end id above the embedding",
            "generation_config.json",
            "{\"eos_token_id\": [2, 99999]}",
        ),
        companion("negative end id", "generation_config.json", "{\"eos_token_id\": -1}"),
    ]);
}
