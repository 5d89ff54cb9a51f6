//! Small records and a small tokenizer: which tokens are targets.

use qlora_train::data::{Dataset, Special};
use serde_json::json;

use super::{CHATML, TINY_VOCAB, Tiny, policy};

#[test]
fn a_text_is_taught_to_its_end_but_not_its_begin() {
    assert_eq!(Tiny::new().add_bos().show(r#"{"text": "hey"}"#), "<s>[hey</s>]");
    assert_eq!(Tiny::new().show(r#"{"text": "hey"}"#), "h[ey</s>]");
    assert_eq!(Tiny::new().show(r#"{"text": "hey</s>"}"#), "h[ey</s>]");
    assert_eq!(Tiny::new().add_bos().show(r#"{"text": "<s>hey"}"#), "<s>[hey</s>]");
    let set = |on: bool| Tiny::new().add_bos().config("add_bos_token", on.into());
    assert_eq!(set(false).show(r#"{"text": "hey"}"#), "h[ey</s>]");
    assert_eq!(set(true).show(r#"{"text": "hey"}"#), "<s>[hey</s>]");
}

#[test]
fn masks_go_by_position_where_padding_or_begin_is_the_end_token() {
    let line = r#"{"prompt": "q</s>", "completion": " a"}"#;
    let pad = Tiny::new().add_bos().config("pad_token", "</s>".into());
    assert_eq!(pad.show(line), "<s>q</s>[ a</s>]");
    let bos = Tiny::new().add_bos().config("eos_token", "<s>".into());
    assert_eq!(bos.show(line), "<s>q</s>[ a<s>]");
}

#[test]
fn the_prompts_own_ids_stand_where_a_token_would_straddle_the_border() {
    let tiny = Tiny::new().add_bos();
    assert_eq!(tiny.show(r#"{"prompt": "x: ", "completion": "4b"}"#), "<s>x: [4b</s>]");
    assert_eq!(tiny.show(r#"{"prompt": "x:", "completion": " 4"}"#), "<s>x:[ 4</s>]");
    assert_eq!(tiny.show(r#"{"prompt": "xa", "completion": "bab"}"#), "<s>xa[bab</s>]");
    let lines =
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\", \"completion\": \"c\"}";
    let data = tiny.data(lines, &policy(TINY_VOCAB, 64)).unwrap();
    assert_eq!(data.report.split_borders, 1);
    assert_eq!(tiny.load().unwrap().encode("ab", Special::None).unwrap().ids.len(), 1);
}

#[test]
fn a_chat_has_one_begin_token_whoever_writes_it() {
    let line = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    let chat = "<|user|>q</s><|assistant|>[a</s>]";
    let with_bos = format!("{{{{ bos_token }}}}{CHATML}");
    for (template, tiny, want) in [
        (CHATML, Tiny::new(), chat.to_string()),
        (CHATML, Tiny::new().add_bos(), format!("<s>{chat}")),
        (&with_bos, Tiny::new(), format!("<s>{chat}")),
        (&with_bos, Tiny::new().add_bos(), format!("<s>{chat}")),
    ] {
        assert_eq!(tiny.config("chat_template", template.into()).show(line), want);
    }
}

#[test]
fn only_the_turns_that_are_to_be_taught_are_targets() {
    let line = r#"{"messages": [{"role": "user", "content": "q"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "r"}, {"role": "assistant", "content": "a"}]}"#
        .replace('\n', "");
    let want = "<|user|>q</s><|assistant|>no</s><|user|>r</s><|assistant|>[a</s>]";
    let listed =
        json!([{"name": "other", "template": ""}, {"name": "default", "template": CHATML}]);
    assert_eq!(Tiny::new().config("chat_template", listed).show(&line), want);
    let marked = CHATML.replace("{{ m.content }}</s>", "{% if m.role == 'assistant' %}\
        {% generation %}{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}");
    assert_eq!(Tiny::new().config("chat_template", marked.into()).show(&line), want);
    let lists = r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#;
    let tiny = Tiny::new().config("chat_template", CHATML.into());
    assert_eq!(tiny.show(lists), "<|user|>q</s><|assistant|>[a</s>]");
    let alpaca = r#"{"instruction": "q", "input": "r", "output": "a", "history": [["s", "t"]]}"#;
    let want = "<|user|>s</s><|assistant|>t</s><|user|>q\nr</s><|assistant|>[a</s>]";
    assert_eq!(tiny.show(alpaca), want);
}

#[test]
fn instructions_use_the_alpaca_prompt_without_a_template() {
    let shown = Tiny::new().show(r#"{"instruction": "q", "input": "r", "output": "a"}"#);
    assert!(shown.starts_with("Below is an instruction that describes a task, paired"));
    assert!(shown.ends_with("\n\n### Instruction:\nq\n\n### Input:\nr\n\n### Response:\n[a</s>]"));
}

#[test]
fn a_template_that_hides_tool_calls_is_refused() {
    let line = r#"{"conversations": [{"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}]}"#
        .replace('\n', "");
    let tiny = Tiny::new().config("chat_template", CHATML.into());
    let error = tiny.data(&line, &policy(TINY_VOCAB, 64)).unwrap_err().to_string();
    assert!(error.contains("line 1: field messages[1].tool_calls"), "{error}");
}

#[test]
fn what_cutting_loses_is_counted_and_named() {
    let tiny = Tiny::new();
    let lines = "{\"prompt\": \"123456789\", \"completion\": \"0\"}\n\n{\"text\": \"12345678\"}\n\
                 {\"prompt\": \"1\", \"completion\": \"2\"}";
    let report = tiny.data(lines, &policy(TINY_VOCAB, 8)).unwrap().report;
    assert_eq!((report.records, report.examples), (3, 2));
    assert_eq!((report.tokens, report.supervised_tokens), (8 + 3, 7 + 2));
    assert_eq!((report.cut.len(), report.cut_tokens), (2, 3 + 1));
    assert_eq!(report.end_token_supervised, 1);
    assert!(report.dropped[0].0.to_string().ends_with("data.jsonl: line 1"));
    let error = tiny.data(lines.lines().next().unwrap(), &policy(TINY_VOCAB, 8)).unwrap_err();
    assert!(error.to_string().contains("--seq-len"), "{error}");
}

#[test]
fn ids_need_no_tokenizer_and_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let load = |line: &str| {
        std::fs::write(&path, line).unwrap();
        Dataset::load(std::slice::from_ref(&path), None, &policy(10, 8))
    };
    let data = load(r#"{"input_ids": [1, 2, 3], "labels": [1, -100, 3]}"#).unwrap();
    assert_eq!(data.examples[0].tokens, [1, 2, 3]);
    assert_eq!(data.examples[0].supervised, [false, false, true]);
    let error = |line: &str| load(line).unwrap_err().to_string();
    assert!(error(r#"{"input_ids": [1, 10]}"#).contains("the id 10"));
    assert!(error(r#"{"text": "a"}"#).contains("tokenizer.json"));
    assert!(error("").contains("no record"));
}

#[test]
fn damaged_tokenizers_are_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut Tiny)| {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        tiny.load().unwrap_err().to_string()
    };
    let same = refusal(&|tiny| tiny.tokenizer["model"]["vocab"]["ab"] = 50.into());
    assert!(same.contains("the same id 50"), "{same}");
    let large = refusal(&|tiny| tiny.tokenizer["model"]["vocab"]["ab"] = 4_294_967_290_u32.into());
    assert!(large.contains("`ab` has id 4294967290"), "{large}");
    let merge = refusal(&|tiny| tiny.tokenizer["model"]["merges"][0] = json!(["x", "yz"]));
    assert!(merge.contains("tokenizer.json"), "{merge}");
    let config = refusal(&|tiny| tiny.config["eos_token"] = 5.into());
    assert!(config.contains("field eos_token"), "{config}");
    let mut baked = Tiny::new();
    baked.tokenizer["truncation"] = json!({"max_length": 2, "strategy": "LongestFirst", "stride": 0,
        "direction": "Right"});
    let ids = baked.load().unwrap().encode("abcde", Special::None).unwrap().ids;
    assert_eq!(ids.len(), 4);
}
