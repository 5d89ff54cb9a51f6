//! Weights that do not stay: the same bits as with weights that do, whatever the order of the step, on
//! the CPU and on a GPU; and files that change or end while they are read.

use std::path::Path;

use crate::common::{Open, cpu, examples, fixture, json, limits_of, micro_batch};
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::{Example, MicroBatch};
use qlora_train::device::{Device, Dtype};
use qlora_train::error::Error;
use qlora_train::methods::lora::{self, Targets};
use qlora_train::model::config::Config;
use qlora_train::model::load::{Quantization, Residence, ScaleForm, load};
use qlora_train::model::quantize::StoreForm;
use qlora_train::model::synthetic;
use qlora_train::model::workspace::{Keep, Purpose};
use qlora_train::ops::dropout::Draw;
use qlora_train::quant::Kind;
use qlora_train::train::session::Session;

/// Models whose files hold what is used: bf16, or four bits.
const FAMILIES: [&str; 5] = ["llama", "gemma3", "phi3", "qwen3", "llama-bnb"];

/// The folder with the adapter and the records of a family.
fn beside(family: &str) -> std::path::PathBuf {
    fixture("models").join(family.trim_end_matches("-bnb"))
}

fn records(family: &str) -> Vec<Example> {
    let reference = json(&beside(family).join("reference.json"));
    examples(reference["rows"].as_array().unwrap())
}

/// Each record a micro-batch, and all of them twice; one teaches nothing.
fn window(family: &str) -> Vec<MicroBatch> {
    let micro = |example: &Example| micro_batch(std::slice::from_ref(example));
    let mut window: Vec<MicroBatch> = records(family).iter().map(micro).collect();
    window.extend(window.clone());
    window[1].targets.clear();
    window
}

fn open(family: &str, device: Device, residence: Residence, keep: Keep) -> Session {
    open_from(&fixture("models").join(family), family, device, residence, keep)
}

fn open_from(
    folder: &Path,
    family: &str,
    device: Device,
    residence: Residence,
    keep: Keep,
) -> Session {
    let open = Open {
        folder,
        adapter: Some(&beside(family).join("adapter")),
        dropout: 0.0,
        quantization: Quantization::None,
        device,
        residence,
        limits: limits_of(&micro_batch(&records(family))),
        purpose: Purpose::Training(keep),
    };
    open.session()
}

/// Loss and gradients of a window, as bits.
fn gradient(session: &mut Session, window: &[MicroBatch]) -> (u64, Vec<u32>) {
    let step = session.gradient(window, Draw { seed: 1, stream: 5 }).unwrap();
    let mut grads = vec![0.0_f32; session.params.index().len()];
    session.device.download(&session.params.grads, &mut grads);
    session.device.synchronize().unwrap();
    (step.loss.to_bits(), grads.iter().map(|g| g.to_bits()).collect())
}

fn with_lanes(lanes: usize) -> Keep {
    Keep { lanes, ..Keep::INPUTS }
}

#[test]
fn neither_where_weights_are_nor_the_order_of_a_step_changes_a_bit() {
    for family in FAMILIES {
        let window = window(family);
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let of = |residence, keep| {
                gradient(&mut open(family, cpu(2, dtype), residence, keep), &window)
            };
            let usual = of(Residence::Resident, Keep::EVERYTHING);
            assert!(usual.1.iter().any(|bits| *bits != 0));
            for lanes in [1, 2, window.len(), window.len() + 1] {
                for residence in [Residence::Resident, Residence::Streamed] {
                    let found = of(residence, with_lanes(lanes));
                    assert!(found == usual, "{family} in {dtype:?}, {residence:?}, {lanes} lanes");
                }
            }
            for lanes in [1, window.len()] {
                let parked = Keep { parked: true, ..with_lanes(lanes) };
                assert!(of(Residence::Streamed, parked) == usual, "{family}: parked, {lanes}");
            }
            for blocks in [0, 1, usize::MAX] {
                let some = Keep { blocks, ..with_lanes(window.len()) };
                let found = of(Residence::Streamed, some);
                assert!(found == usual, "{family}: {blocks} blocks keep everything in each lane");
            }
            let kept = of(Residence::Streamed, Keep::EVERYTHING);
            assert!(kept == usual, "{family} in {dtype:?}: streamed, everything kept");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn weights_that_pass_through_a_gpu_give_the_same_bits_there() {
    let device = crate::common::gpu();
    // The embeddings of the last one are no head: their rows come from the file, too.
    for family in ["llama", "llama-bnb", "mistral"] {
        let window = window(family);
        let of =
            |residence, keep| gradient(&mut open(family, device.clone(), residence, keep), &window);
        let usual = of(Residence::Resident, Keep::EVERYTHING);
        for (lanes, parked) in [(1, false), (1, true), (window.len(), false), (3, true)] {
            let found = of(Residence::Streamed, Keep { parked, ..with_lanes(lanes) });
            assert!(found == usual, "{family}, {lanes} lanes, parked: {parked}");
        }
        let parked = Keep { parked: true, ..Keep::EVERYTHING };
        assert!(of(Residence::Resident, parked) == usual, "{family}: parked, everything kept");
    }
}

/// A model of many layers, without an adapter of its own.
fn deep() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
        "vocab_size": 64,
    });
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let config = Config::read(&path).unwrap();
    let how = StoreForm { kind: Kind::Nf4, scales: ScaleForm::Nested, head: false };
    let store = folder.path().join("model.safetensors");
    synthetic::write(&store, &config, how, 3, |_, _| Ok(())).unwrap();
    folder
}

