//! Real tokenizers, models and data files.

use std::path::Path;

use qlora_train::data::{DataReport, Dataset, Moment, Special, Tokenizer, TokenizerFiles};

use super::{NOW, policy, read_json, shared};

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
            let want: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
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
    assert_eq!(example.supervised.iter().filter(|&&s| !s).count(), prompt.len());
    assert_eq!(example.supervised.last(), Some(&true));
    let answer: Vec<u32> = example.tokens[prompt.len()..example.tokens.len() - 1].to_vec();
    let mut stream = tokenizer.stream(&prompt).unwrap();
    let answer: String = answer.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(answer, " Name: Sunny; Animal: cow; Color: green; Says: Moo!");
}

/// The reference's prompts and their ids, which begin with the begin token.
#[test]
fn real_models_see_the_reference_ids() {
    let Some(models) = shared("models") else {
        return;
    };
    for (name, vocab_size) in [("stories260k", 512), ("babyllama-105", 105)] {
        let tokenizer = load(&models.join(name), vocab_size);
        let reference = read_json(&models.join(name).join("reference.json"));
        let prompts = reference["prompts"].as_array().expect("prompts");
        for prompt in prompts {
            let (text, ids) = (prompt["text"].as_str().unwrap(), &prompt["ids"]);
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            assert_eq!(tokenizer.encode(text, Special::Add).unwrap().ids, ids, "{text}");
        }
    }
}

#[test]
fn real_data_files_are_read_whole() {
    let Some(folder) = shared("instruct") else {
        return;
    };
    let tokenizer = load(&shared("tokenizers/qwen2.5").unwrap(), 151_936);
    let corpora = shared("corpora").unwrap();
    for (file, records) in [
        ("alpaca_en_demo.json", 999),
        ("alpaca_zh_demo.json", 1000),
        ("glaive_toolcall_en_demo.json", 300),
        ("glaive_toolcall_zh_demo.json", 300),
        ("identity.json", 91),
        ("openai_messages_toy_first4.jsonl", 4),
        ("prompt_completion_train_first200.jsonl", 200),
        ("prompt_completion_valid.jsonl", 144),
        ("reason_tool_use_demo_50.jsonl", 50),
        ("self_instruct_seed_tasks.jsonl", 175),
        ("sharegpt_dummy_conversation.json", 500),
        ("v1_sft_demo.jsonl", 500),
        ("wikisql_text_train.jsonl", 1000),
        ("../corpora/african_storybook_en_ccby.jsonl", 316),
        ("../corpora/c4_demo.jsonl", 300),
        ("../corpora/tinystories_1000.json", 1000),
    ] {
        let path = folder.join(file);
        let data = Dataset::load(&[path], Some(&tokenizer), &policy(151_936, 8192)).unwrap();
        let DataReport { examples, end_token_supervised, .. } = data.report;
        assert_eq!((data.report.records, examples), (records, records), "{file}");
        let ends = examples - data.report.cut.len();
        assert!(end_token_supervised >= ends, "{file}: {end_token_supervised} of {ends}");
    }
    let alice = corpora.join("alice.txt");
    let data = Dataset::load(&[alice], Some(&tokenizer), &policy(151_936, 512)).unwrap();
    let tokens = data.report.tokens - (data.report.examples - 1);
    assert_eq!(
        data.report.supervised_tokens,
        tokens - 1,
        "each token but the first is a target once"
    );
    for (file, why) in
        [("dpo_en_demo.json", "DPO"), ("dpo_zh_demo.json", "DPO"), ("kto_en_demo.json", "KTO")]
    {
        let error = Dataset::load(&[folder.join(file)], Some(&tokenizer), &policy(151_936, 8192));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(why), "{error}");
    }
}
