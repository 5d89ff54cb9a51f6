//! Small files of settings and state under seeded mutation: never a panic, never a long wait.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use qlora_train::checkpoint::adapter::Adapter;
use qlora_train::model::config::Config;
use qlora_train::train::checkpoints::{Resume, find};

use crate::{Folder, ids_model};

/// A stream of numbers that the seed alone decides (SplitMix64).
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize
}

fn mutate(bytes: &mut Vec<u8>, state: &mut u64) {
    for _ in 0..1 + next(state) % 4 {
        let i = next(state) % bytes.len();
        match next(state) % 5 {
            0 => bytes[i] ^= 1 << (next(state) % 8),
            1 => bytes[i] = b"0123456789-+.eE{}[],:\"ntf "[next(state) % 26],
            2 if bytes.len() > 8 => drop(bytes.remove(i)),
            3 => bytes.insert(i, b'9'),
            _ => {
                let end = (i + next(state) % 40).min(bytes.len());
                let piece = bytes[i..end].to_vec();
                let at = next(state) % bytes.len();
                bytes.splice(at..at, piece);
            }
        }
    }
}

/// Runs `read` after each of many mutations of the file `name` of `folder`.
fn survive(folder: &Folder, name: &str, read: impl Fn(&Path)) {
    let good = fs::read(folder.at(name)).unwrap();
    let rounds = std::env::var("QLORA_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok());
    for seed in 0..rounds.unwrap_or(3000u64) {
        let (mut bytes, mut state) = (good.clone(), seed);
        mutate(&mut bytes, &mut state);
        folder.write(name, &bytes);
        let survived = catch_unwind(AssertUnwindSafe(|| read(folder.path())));
        assert!(survived.is_ok(), "seed {seed}: {}", String::from_utf8_lossy(&bytes));
    }
}

fn adapter() -> Folder {
    let folder = Folder::new();
    let fixture = ids_model().with_file_name("final-nf4");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        folder.write(name, fs::read(fixture.join(name)).unwrap());
    }
    folder
}

#[test]
fn a_mutated_adapter_config_never_panics() {
    survive(&adapter(), "adapter_config.json", |folder| drop(Adapter::read(folder)));
}

#[test]
fn mutated_adapter_weights_never_panic() {
    survive(&adapter(), "adapter_model.safetensors", |folder| drop(Adapter::read(folder)));
}

#[test]
fn a_mutated_model_config_never_panics() {
    let folder = Folder::new();
    folder.write("config.json", fs::read(ids_model().join("config.json")).unwrap());
    survive(&folder, "config.json", |folder| drop(Config::read(&folder.join("config.json"))));
}

#[test]
fn a_mutated_checkpoint_state_never_panics() {
    let folder = adapter();
    let state = r#"{"global_step": 4, "num_input_tokens_seen": 9, "num_supervised_tokens_seen": 8,
                    "first_loss": 4.5, "identity": "abc"}"#;
    folder.write("trainer_state.json", state);
    let weights = fs::read(folder.at("adapter_model.safetensors")).unwrap();
    folder.write("optimizer.safetensors", weights);
    survive(&folder, "trainer_state.json", |folder| {
        drop(find(folder, &Resume::From(folder.to_owned()), "abc"));
    });
}