#[test]
fn all_micro_batches_of_a_step_share_one_reading() {
    let (folder, window) = (deep(), window("llama"));
    let config = Config::read(&folder.path().join("config.json")).unwrap();
    let weights = Weights::single(&folder.path().join("model.safetensors")).unwrap();
    let of = |residence, lanes| {
        let device = cpu(1, Dtype::Bf16);
        let mut decoder =
            load(&device, config.clone(), Some(&weights), Quantization::None, residence).unwrap();
        let targets = Targets::AllLinear;
        let lora = lora::Settings { rank: 4, alpha: 8.0, dropout: 0.1, targets };
        let index = lora::attach(&mut decoder, &lora).unwrap().index;
        let limits = limits_of(&micro_batch(&records("llama")));
        let purpose = Purpose::Training(with_lanes(lanes));
        let mut session = Session::new(device.clone(), decoder, index, limits, purpose).unwrap();
        lora::initialize(&device, &mut session.params, 1);
        let bits = [(); 2].map(|()| gradient(&mut session, &window));
        let conveyor = session.decoder.conveyor.as_ref();
        let passed = conveyor.map(|conveyor| conveyor.lock().unwrap());
        (bits, passed.map_or((0, 0), |passed| (passed.traffic().bytes, passed.bytes())))
    };
    let (usual, nothing) = of(Residence::Resident, 1);
    assert_eq!(nothing, (0, 0));
    let (bits, (together, all)) = of(Residence::Streamed, window.len());
    assert!(bits == usual, "dropout and many layers");
    // Two steps; what still lies in its place at a turn is not read again.
    assert!(together <= 4 * all && together >= 3 * all, "{together} of {all}");
    let (bits, (alone, _)) = of(Residence::Streamed, 1);
    assert!(bits == usual && alone > 2 * together, "{alone} alone, {together} together");
}

#[test]
fn a_file_that_changes_or_ends_under_a_run_is_named() {
    let spoils: [fn(&Path); 2] = [
        |file| {
            let len = std::fs::metadata(file).unwrap().len();
            let opened = std::fs::File::options().write(true).open(file).unwrap();
            opened.set_len(len / 2).unwrap();
        },
        |file| {
            let opened = std::fs::File::options().write(true).open(file).unwrap();
            let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
            opened.set_modified(later).unwrap();
        },
    ];
    for spoil in spoils {
        let (from, family) = (fixture("models/llama-bnb"), "llama-bnb");
        let (folder, window) = (tempfile::tempdir().unwrap(), window(family));
        let path = folder.path().join("model.safetensors");
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
        }
        let (device, keep) = (cpu(1, Dtype::Bf16), with_lanes(2));
        let mut session = open_from(folder.path(), family, device, Residence::Streamed, keep);
        gradient(&mut session, &window);
        spoil(&path);
        let error = session.gradient(&window, Draw { seed: 1, stream: 0 }).unwrap_err();
        assert!(matches!(error, Error::Input { .. } | Error::Io { .. }));
        let message = error.to_string();
        assert!(
            message.contains("model.safetensors: ")
                && message.contains("was changed while it was in use"),
            "{message}"
        );
    }
}
