//! Everything that is read from outside, with bytes changed at random: an answer or an error, never a panic,
//! and soon. Seeds are the fixtures; the changes are the same in every run of the same length.
//!
//! `QLORA_FUZZ_SECONDS` says for how long each target runs (`scripts/fuzz.sh` for an hour), and `QLORA_FUZZ_SEED`
//! from which seed. An input that is found lies in `target/fuzz` and becomes a case of `tests/bad_inputs`.

#![allow(
    clippy::print_stderr,
    reason = "how many inputs a target had is what a long run is read for"
)]

mod mutate;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mutate::{Dice, mutate};
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

/// An input may take as long.
const SLOWEST: Duration = Duration::from_secs(1);

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn demo(name: &str) -> Vec<u8> {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model").join(name))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs `target` on changed seeds until the time is over; each seed as it is must be taken.
fn fuzz(name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8]) -> Result<(), Error>) {
    for seed in seeds {
        target(seed).unwrap_or_else(|error| panic!("{name}: a seed is refused: {error}"));
    }
    let end = Instant::now() + Duration::from_secs(number("QLORA_FUZZ_SECONDS", 4));
    let mut dice = Dice::new(number("QLORA_FUZZ_SEED", 1));
    let (mut runs, mut taken) = (0_u64, 0_u64);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    while Instant::now() < end {
        let (seed, other) = (&seeds[dice.below(seeds.len())], &seeds[dice.below(seeds.len())]);
        let input = mutate(seed, other, &mut dice);
        // It lies there, too, if this process does not survive it.
        rewrite(&path, &input);
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let mut took = begun.elapsed();
        // A machine that does other work too is slow now and then; an input is slow every time.
        for _ in 0..3 {
            if outcome.is_ok() && took > SLOWEST {
                let begun = Instant::now();
                let _ = target(&input);
                took = took.min(begun.elapsed());
            }
        }
        let what = match &outcome {
            Err(_) => Some("a panic".to_owned()),
            Ok(Err(error)) if error.to_string().is_empty() => Some("an empty message".to_owned()),
            Ok(_) if took > SLOWEST => Some(format!("{took:?}")),
            Ok(_) => None,
        };
        if let Some(what) = what {
            panic!("{name}: {what} on input {runs}: {}", path.display());
        }
        runs += 1;
        taken += u64::from(matches!(outcome, Ok(Ok(()))));
    }
    fs::remove_file(&path).unwrap();
    assert!(runs > 50, "{name}: {runs} inputs only");
    eprintln!("{name}: {runs} inputs, {taken} taken");
}

/// A new file each time: some file systems wait for the disk where an old one is cut and refilled.
fn rewrite(path: &Path, bytes: &[u8]) {
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

#[test]
fn tensor_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let seeds =
        ["models/llama/adapter/adapter_model.safetensors", "models/qwen2/model.safetensors"];
    fuzz("tensor_files", &seeds.map(|seed| read(&fixture(seed))), |bytes| {
        rewrite(&path, bytes);
        let file = TensorFile::open(&path)?;
        for tensor in file.tensors() {
            let mut values = vec![0.0; tensor.elements()];
            let _ = tensor.to_f32(&mut values);
        }
        Ok(())
    });
}

#[test]
fn shard_indices() {
    let folder = copy_of(&fixture("models/llama"));
    let shard = "model-00001-of-00001.safetensors";
    fs::rename(folder.path().join("model.safetensors"), folder.path().join(shard)).unwrap();
    let file = TensorFile::open(folder.path().join(shard)).unwrap();
    let map: serde_json::Map<_, _> =
        file.names().map(|name| (name.to_owned(), json!(shard))).collect();
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string();
    let path = folder.path().join("model.safetensors.index.json");
    fuzz("shard_indices", &[index.into_bytes()], |bytes| {
        rewrite(&path, bytes);
        plan(folder.path())
    });
}

#[test]
fn configurations() {
    let folder = copy_of(&fixture("models/gemma3"));
    let path = folder.path().join("config.json");
    let seeds = ["gemma3", "llama", "phi3", "qwen3", "llama-dynamic", "mistral"];
    let seeds = seeds.map(|name| read(&fixture("models").join(name).join("config.json")));
    fuzz("configurations", &seeds, |bytes| {
        rewrite(&path, bytes);
        Config::read(&path).map(drop)
    });
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
    copy_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model"))
}

