//! Loss curves of every family, as they were when their gradients had been proven against float64: a change
//! that moves one of them is seen, whatever it was meant to do. `QLORA_BLESS=1` writes them anew.

mod common;

use std::collections::BTreeMap;

use common::{NF4, Open, TRAINING, cpu, examples, fixture, json, limits_of, micro_batch};
use qlora_train::data::MicroBatch;
use qlora_train::device::Dtype;
use qlora_train::model::load::Residence;
use qlora_train::ops::dropout::Draw;
use qlora_train::optim::adamw::{Moments, Settings};
use qlora_train::optim::shelf::Paging;

const FAMILIES: [&str; 8] =
    ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3"];
const STEPS: u64 = 12;

/// The losses of a few steps on the records of a family, on a base in NF4, with dropout.
fn curve(family: &str, moments: Moments) -> Vec<f64> {
    let folder = fixture("models").join(family);
    let reference = json(&folder.join("reference.json"));
    let records = examples(reference["rows"].as_array().unwrap());
    let open = Open {
        folder: &folder,
        adapter: Some(&folder.join("adapter")),
        dropout: 0.05,
        quantization: NF4,
        device: cpu(2, Dtype::F32),
        residence: Residence::Resident,
        limits: limits_of(&micro_batch(&records)),
        purpose: TRAINING,
    };
    let mut session = open.session();
    let settings = Settings {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
    };
    let mut optimizer = session.optimizer(settings, moments, Paging::Resident).unwrap();
    let window: Vec<MicroBatch> =
        records.iter().map(|record| micro_batch(std::slice::from_ref(record))).collect();
    let mut step = |step: u64| {
        let draw = Draw { seed: 5, stream: (step - 1) << 16 };
        let loss = session.gradient(&window, draw).unwrap().loss;
        optimizer.step(&session.device, &mut session.params, 5e-3, step).unwrap();
        loss
    };
    (1..=STEPS).map(&mut step).collect()
}

#[test]
fn the_loss_curve_of_every_family_and_optimizer_stays_where_it_is() {
    let path = fixture("pinned.json");
    let mut curves = BTreeMap::new();
    for family in FAMILIES {
        for (name, moments) in [("adamw", Moments::F32), ("adamw-8bit", Moments::EightBit)] {
            curves.insert(format!("{family}/{name}"), curve(family, moments));
        }
    }
    if std::env::var_os("QLORA_BLESS").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&curves).unwrap() + "\n").unwrap();
    }
    let pinned = json(&path);
    for (name, curve) in &curves {
        assert!(curve[STEPS as usize - 1] < 0.9 * curve[0], "{name} learns nothing: {curve:?}");
        for (step, loss) in curve.iter().enumerate() {
            let expected = pinned[name][step].as_f64().unwrap();
            let error = (loss / expected - 1.0).abs();
            assert!(error < 1e-5, "{name}, step {}: {loss}, not {expected}", step + 1);
        }
    }
    assert_eq!(pinned.as_object().unwrap().len(), curves.len());
}
