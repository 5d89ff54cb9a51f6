//! Chat templates against Jinja2's renderings, and answers against the templates that mark them.

use std::path::Path;

use qlora_train::data::{ChatTemplate, Conversation, GenerationPrompt, Moment, turn_span};
use qlora_train::error::Place;
use serde_json::Value;

use super::{NOW, read_json, shared};

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
    let inputs = read_json(&folder.join("conversations.json"));
    let expected = read_json(&folder.join("expected.json"));
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
    assert!(different.is_empty(), "{}\n{}", different.len(), different.join("\n"));
    assert_eq!(same, 307);
}

fn marks_agree(got: &[std::ops::Range<usize>], text: &str, want: &Value) -> bool {
    let Some(want) = want["generation"].as_array() else {
        return got.is_empty();
    };
    let got: Vec<&str> = got.iter().map(|range| &text[range.clone()]).collect();
    got == want.iter().map(|part| part.as_str().unwrap()).collect::<Vec<_>>()
}

fn conversation(case: &Value) -> (Vec<Value>, Option<Value>, GenerationPrompt) {
    let prompt = match case["add_generation_prompt"].as_bool() {
        Some(true) => GenerationPrompt::Add,
        _ => GenerationPrompt::Omit,
    };
    (case["messages"].as_array().unwrap().clone(), case.get("tools").cloned(), prompt)
}

/// The templates that mark answers themselves are the reference for those that do not.
#[test]
fn turns_found_by_comparing_renderings_are_the_marked_ones() {
    let Some(folder) = shared("templates") else {
        return;
    };
    let inputs = read_json(&folder.join("conversations.json"));
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
            let found: String = answers.filter_map(span).map(|span| &full.text[span]).collect();
            let header = match name {
                "qwen2_5_training" => "\n",
                "smollm3" => "<|im_start|>assistant\n",
                _ => "",
            };
            let part = |span: &std::ops::Range<usize>| {
                full.text[span.clone()].strip_prefix(header).unwrap().to_string()
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
    let inputs = read_json(&folder.join("conversations.json"));
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
        ("deepseekv3", &thinking, vec![format!("\n\n4{end}"), format!("\n\n6{end}")]),
        ("deepseekv3", &multi, vec![format!("Hello there.{end}"), format!("{joke}{end}")]),
        ("mistral-nemo-2407", &multi, vec!["Hello there.</s>".into(), format!("{joke}</s>")]),
        (
            "phi-3.5-mini",
            &multi,
            vec!["Hello there.<|end|>\n".into(), format!("{joke}<|end|>\n</s>")],
        ),
        ("llama-2-chat", &multi, vec![" Hello there. </s>".into(), format!(" {joke} </s>")]),
    ];
    for (name, messages, want) in cases {
        let template = template(&folder, name, &inputs);
        let whole = Conversation::new(messages, None);
        let full = template.render(&whole, GenerationPrompt::Omit).unwrap().text;
        let answers = (0..messages.len()).filter(|&i| messages[i]["role"] == "assistant");
        let spans = answers.map(|i| turn_span(&template, messages, None, &full, i).unwrap());
        let found: Vec<_> = spans.map(|span| full[span].to_string()).collect();
        assert_eq!(found, want, "{name}");
    }
}