#[test]
fn tokenizers() {
    let folder = demo_folder();
    let path = folder.path().join("tokenizer.json");
    fuzz("tokenizers", &[demo("tokenizer.json")], |bytes| {
        rewrite(&path, bytes);
        let tokenizer = tokenizer(folder.path())?;
        let ids = tokenizer.encode(TEXT, Special::Add)?.ids;
        assert!(ids.iter().all(|id| (*id as usize) < VOCABULARY), "{ids:?}");
        let _ = tokenizer.decode(&ids);
        Ok(())
    });
}

#[test]
fn tokenizer_configurations() {
    let folder = demo_folder();
    let path = folder.path().join("tokenizer_config.json");
    fuzz("tokenizer_configurations", &[demo("tokenizer_config.json")], |bytes| {
        rewrite(&path, bytes);
        tokenizer(folder.path()).map(drop)
    });
}

const RECORDS: [&str; 6] = [
    r#"{"text": "Once upon a time"}"#,
    r#"{"prompt": "A cow?", "completion": " Yes."}"#,
    r#"{"instruction": "q", "input": null, "output": "a", "history": [["a", "b"]], "system": "s"}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "weight": 1}], "tools": "[]"}"#,
    r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "s"}"#,
    r#"{"input_ids": [3, 4, 5], "labels": [-100, 4, 5], "attention_mask": [1, 1, 1]}"#,
];

#[test]
fn records() {
    let folder = demo_folder();
    let tokenizer = tokenizer(folder.path()).unwrap();
    let path = folder.path().join("data.jsonl");
    let mut seeds: Vec<Vec<u8>> =
        RECORDS.iter().map(|text| format!("{text}\n").into_bytes()).collect();
    seeds.push(RECORDS.join("\n").into_bytes());
    let policy = Policy { seq_len: 64, vocab_size: VOCABULARY, train_on: TrainOn::Completion };
    fuzz("records", &seeds, |bytes| {
        rewrite(&path, bytes);
        Dataset::load(std::slice::from_ref(&path), Some(&tokenizer), &policy).map(drop)
    });
}

#[test]
fn chat_templates() {
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
    fuzz("chat_templates", &seeds.map(String::into_bytes), |bytes| {
        let source = String::from_utf8_lossy(bytes);
        let template = ChatTemplate::new(&source, Place::file("t.jinja"), &tokens, now())?;
        let conversation = Conversation::new(&messages, None);
        template.render(&conversation, GenerationPrompt::Add).map(drop)
    });
}

#[test]
fn adapters() {
    let folder = copy_of(&fixture("models/llama/adapter"));
    for (name, file) in [("adapter_configurations", CONFIG_FILE), ("adapter_tensors", TENSOR_FILE)]
    {
        let (path, seed) = (folder.path().join(file), read(&folder.path().join(file)));
        fuzz(name, std::slice::from_ref(&seed), |bytes| {
            rewrite(&path, bytes);
            Adapter::read(folder.path()).map(drop)
        });
        fs::write(&path, seed).unwrap();
    }
}

#[test]
fn stores_in_four_bits() {
    let folder = copy_of(&fixture("models/llama-bnb"));
    let path = folder.path().join("model.safetensors");
    fuzz("stores_in_four_bits", &[read(&path)], |bytes| {
        rewrite(&path, bytes);
        let weights = Weights::single(&path)?;
        for name in weights.names() {
            FourBit::find(&weights, name, tables())?;
        }
        plan(folder.path())
    });
}

#[test]
fn checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_qlora-train");
    let (model, data) = (fixture("curve/model"), fixture("curve/data.jsonl"));
    let mut run = std::process::Command::new(program);
    run.args([&model, &data]).args(["--device", "cpu", "--max-steps", "2", "--save-steps", "2"]);
    run.args(["--lora-r", "1", "--target-modules", "q_proj", "--output-dir"]).arg(folder.path());
    assert!(run.output().unwrap().status.success());
    let checkpoint = folder.path().join("checkpoint-2");
    let state: serde_json::Value =
        serde_json::from_slice(&read(&checkpoint.join("trainer_state.json"))).unwrap();
    let identity = state["identity"].as_str().unwrap();
    for file in ["trainer_state.json", "digests.json", "optimizer.safetensors"] {
        let (path, seed) = (checkpoint.join(file), read(&checkpoint.join(file)));
        fuzz(file, std::slice::from_ref(&seed), |bytes| {
            rewrite(&path, bytes);
            find(folder.path(), &Resume::From(checkpoint.clone()), identity).map(drop)
        });
        fs::write(&path, seed).unwrap();
    }
}
