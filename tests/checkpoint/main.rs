//! Model folders, adapters and quantized weights on a real file system, good and bad.

mod adapters;
mod locations;
mod quantized;
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use qlora_train::checkpoint::location::ModelFiles;
use qlora_train::checkpoint::tensors::DType;
use qlora_train::checkpoint::weights::Weights;
use serde_json::{Value, json};

#[test]
fn real_models_open_and_two_copies_agree() {
    let Some(shared) = shared() else { return };
    let models = shared.join("data/models");
    let open = |name: &str| {
        let files = resolve(&models.join(name)).unwrap();
        files.tokenizer().unwrap();
        Weights::open(&files.weights).unwrap()
    };
    let (whole, shards) = (open("babyllama-105"), open("babyllama-105-bf16-sharded"));
    assert_eq!(shards.files().len(), 2);
    assert!(whole.names().eq(shards.names()));
    for name in whole.names() {
        let exact = whole.tensor(name).unwrap().finite_f32().unwrap();
        let rounded = shards.tensor(name).unwrap().finite_f32().unwrap();
        for (x, y) in exact.iter().zip(&rounded) {
            assert_eq!(half::bf16::from_f32(*x).to_f32(), *y, "{name}");
        }
    }
    let stories = open("stories260k");
    assert_eq!(stories.tensor("model.embed_tokens.weight").unwrap().shape, [512, 64]);
}

/// The folder of shared test data, or a note that it is absent.
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("QLORA_SHARED").map_or(beside, PathBuf::from);
    let found = folder.is_dir().then_some(folder);
    if found.is_none() {
        eprintln!("skipped: shared data absent");
    }
    found
}

/// A scratch folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// The bytes of a tensor file, made without the code under test.
fn tensor_file(tensors: &[(&str, DType, &[usize], &[u8])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({"dtype": dtype.name(), "shape": shape,
            "data_offsets": [begin, data.len()]});
        header.insert((*name).into(), entry);
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn one_weight() -> Vec<u8> {
    tensor_file(&[("w", DType::F32, &[2], &floats(&[1.0, 2.0]))])
}

fn resolve(path: &Path) -> Result<ModelFiles, String> {
    ModelFiles::resolve_with_cache(path.to_str().unwrap(), None).map_err(|e| e.to_string())
}
