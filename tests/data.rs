//! Data against references: chat templates against Jinja2, tokenizers against their vectors, real
//! data files, real models.
//!
//! The references lie outside of the repository; without them these tests say so and pass.

use std::path::{Path, PathBuf};

use qlora_train::Error;
use qlora_train::data::{
    ChatTemplate, Conversation, DataReport, Dataset, GenerationPrompt, Moment, Policy, Special,
    Tokenizer, TokenizerFiles, TrainOn, turn_span,
};
use qlora_train::error::Place;
use serde_json::Value;

fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("QLORA_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = root.join("data").join(path);
    if !path.exists() {
        println!("skipped: shared data absent");
        return None;
    }
    Some(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// 2025-01-02 03:04:05, the date with which the references were rendered.
const NOW: i64 = 1_735_787_045;

fn template(folder: &Path, name: &str, inputs: &Value) -> ChatTemplate {
    let path = folder.join(format!("{name}.jinja"));
    let token = |name: &str| (name.to_string(), inputs[name].as_str().unwrap().to_string());
    let tokens = [token("bos_token"), token("eos_token")];
    let source = std::fs::read_to_string(&path).unwrap();
    ChatTemplate::new(&source, Place::file(&path), &tokens, Moment::from_unix(NOW)).unwrap()
}

/// This template runs over the tools also where there are none. Python stops at that ("NoneType is
/// not iterable"), the engine here finds nothing to run over and goes on; eight of the 315 cases.
const LENIENT: &str = "hermes-2-pro-tool-use";

#[test]
fn templates_render_as_in_jinja2() {
    let Some(folder) = shared("templates") else {
        return;
    };
    let inputs = json(&folder.join("conversations.json"));
    let expected = json(&folder.join("expected.json"));
    let (mut same, mut different) = (0, Vec::new());
    for (name, cases) in expected.as_object().unwrap() {
        let template = template(&folder, name, &inputs);
        for (case, want) in cases.as_object().unwrap() {
            if name == LENIENT && case != "tools" {
                continue;
            }
            let (messages, tools, prompt) = conversation(&inputs["conversations"][case]);
            let conversation = Conversation::new(&messages, tools.as_ref());
            let got = template.render(&conversation, prompt);
            let want_text = want["text"].as_str();
            let agree = match (&got, want_text) {
                (Ok(got), Some(text)) => {
                    got.text == text && marks_agree(&got.generation, text, want)
                }
                (Err(_), None) => true,
                _ => false,
            };
            if agree {
                same += 1;
            } else {
                different.push(format!("{name} {case}: {got:?}\n   want {want}"));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{}\n{}",
        different.len(),
        different.join("\n")
    );
    assert_eq!(same, 307);
}

fn marks_agree(got: &[std::ops::Range<usize>], text: &str, want: &Value) -> bool {
    let Some(want) = want["generation"].as_array() else {
        return got.is_empty();
    };
    let got: Vec<&str> = got.iter().map(|range| &text[range.clone()]).collect();
    got == want
        .iter()
        .map(|part| part.as_str().unwrap())
        .collect::<Vec<_>>()
}

fn conversation(case: &Value) -> (Vec<Value>, Option<Value>, GenerationPrompt) {
    let prompt = match case["add_generation_prompt"].as_bool() {
        Some(true) => GenerationPrompt::Add,
        _ => GenerationPrompt::Omit,
    };
    (
        case["messages"].as_array().unwrap().clone(),
        case.get("tools").cloned(),
        prompt,
    )
}

/// The templates that mark answers themselves are the reference for those that do not.
#[test]
fn turns_found_by_comparing_renderings_are_the_marked_ones() {
    let Some(folder) = shared("templates") else {
        return;
    };
    let inputs = json(&folder.join("conversations.json"));
    let mut compared = 0;
    for name in MARKED {
        let template = template(&folder, name, &inputs);
        for (case, input) in inputs["conversations"].as_object().unwrap() {
            let (messages, tools, _) = conversation(input);
            let whole = Conversation::new(&messages, tools.as_ref());
            let Ok(full) = template.render(&whole, GenerationPrompt::Omit) else {
                continue;
            };
            let answers = (0..messages.len()).filter(|&i| messages[i]["role"] == "assistant");
            let span = |i| turn_span(&template, &messages, tools.as_ref(), &full.text, i);
            let found: String = answers
                .filter_map(span)
                .map(|span| &full.text[span])
                .collect();
            let header = match name {
                "qwen2_5_training" => "\n",
                "smollm3" => "<|im_start|>assistant\n",
                _ => "",
            };
            let part = |span: &std::ops::Range<usize>| {
                full.text[span.clone()]
                    .strip_prefix(header)
                    .unwrap()
                    .to_string()
            };
            let marked: String = full.generation.iter().map(part).collect();
            // Phi-3's template shows no tool calls; its mark holds an end token without an answer.
            let marked = match (name, case.as_str()) {
                ("phi3_training", "tools") => marked.replacen("<|end|>\n", "", 1),
                _ => marked,
            };
            assert_eq!(found, marked, "{name} {case}");
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

const MARKED: [&str; 8] = [
    "axolotl-phi_4",
    "gemma3_training",
    "glm4moe_training",
    "llama3_training",
    "phi3_training",
    "qwen2_5_training",
    "qwen3_training",
    "smollm3",
];

#[test]
fn answers_are_found_where_a_template_rewrites_earlier_turns() {
    let Some(folder) = shared("templates") else {
        return;
    };
    let inputs = json(&folder.join("conversations.json"));
    let (thinking, _, _) = conversation(&inputs["conversations"]["thinking"]);
    let (multi, _, _) = conversation(&inputs["conversations"]["multi"]);
    let joke = "Why did the sail blush? It saw the ocean's bottom.";
    let end = "<｜end▁of▁sentence｜>";
    let cases = [
        (
            "qwen3",
            &thinking,
            vec![
                "4<|im_end|>\n".to_string(),
                "<think>\nThree and three.\n</think>\n\n6<|im_end|>\n".to_string(),
            ],
        ),
        (
            "deepseekv3",
            &thinking,
            vec![format!("\n\n4{end}"), format!("\n\n6{end}")],
        ),
        (
            "deepseekv3",
            &multi,
            vec![format!("Hello there.{end}"), format!("{joke}{end}")],
        ),
        (
            "mistral-nemo-2407",
            &multi,
            vec!["Hello there.</s>".into(), format!("{joke}</s>")],
        ),
        (
            "phi-3.5-mini",
            &multi,
            vec![
                "Hello there.<|end|>\n".into(),
                format!("{joke}<|end|>\n</s>"),
            ],
        ),
        (
            "llama-2-chat",
            &multi,
            vec![" Hello there. </s>".into(), format!(" {joke} </s>")],
        ),
    ];
    for (name, messages, want) in cases {
        let template = template(&folder, name, &inputs);
        let whole = Conversation::new(messages, None);
        let full = template
            .render(&whole, GenerationPrompt::Omit)
            .unwrap()
            .text;
        let answers = (0..messages.len()).filter(|&i| messages[i]["role"] == "assistant");
        let spans = answers.map(|i| turn_span(&template, messages, None, &full, i).unwrap());
        let found: Vec<_> = spans.map(|span| full[span].to_string()).collect();
        assert_eq!(found, want, "{name}");
    }
}

fn load(folder: &Path, vocab_size: usize) -> Tokenizer {
    let files = TokenizerFiles::in_folder(folder);
    Tokenizer::load(&files, vocab_size, Moment::from_unix(NOW)).unwrap()
}

#[test]
fn real_tokenizers_give_the_ids_of_their_vectors() {
    let Some(folder) = shared("tokenizers") else {
        return;
    };
    for (name, vocab_size, vectors) in [
        ("phi-3-mini", 32_064, "phi-3"),
        ("phi-3-mini", 32_064, "llama-spm"),
        ("qwen2.5", 151_936, "qwen2"),
        ("gpt2", 50_257, "gpt-2"),
    ] {
        let tokenizer = load(&folder.join(name), vocab_size);
        let read =
            |end| std::fs::read_to_string(folder.join(format!("vectors/{vectors}.{end}"))).unwrap();
        let (texts, ids) = (read("inp"), read("out"));
        let texts: Vec<_> = texts.split("\n__ggml_vocab_test__\n").collect();
        let mut compared = 0;
        for (text, ids) in texts.iter().zip(ids.lines()) {
            let want: Vec<u32> = ids
                .split_whitespace()
                .map(|id| id.parse().unwrap())
                .collect();
            let encoded = tokenizer.encode(text, Special::None).unwrap();
            assert_eq!(encoded.ids, want, "{name}: {text:?}");
            assert!(encoded.bytes.iter().all(|range| range.end <= text.len()));
            check_stream(&tokenizer, &encoded.ids);
            compared += 1;
        }
        assert!(compared >= 46, "{compared}");
    }
}

fn check_stream(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut stream = tokenizer.stream(&[]).unwrap();
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(id).unwrap();
    }
    text += &stream.finish().unwrap();
    assert_eq!(text, tokenizer.decode(ids).unwrap());
}

fn policy(vocab_size: usize, seq_len: usize) -> Policy {
    Policy {
        seq_len,
        vocab_size,
        train_on: TrainOn::Completion,
    }
}

#[test]
fn a_model_whose_begin_and_end_are_one_token_learns_to_stop() {
    let Some(model) = shared("models/stories260k") else {
        return;
    };
    let tokenizer = load(&model, 512);
    assert_eq!((tokenizer.begin(), tokenizer.end()), (&[1][..], Some(1)));
    let cards = shared("demo/cards_train.jsonl").unwrap();
    let data = Dataset::load(&[cards], Some(&tokenizer), &policy(512, 512)).unwrap();
    assert_eq!(data.report.examples, 3000);
    assert_eq!(data.report.end_token_supervised, 3000);
    assert_eq!(data.report.split_borders, 0);
    let example = &data.examples[0];
    let prompt = "Sunny is a green cow. Make a card.";
    let prompt = tokenizer.encode(prompt, Special::Add).unwrap().ids;
    assert_eq!(example.tokens[..prompt.len()], prompt);
    assert_eq!((example.tokens[0], example.tokens.last()), (1, Some(&1)));
    assert_eq!(
        example.supervised.iter().filter(|&&s| !s).count(),
        prompt.len()
    );
    assert_eq!(example.supervised.last(), Some(&true));
    let answer: Vec<u32> = example.tokens[prompt.len()..example.tokens.len() - 1].to_vec();
    let mut stream = tokenizer.stream(&prompt).unwrap();
    let answer: String = answer.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(
        answer,
        " Name: Sunny; Animal: cow; Color: green; Says: Moo!"
    );
}

/// The reference's prompts and their ids, which begin with the begin token.
#[test]
fn real_models_see_the_reference_ids() {
    let Some(models) = shared("models") else {
        return;
    };
    for (name, vocab_size) in [("stories260k", 512), ("babyllama-105", 105)] {
        let tokenizer = load(&models.join(name), vocab_size);
        let reference = json(&models.join(name).join("reference.json"));
        let prompts = reference["prompts"].as_array().expect("prompts");
        for prompt in prompts {
            let (text, ids) = (prompt["text"].as_str().unwrap(), &prompt["ids"]);
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            assert_eq!(
                tokenizer.encode(text, Special::Add).unwrap().ids,
                ids,
                "{text}"
            );
        }
    }
}
