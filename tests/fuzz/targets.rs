//! What is read from outside, each as a function of bytes; the seeds are the fixtures.

use std::fs;
use std::path::{Path, PathBuf};

use qlora_train::checkpoint::adapter::{Adapter, CONFIG_FILE, TENSOR_FILE};
use qlora_train::checkpoint::bitsandbytes::FourBit;
use qlora_train::checkpoint::location::ModelFiles;
use qlora_train::checkpoint::tensors::TensorFile;
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::{
    ChatTemplate, Conversation, Dataset, GenerationPrompt, Moment, Policy, Special, Tokenizer,
    TokenizerFiles, TrainOn,
};
use qlora_train::device::{Device, Dtype, Hardware};
use qlora_train::error::{Error, Place};
use qlora_train::model::config::Config;
use qlora_train::model::load::{Quantization, Residence, load, tables};
use qlora_train::train::checkpoints::{Resume, find};
use serde_json::json;

use crate::{PROGRAM, ROOT};

/// One reader.
pub struct Target {
    /// What is taken as it is.
    pub seeds: Vec<Vec<u8>>,
    /// An answer or an error.
    pub read: Box<Read>,
}

/// Reads bytes.
pub type Read = dyn Fn(&[u8]) -> Result<(), Error> + Send + Sync;

