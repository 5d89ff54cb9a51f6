//! PEFT adapter folders, written and read.

use std::fs;

use qlora_train::checkpoint::adapter::{
    self, Adapter, AdapterConfig, Provenance, Scaling, TargetModules,
};
use qlora_train::checkpoint::tensors::DType;

use crate::{floats, folder, tensor_file};

fn lora_config() -> AdapterConfig {
    AdapterConfig {
        base_model: None,
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        scaling: Scaling::Rank,
        target_modules: TargetModules::Suffixes(vec!["q".into()]),
        rank_pattern: Vec::new(),
        alpha_pattern: Vec::new(),
        unknown: Vec::new(),
    }
}

#[test]
fn an_adapter_comes_back_as_it_was_written() {
    let [name_a, name_b] = adapter::tensor_names("model.layers.0.self_attn.q");
    assert_eq!(name_a, "base_model.model.model.layers.0.self_attn.q.lora_A.weight");
    let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.5, -0.5]);
    let out = folder(&[]);
    let tensors = [(&*name_a, [2, 3]), (&*name_b, [1, 2])];
    let form = (&lora_config(), &Provenance::default());
    let values = |i: usize| if i == 0 { &a[..] } else { &b[..] };
    adapter::write(out.path(), form, &tensors, |i, to| to.copy_from_slice(values(i))).unwrap();
    let read = Adapter::read(out.path()).unwrap();
    assert_eq!(read.config, lora_config());
    let pair = &read.modules["model.layers.0.self_attn.q"];
    assert_eq!((pair.rank, pair.inputs, pair.outputs), (2, 3, 1));
    assert_eq!((&pair.a[..], &pair.b[..]), (&a[..], &b[..]));
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 2);
}

#[test]
fn adapters_with_anything_unaccounted_for_are_refused() {
    let a = "base_model.model.q.lora_A.weight";
    let b = "base_model.model.q.lora_B.weight";
    let f = DType::F32;
    let nan = floats(&[f32::NAN, 0.0]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (tensor_file(&[]), "holds no LoRA matrices"),
        (tensor_file(&[(a, f, &[2, 1], &[0; 8])]), "q.lora_B.weight: missing, its other half"),
        (tensor_file(&[(b, f, &[1, 2], &[0; 8])]), "q.lora_A.weight: missing, its other half"),
        (tensor_file(&[(a, f, &[1, 2], &[0; 8]), (b, f, &[1, 1], &[0; 4])]), "rank 1, expected 2"),
        (
            tensor_file(&[(a, f, &[2, 1], &[0; 8]), (b, f, &[2, 1], &[0; 8])]),
            "1 columns, expected the rank 2",
        ),
        (tensor_file(&[(a, f, &[2], &[0; 8]), (b, f, &[1, 2], &[0; 8])]), "expected a matrix"),
        (
            tensor_file(&[(a, DType::I64, &[2, 1], &[0; 16]), (b, f, &[1, 2], &[0; 8])]),
            "I64 elements",
        ),
        (tensor_file(&[(a, f, &[2, 1], &nan), (b, f, &[1, 2], &[0; 8])]), "element 0 is NaN"),
        (tensor_file(&[("q.lora_A.weight", f, &[2, 1], &[0; 8])]), "not a LoRA matrix"),
        (
            tensor_file(&[("base_model.model.q.lora_magnitude_vector", f, &[1], &[0; 4])]),
            "not a LoRA matrix",
        ),
        (
            tensor_file(&[("base_model.model.e.lora_embedding_A", f, &[1], &[0; 4])]),
            "not a LoRA matrix",
        ),
    ];
    let config = lora_config().to_json();
    for (bytes, fragment) in cases {
        let folder = folder(&[
            ("adapter_config.json", config.as_bytes()),
            ("adapter_model.safetensors", &bytes),
        ]);
        let message = Adapter::read(folder.path()).unwrap_err().to_string();
        assert!(message.contains(fragment), "{message}");
    }
    let pickle = folder(&[("adapter_config.json", config.as_bytes()), ("adapter_model.bin", b"")]);
    let message = Adapter::read(pickle.path()).unwrap_err().to_string();
    assert!(message.contains("a pickle, which is never opened"), "{message}");
    let message = Adapter::read(folder(&[]).path()).unwrap_err().to_string();
    assert!(message.contains("adapter_config.json: missing"), "{message}");
}
