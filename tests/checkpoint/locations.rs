//! What MODEL may be, and what is refused in its place.

use std::fs;
use std::os::unix::fs::symlink;

use qlora_train::checkpoint::location::{ModelFiles, WeightFiles};
use qlora_train::checkpoint::weights::Weights;
use serde_json::json;

use crate::{folder, one_weight, resolve};

#[test]
fn a_folder_a_file_and_an_index_all_name_the_model() {
    let good = folder(&[
        ("config.json", b"{}"),
        ("model.safetensors", &one_weight()),
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b""),
    ]);
    for path in [good.path().to_owned(), good.path().join("model.safetensors")] {
        let files = resolve(&path).unwrap();
        assert_eq!(files.config, good.path().join("config.json"));
        assert_eq!(files.tokenizer().unwrap(), good.path().join("tokenizer.json"));
        assert!(files.chat_template.is_some() && files.generation_config.is_none());
        let weights = Weights::open(&files.weights).unwrap();
        assert_eq!(weights.require("w", &[2]).unwrap().finite_f32().unwrap(), [1.0, 2.0]);
    }
    let index = json!({"weight_map": {"w": "a.safetensors"}}).to_string();
    let sharded = folder(&[
        ("config.json", b"{}"),
        ("a.safetensors", &one_weight()),
        ("model.safetensors.index.json", index.as_bytes()),
    ]);
    let index_path = sharded.path().join("model.safetensors.index.json");
    for path in [sharded.path(), &index_path] {
        let files = resolve(path).unwrap();
        assert_eq!(files.weights, WeightFiles::Sharded(index_path.clone()));
        assert_eq!(Weights::open(&files.weights).unwrap().names().len(), 1);
    }
}

#[test]
fn a_model_in_the_cache_is_found_through_its_links() {
    let cache = folder(&[
        ("models--org--name/refs/main", b"abc123\n"),
        ("models--org--name/blobs/1", &one_weight()),
        ("models--org--name/blobs/2", b"{}"),
        ("models--org--gone/refs/main", b"abc123"),
        ("models--org--evil/refs/main", b"../../.."),
    ]);
    let snapshot = cache.path().join("models--org--name/snapshots/abc123");
    fs::create_dir_all(&snapshot).unwrap();
    symlink("../../blobs/1", snapshot.join("model.safetensors")).unwrap();
    symlink("../../blobs/2", snapshot.join("config.json")).unwrap();
    let find = |text: &str| ModelFiles::resolve_with_cache(text, Some(cache.path()));
    let files = find("org/name").unwrap();
    assert_eq!(files.folder, snapshot);
    assert_eq!(Weights::open(&files.weights).unwrap().names().len(), 1);
    for (text, fragment) in [
        ("org/other", "hf download org/other"),
        ("org/gone", "the snapshot abc123 named by refs/main is missing"),
        ("org/evil", "refs/main holds no revision"),
        ("../name", "no such file or folder"),
        ("org/name/more", "no such file or folder"),
        ("", "no such file or folder"),
    ] {
        let message = find(text).unwrap_err().to_string();
        assert!(message.contains(fragment), "{text}: {message}");
    }
}

#[test]
fn things_that_are_not_models_are_named_for_what_they_are() {
    let lfs: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    let refused = |files: &[(&str, &[u8])], name: &str, fragment: &str| {
        let message = resolve(&folder(files).path().join(name)).unwrap_err();
        assert!(message.contains(fragment), "{message}");
    };
    refused(&[], "", "the folder is empty");
    refused(&[("config.json", b"{}")], "", "holds neither model.safetensors nor");
    refused(&[("pytorch_model.bin", b"")], "", "pytorch_model.bin is a PyTorch pickle");
    refused(&[("m.gguf", b"")], "", "m.gguf is a GGUF file");
    refused(&[("x.safetensors", b"")], "", "give that file as MODEL");
    let two: [(&str, &[u8]); 2] = [("a.safetensors", b""), ("b.safetensors", b"")];
    refused(&two, "", "holds 2 tensor files but no");
    refused(&[("adapter_config.json", b"{}")], "", "is a PEFT adapter");
    refused(&[("model.safetensors", b"")], "", "config.json is missing");
    refused(&[("m.bin", b"PK\x03\x04")], "m.bin", "PyTorch pickle");
    refused(&[("m.gguf", b"GGUF\x03\0\0\0")], "m.gguf", "is a GGUF file");
    refused(&[("m.safetensors", lfs)], "m.safetensors", "git lfs pull");
    refused(&[("m.safetensors", b"<!DOCTYPE html>")], "m.safetensors", "is a web page");
    refused(&[("m.safetensors", b"\x80\x04\x95abcdefg")], "m.safetensors", "PyTorch pickle");
    refused(&[("config.json", b"{\"a\": 1}")], "config.json", "give the model folder");
    refused(&[("notes.txt", b"hello")], "notes.txt", "is not a .safetensors file");
    let shard: [(&str, &[u8]); 2] =
        [("model.safetensors.index.json", b"{}"), ("m-1-of-2.safetensors", b"x")];
    refused(&shard, "m-1-of-2.safetensors", "is one shard of a model");
    let broken = folder(&[]);
    symlink("nowhere", broken.path().join("m.safetensors")).unwrap();
    let message = resolve(&broken.path().join("m.safetensors")).unwrap_err();
    assert!(message.contains("finish the download"), "{message}");
}

#[test]
fn a_missing_tokenizer_says_how_to_get_one() {
    for (file, fragment) in [
        ("tokenizer.model", "there is only SentencePiece's tokenizer.model"),
        ("vocab.json", "there is only vocab.json"),
        ("README.md", "put the model's tokenizer.json into the folder"),
    ] {
        let model = folder(&[("config.json", b"{}"), ("model.safetensors", b""), (file, b"")]);
        let message = resolve(model.path()).unwrap().tokenizer().unwrap_err().to_string();
        assert!(message.contains(fragment), "{message}");
    }
}