/// A target's name, and how it is made.
pub type Named = (&'static str, fn() -> Target);

impl Target {
    fn new(
        seeds: impl IntoIterator<Item = Vec<u8>>,
        read: impl Fn(&[u8]) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        Self { seeds: seeds.into_iter().collect(), read: Box::new(read) }
    }
}

/// All of them by name.
pub const TARGETS: [Named; 14] = [
    ("tensor_files", tensor_files),
    ("shard_indices", shard_indices),
    ("configurations", configurations),
    ("tokenizers", tokenizers),
    ("tokenizer_configurations", tokenizer_configurations),
    ("generation_configurations", generation_configurations),
    ("records", records),
    ("chat_templates", chat_templates),
    ("adapter_configurations", adapter_configurations),
    ("adapter_tensors", adapter_tensors),
    ("stores_in_four_bits", stores_in_four_bits),
    ("checkpoint_states", checkpoint_states),
    ("checkpoint_digests", checkpoint_digests),
    ("checkpoint_moments", checkpoint_moments),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/fixtures").join(name)
}

fn demo(name: &str) -> Vec<u8> {
    bytes(&Path::new(ROOT).join("src/demo/model").join(name))
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A new file each time: some file systems wait for the disk where an old one is cut and refilled.
pub fn rewrite(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

/// A folder for one target, with a copy of everything in `from`.
fn copy_of(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

/// The decoder's shapes, without a number of it.
fn plan(folder: &Path) -> Result<(), Error> {
    let files = ModelFiles::resolve(folder.to_str().unwrap())?;
    let config = Config::read(&files.config)?;
    let weights = Weights::open(&files.weights)?;
    let device = Device::plan(Hardware::Cpu { threads: 1 }, Dtype::Bf16, u64::MAX);
    load(&device, config, Some(&weights), Quantization::None, Residence::Resident).map(drop)
}

fn tensor_files() -> Target {
    let folder = tempfile::tempdir().unwrap();
    let seeds =
        ["models/llama/adapter/adapter_model.safetensors", "models/qwen2/model.safetensors"];
    Target::new(seeds.map(|seed| bytes(&fixture(seed))), move |bytes| {
        let path = folder.path().join("model.safetensors");
        rewrite(&path, bytes);
        let file = TensorFile::open(&path)?;
        for tensor in file.tensors() {
            let mut values = vec![0.0; tensor.elements()];
            let _ = tensor.to_f32(&mut values);
        }
        Ok(())
    })
}

fn shard_indices() -> Target {
    let folder = copy_of(&fixture("models/llama"));
    let shard = "model-00001-of-00001.safetensors";
    fs::rename(folder.path().join("model.safetensors"), folder.path().join(shard)).unwrap();
    let file = TensorFile::open(folder.path().join(shard)).unwrap();
    let map: serde_json::Map<_, _> =
        file.names().map(|name| (name.to_owned(), json!(shard))).collect();
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string();
    let path = folder.path().join("model.safetensors.index.json");
    Target::new([index.into_bytes()], move |bytes| {
        rewrite(&path, bytes);
        plan(folder.path())
    })
}

fn configurations() -> Target {
    let folder = copy_of(&fixture("models/gemma3"));
    let seeds = ["gemma3", "llama", "phi3", "qwen3", "llama-dynamic", "mistral"];
    let seeds = seeds.map(|name| bytes(&fixture("models").join(name).join("config.json")));
    Target::new(seeds, move |bytes| {
        let path = folder.path().join("config.json");
        rewrite(&path, bytes);
        Config::read(&path).map(drop)
    })
}

/// The demo's tokenizer in `folder`.
fn tokenizer(folder: &Path) -> Result<Tokenizer, Error> {
    let present = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    let files = TokenizerFiles {
        tokenizer_json: folder.join("tokenizer.json"),
        tokenizer_config: present("tokenizer_config.json"),
        special_tokens_map: None,
        generation_config: present("generation_config.json"),
        chat_template: None,
    };
    Tokenizer::load(&files, VOCABULARY, now())
}

const VOCABULARY: usize = 1 << 16;
fn now() -> Moment {
    Moment::from_unix(0)
}

const TEXT: &str = "A green cow, 12 of them: naïve\n\u{1F600}";

fn demo_folder() -> tempfile::TempDir {
    copy_of(&Path::new(ROOT).join("src/demo/model"))
}

fn tokenizers() -> Target {
    let folder = demo_folder();
    let path = folder.path().join("tokenizer.json");
    Target::new([demo("tokenizer.json")], move |bytes| {
        rewrite(&path, bytes);
        let tokenizer = tokenizer(folder.path())?;
        let ids = tokenizer.encode(TEXT, Special::Add)?.ids;
        assert!(ids.iter().all(|id| (*id as usize) < VOCABULARY), "{ids:?}");
        let _ = tokenizer.decode(&ids);
        Ok(())
    })
}

fn tokenizer_configurations() -> Target {
    beside_a_tokenizer("tokenizer_config.json")
}

fn generation_configurations() -> Target {
    beside_a_tokenizer("generation_config.json")
}

fn beside_a_tokenizer(file: &str) -> Target {
    let folder = demo_folder();
    let path = folder.path().join(file);
    Target::new([demo(file)], move |bytes| {
        rewrite(&path, bytes);
        tokenizer(folder.path()).map(drop)
    })
}

const RECORDS: [&str; 6] = [
    r#"{"text": "Once upon a time"}"#,
    r#"{"prompt": "A cow?", "completion": " Yes."}"#,
    r#"{"instruction": "q", "input": null, "output": "a", "history": [["a", "b"]], "system": "s"}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "weight": 1}], "tools": "[]"}"#,
    r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "s"}"#,
    r#"{"input_ids": [3, 4, 5], "labels": [-100, 4, 5], "attention_mask": [1, 1, 1]}"#,
];

fn records() -> Target {
    let folder = demo_folder();
    let tokenizer = tokenizer(folder.path()).unwrap();
    let mut seeds: Vec<Vec<u8>> =
        RECORDS.iter().map(|text| format!("{text}\n").into_bytes()).collect();
    seeds.push(RECORDS.join("\n").into_bytes());
    let policy = Policy { seq_len: 64, vocab_size: VOCABULARY, train_on: TrainOn::Completion };
    Target::new(seeds, move |bytes| {
        let path = folder.path().join("data.jsonl");
        rewrite(&path, bytes);
        Dataset::load(std::slice::from_ref(&path), Some(&tokenizer), &policy).map(drop)
    })
}

fn chat_templates() -> Target {
    let config: serde_json::Value = serde_json::from_slice(&demo("tokenizer_config.json")).unwrap();
    let seeds = [
        config["chat_template"].as_str().unwrap().to_owned(),
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content | trim }}\
         {% set ns.n = ns.n + 1 %}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}{% endfor %}\
         {{ ns.n }}{% if add_generation_prompt %}<a>{% endif %}"
            .to_owned(),
        "{% macro f(x, y='a') %}{{ x ~ y }}{% endmacro %}{{ f(messages[0].content) | upper | tojson }}\
         {{ messages | length }}{{ messages[::-1][0].role[:2] }}{{ strftime_now('%d %b') }}"
            .to_owned(),
    ];
    let messages =
        [json!({"role": "user", "content": "Hi"}), json!({"role": "assistant", "content": "Ho"})];
    let tokens =
        [("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())];
    Target::new(seeds.map(String::into_bytes), move |bytes| {
        let source = String::from_utf8_lossy(bytes);
        let template = ChatTemplate::new(&source, Place::file("t.jinja"), &tokens, now())?;
        let conversation = Conversation::new(&messages, None);
        template.render(&conversation, GenerationPrompt::Add).map(drop)
    })
}

fn adapter_configurations() -> Target {
    adapter(CONFIG_FILE)
}

fn adapter_tensors() -> Target {
    adapter(TENSOR_FILE)
}

fn adapter(file: &str) -> Target {
    let folder = copy_of(&fixture("models/llama/adapter"));
    let path = folder.path().join(file);
    Target::new([bytes(&path)], move |bytes| {
        rewrite(&path, bytes);
        Adapter::read(folder.path()).map(drop)
    })
}

fn stores_in_four_bits() -> Target {
    let folder = copy_of(&fixture("models/llama-bnb"));
    let path = folder.path().join("model.safetensors");
    Target::new([bytes(&path)], move |bytes| {
        rewrite(&path, bytes);
        let weights = Weights::single(&path)?;
        for name in weights.names() {
            FourBit::find(&weights, name, tables())?;
        }
        plan(folder.path())
    })
}

fn checkpoint_states() -> Target {
    checkpoint("trainer_state.json")
}

fn checkpoint_digests() -> Target {
    checkpoint("digests.json")
}

fn checkpoint_moments() -> Target {
    checkpoint("optimizer.safetensors")
}

fn checkpoint(file: &str) -> Target {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (fixture("curve/model"), fixture("curve/data.jsonl"));
    let mut run = std::process::Command::new(PROGRAM);
    run.args([&model, &data]).args(["--device", "cpu", "--max-steps", "2", "--save-steps", "2"]);
    run.args(["--lora-r", "1", "--target-modules", "q_proj", "--output-dir"]).arg(folder.path());
    let output = run.output().unwrap_or_else(|error| panic!("{PROGRAM}: {error}: build it first"));
    assert!(output.status.success(), "{output:?}");
    let checkpoint = folder.path().join("checkpoint-2");
    let state: serde_json::Value =
        serde_json::from_slice(&bytes(&checkpoint.join("trainer_state.json"))).unwrap();
    let identity = state["identity"].as_str().unwrap().to_owned();
    let path = checkpoint.join(file);
    Target::new([bytes(&path)], move |bytes| {
        rewrite(&path, bytes);
        find(folder.path(), &Resume::From(checkpoint.clone()), &identity).map(drop)
    })
}
