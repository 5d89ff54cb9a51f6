//! The self-test: it holds for every family on every device, and fails where something is wrong.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{NF4, cpu, examples, fixture, json};
use qlora_train::checkpoint::location::ModelFiles;
use qlora_train::checkpoint::tensors::DType;
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::Example;
use qlora_train::device::{Device, Dtype, Hardware};
use qlora_train::error::Error;
use qlora_train::methods::lora::{Settings, Targets};
use qlora_train::model::config::Config;
use qlora_train::model::load::Quantization;
use qlora_train::train::check::{Comparison, Subject};
use qlora_train::train::plan::Method;

fn records(family: &str) -> Vec<Example> {
    let reference = json(&fixture("models").join(family).join("reference.json"));
    examples(reference["rows"].as_array().unwrap())
}

/// The comparisons of a model; `told` hears of each.
fn check(
    folder: &Path,
    examples: &[Example],
    (device, hardware): (Device, Hardware),
    quantization: Quantization,
    told: impl FnMut(&Comparison),
) -> Result<Vec<Comparison>, Error> {
    let files = ModelFiles::resolve(folder.to_str().unwrap()).unwrap();
    let config = Config::read(&files.config).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    let lora = Settings { rank: 4, alpha: 8.0, dropout: 0.0, targets: Targets::AllLinear };
    let subject = Subject {
        config: &config,
        weights: &weights,
        quantization,
        method: Method::Lora(&lora),
        examples,
        device,
        hardware,
        budget: u64::MAX,
        seed: 1,
    };
    subject.check(told)
}

const TWO_THREADS: Hardware = Hardware::Cpu { threads: 2 };

#[test]
fn every_family_holds_on_the_cpu() {
    for family in ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3"] {
        let (folder, records) = (fixture("models").join(family), records(family));
        for (dtype, quantization) in [(Dtype::Bf16, NF4), (Dtype::F32, Quantization::None)] {
            let on = (cpu(2, dtype), TWO_THREADS);
            let done = check(&folder, &records, on, quantization, |_| ()).unwrap();
            let failed: Vec<_> = done.iter().filter(|c| !c.holds()).collect();
            assert!(failed.is_empty(), "{family} in {dtype:?}: {failed:?}");
            let of = |part: &str| done.iter().filter(|c| c.name.contains(part)).count();
            assert_eq!(of("finite differences"), 6, "{family}");
            // Files in bf16 hold what is used; quantized here, none does.
            let weights = Weights::single(&folder.join("model.safetensors")).unwrap();
            let mut names = weights.names();
            let as_used = names.all(|name| weights.tensor(name).unwrap().dtype == DType::BF16);
            let streams = as_used && quantization == Quantization::None;
            assert_eq!(of("their turn"), usize::from(streams), "{family}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_gpu_holds() {
    let (folder, records) = (fixture("models/llama-bnb"), records("llama"));
    let on = (common::gpu(), Hardware::Cuda { ordinal: 0, capability: Some((8, 6)) });
    let done = check(&folder, &records, on, Quantization::None, |_| ()).unwrap();
    assert!(done.iter().all(Comparison::holds), "{done:?}");
    assert!(done.iter().any(|c| c.name.contains("their turn")));
}

/// Weights that change between two ways make them differ.
#[test]
fn what_differs_is_found() {
    let (folder, place) = (fixture("models/llama"), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(folder.join(name), place.path().join(name)).unwrap();
    }
    let weights = OpenOptions::new().write(true).open(place.path().join("model.safetensors"));
    let weights = weights.unwrap();
    let size = weights.metadata().unwrap().len();
    let spoil = |comparison: &Comparison| {
        if comparison.name.contains("without a gradient") {
            // The last numbers of the file, in bf16: 1.
            weights.write_at(&[0x80, 0x3f].repeat(256), size - 512).unwrap();
        }
    };
    let on = (cpu(2, Dtype::Bf16), TWO_THREADS);
    let done = check(place.path(), &records("llama"), on, Quantization::None, spoil).unwrap();
    let failed: Vec<&str> = done.iter().filter(|c| !c.holds()).map(|c| c.name.as_str()).collect();
    assert!(!failed.is_empty(), "{done:?}");
    assert!(done[0].holds(), "nothing was wrong before");
}
