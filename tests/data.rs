//! Data against references and against small files of its own.
//!
//! References (chat templates, tokenizers, data files, models) lie outside of the repository;
//! without them those tests say so and pass.

use std::path::{Path, PathBuf};

use qlora_train::Error;
use qlora_train::data::{Dataset, Moment, Policy, Tokenizer, TokenizerFiles, TrainOn, explain};
use serde_json::{Value, json};

#[path = "data/files.rs"]
mod files;
#[path = "data/records.rs"]
mod records;
#[path = "data/templates.rs"]
mod templates;

#[expect(clippy::print_stdout, reason = "says why nothing was compared")]
fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("QLORA_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let path = root.join("data").join(path);
    if !path.exists() {
        println!("skipped: shared data absent");
        return None;
    }
    Some(path)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// 2025-01-02 03:04:05, the date with which the references were rendered.
const NOW: i64 = 1_735_787_045;

fn policy(vocab_size: usize, seq_len: usize) -> Policy {
    Policy { seq_len, vocab_size, train_on: TrainOn::Completion }
}

/// A tokenizer of single ASCII characters and a few merged pairs; ids 0 `<unk>`, 1 `<s>`, 2 `</s>`.
struct Tiny {
    folder: tempfile::TempDir,
    tokenizer: Value,
    config: Value,
}

const TINY_VOCAB: usize = 3 + 96 + 2;

impl Tiny {
    fn new() -> Self {
        let mut vocab = serde_json::Map::new();
        for name in ["<unk>", "<s>", "</s>"] {
            vocab.insert(name.into(), vocab.len().into());
        }
        for c in std::iter::once('\n').chain((32..127).map(char::from)) {
            vocab.insert(c.to_string(), vocab.len().into());
        }
        for merged in [" 4", "ab"] {
            vocab.insert(merged.into(), vocab.len().into());
        }
        assert_eq!(vocab.len(), TINY_VOCAB);
        let added = |id: u32, content: &str| {
            json!({"id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        };
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab,
                "merges": [[" ", "4"], ["a", "b"]]},
        });
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
        Self { folder: tempfile::tempdir().unwrap(), tokenizer, config }
    }

    fn add_bos(mut self) -> Self {
        let token = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        self.tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [token, text], "pair": [text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        });
        self
    }

    fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn files(&self) -> TokenizerFiles {
        let folder = self.folder.path();
        std::fs::write(folder.join("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer_config.json"), self.config.to_string()).unwrap();
        TokenizerFiles::in_folder(folder)
    }

    fn load(&self) -> Result<Tokenizer, Error> {
        Tokenizer::load(&self.files(), TINY_VOCAB, Moment::from_unix(NOW))
    }

    fn data(&self, lines: &str, policy: &Policy) -> Result<Dataset, Error> {
        let path = self.folder.path().join("data.jsonl");
        std::fs::write(&path, lines).unwrap();
        Dataset::load(&[path], Some(&self.load()?), policy)
    }

    /// The only example: its tokens as text, those that are targets in brackets.
    fn show(&self, line: &str) -> String {
        let tokenizer = self.load().unwrap();
        let data = self.data(line, &policy(TINY_VOCAB, 4096)).unwrap();
        let mut text = String::new();
        for token in explain(&data.examples[0], Some(&tokenizer)) {
            match token.supervised {
                true => text += &format!("[{}]", token.text),
                false => text += &token.text,
            }
        }
        text.replace("][", "")
    }
}

/// A template that writes no begin token and marks nothing.
const CHATML: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}\
                      {% if add_generation_prompt %}<|assistant|>{% endif %}";
