//! Fifty optimizer steps against float64: accumulation, a partial last window, packing, padding.
//!
//! A wrong denominator, schedule, decay or clip hides for a few steps behind AdamW; fifty steps at
//! 1e-5, and the gradient norm before clipping over the first five, hide nothing that matters.

mod common;

use common::{NF4, Open, TRAINING, cpu, fixture, json, tensor};
use qlora_train::checkpoint::tensors::TensorFile;
use qlora_train::data::TrainOn;
use qlora_train::data::{Batching, Order, Packing};
use qlora_train::data::{Dataset, Policy};
use qlora_train::device::{Device, Dtype};
use qlora_train::model::load::{Quantization, Residence};
use qlora_train::ops::dropout::Draw;
use qlora_train::optim::adamw::{Moments, Settings};
use qlora_train::optim::schedule::{Schedule, Shape};
use qlora_train::optim::shelf::Paging;
use qlora_train::tolerance::scaled_error;
use qlora_train::train::steps::{Length, Steps};

struct Curve {
    losses: Vec<f64>,
    norms: Vec<f64>,
    adapter: Vec<(String, Vec<f32>)>,
}

/// How a case is run.
#[derive(Clone, Copy)]
struct How {
    data: &'static str,
    moments: Moments,
    paging: Paging,
    /// Steps that are taken of those the case has.
    steps: u64,
    /// Batch size and accumulation; the case's own if absent.
    split: Option<(usize, usize)>,
}

const USUAL: How = How {
    data: "data.jsonl",
    moments: Moments::F32,
    paging: Paging::Resident,
    steps: 50,
    split: None,
};

fn curve(
    device: &Device,
    case: &serde_json::Value,
    settings: &serde_json::Value,
    how: How,
) -> Curve {
    let folder = fixture("curve");
    let number = |key: &str| settings[key].as_f64().unwrap();
    let size = |key: &str| case[key].as_u64().unwrap() as usize;
    let (batch_size, grad_accum) = how.split.unwrap_or((size("batch_size"), size("grad_accum")));
    let packed = case["packing"].as_bool().unwrap();
    let seq_len = case["seq_len"].as_u64().unwrap_or(64) as usize;
    let policy = Policy { seq_len, vocab_size: 80, train_on: TrainOn::Completion };
    let examples = Dataset::load(&[folder.join(how.data)], None, &policy).unwrap().examples;
    let packing = if packed { Packing::On } else { Packing::Off };
    let batching = Batching { seq_len, batch_size, grad_accum, packing, order: Order::File };
    let total = case["curve"].as_array().unwrap().len() as u64;
    let mut steps = Steps::new(&examples, batching, Length::Steps(total));
    let quantization = match case["base"].as_str().unwrap() {
        "nf4" => NF4,
        _ => Quantization::None,
    };
    let mut session = Open {
        folder: &folder.join("model"),
        adapter: Some(&folder.join(case["adapter"].as_str().unwrap())),
        dropout: 0.0,
        quantization,
        device: device.clone(),
        residence: Residence::Resident,
        limits: steps.limits(),
        purpose: TRAINING,
    }
    .session();
    let adamw = Settings {
        beta1: number("adam_beta1"),
        beta2: number("adam_beta2"),
        epsilon: number("adam_epsilon"),
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
    };
    let mut optimizer = session.optimizer(adamw, how.moments, how.paging).unwrap();
    let schedule = Schedule {
        shape: Shape::Cosine,
        peak: number("learning_rate"),
        warmup: number("warmup_steps") as u64,
        total,
    };
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 1..=how.steps {
        losses
            .push(session.gradient(&steps.window(step), Draw { seed: 0, stream: 0 }).unwrap().loss);
        let rate = schedule.rate(step);
        norms.push(optimizer.step(device, &mut session.params, rate, step).unwrap());
    }
    let mut values = vec![0.0; session.params.index().len()];
    session.device.download(&session.params.values, &mut values);
    let entries = session.params.index().entries().iter();
    let adapter = entries.map(|e| (e.name.clone(), values[e.range.clone()].to_vec())).collect();
    Curve { losses, norms, adapter }
}

fn cases() -> (serde_json::Value, Vec<(String, serde_json::Value)>) {
    let file = json(&fixture("curve/curve.json"));
    let cases = file["cases"].as_object().unwrap().clone().into_iter().collect();
    (file["settings"].clone(), cases)
}

fn case(name: &str) -> (serde_json::Value, serde_json::Value) {
    let (settings, cases) = cases();
    (settings, cases.into_iter().find(|(found, _)| found == name).unwrap().1)
}

fn assert_losses(name: &str, ours: &Curve, case: &serde_json::Value, allowed: impl Fn(f64) -> f64) {
    let expected = case["curve"].as_array().unwrap();
    for (i, (loss, expected)) in ours.losses.iter().zip(expected).enumerate() {
        let exact = expected["loss"].as_f64().unwrap();
        let error = (loss - exact).abs();
        assert!(error <= allowed(exact), "{name}: step {}: loss {loss}, not {exact}", i + 1);
    }
}

#[test]
fn f32_losses_and_norms_are_those_of_float64_for_fifty_steps() {
    let (settings, cases) = cases();
    for (name, case) in cases {
        let ours = curve(&cpu(2, Dtype::F32), &case, &settings, USUAL);
        assert_eq!(ours.losses.len(), 50);
        assert_losses(&name, &ours, &case, |_| 1e-5);
        for (i, norm) in ours.norms.iter().take(5).enumerate() {
            let exact = case["curve"][i]["grad_norm"].as_f64().unwrap();
            assert!((norm - exact).abs() <= 1e-5 * exact, "{name}: step {}: norm {norm}", i + 1);
        }
        let Ok(file) = TensorFile::open(
            fixture("curve").join(format!("final-{name}/adapter_model.safetensors")),
        ) else {
            assert_eq!(name, "packed", "only the packed case has no final adapter");
            continue;
        };
        for (tensor_name, values) in &ours.adapter {
            let error = scaled_error(values, &tensor(&file, tensor_name));
            assert!(error <= 1e-4, "{name}: {tensor_name} after 50 steps: {error}");
        }
    }
}

#[test]
fn bf16_losses_stay_within_one_per_cent_of_float64() {
    let (settings, cases) = cases();
    for (name, case) in cases {
        let ours = curve(&cpu(2, Dtype::Bf16), &case, &settings, USUAL);
        assert_losses(&name, &ours, &case, |exact| 0.01 * exact);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn ten_steps_on_a_gpu_stay_within_one_per_cent_of_float64() {
    let (settings, cases) = cases();
    for (name, case) in cases {
        let moments = if name == "nf4" { Moments::EightBit } else { Moments::F32 };
        let how = How { steps: 10, moments, ..USUAL };
        let ours = curve(&common::gpu(), &case, &settings, how);
        assert_eq!(ours.losses.len(), 10);
        assert_losses(&name, &ours, &case, |exact| 0.01 * exact);
    }
}

#[test]
fn eight_bit_moments_follow_the_curve_of_f32_ones() {
    let (settings, case) = case("plain");
    let how = How { moments: Moments::EightBit, ..USUAL };
    let ours = curve(&cpu(2, Dtype::F32), &case, &settings, how);
    assert_losses("8-bit", &ours, &case, |exact| 0.02 * exact);
}

/// Pages of several matrices, and of one that is larger than a page.
const SMALL_PAGES: Paging = Paging::Paged { numbers: 3000 };

#[test]
fn moments_that_come_page_by_page_change_no_bit() {
    let (settings, case) = case("plain");
    for moments in [Moments::F32, Moments::EightBit] {
        let how = How { moments, steps: 5, ..USUAL };
        let of = |device: &Device, paging| {
            let ours = curve(device, &case, &settings, How { paging, ..how });
            (ours.losses, ours.norms)
        };
        let device = cpu(2, Dtype::F32);
        assert_eq!(of(&device, USUAL.paging), of(&device, SMALL_PAGES), "{moments:?} on the CPU");
        #[cfg(target_os = "linux")]
        {
            let device = common::gpu();
            let found = of(&device, SMALL_PAGES);
            assert_eq!(of(&device, USUAL.paging), found, "{moments:?} on a GPU");
        }
    }
}

#[test]
fn padding_on_either_side_changes_no_loss() {
    let (settings, case) = case("plain");
    let device = cpu(2, Dtype::F32);
    let plain = curve(&device, &case, &settings, USUAL);
    let padded = curve(&device, &case, &settings, How { data: "data_padded.jsonl", ..USUAL });
    assert_eq!(plain.losses, padded.losses);
}

#[test]
fn how_a_window_is_split_changes_no_loss() {
    let (settings, case) = case("plain");
    let device = cpu(2, Dtype::F32);
    let plain = curve(&device, &case, &settings, USUAL);
    for split in [(1, 6), (6, 1), (3, 2)] {
        let other = curve(&device, &case, &settings, How { split: Some(split), ..USUAL });
        for (step, (a, b)) in plain.losses.iter().zip(&other.losses).enumerate() {
            assert!((a - b).abs() <= 1e-6 * a, "{split:?}, step {}: {b}, not {a}", step + 1);
        }
    }
}

#[test]
fn adapters_are_the_same_bits_for_any_thread_count_and_for_two_runs() {
    let (settings, case) = case("nf4");
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let bits = |threads| -> Vec<u32> {
            let ours = curve(&cpu(threads, dtype), &case, &settings, USUAL);
            ours.adapter.iter().flat_map(|(_, v)| v).map(|v| v.to_bits()).collect()
        };
        let one = bits(1);
        for threads in [1, 2, 3, 8] {
            assert!(bits(threads) == one, "{threads} threads in {dtype:?} change the adapter");
        }
    }
}
