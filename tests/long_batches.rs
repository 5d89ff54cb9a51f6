//! Micro-batches of more tokens than an MLP computes at once: the same bits whatever is kept, and the
//! gradient of the same tokens in short micro-batches.

mod common;

use common::{Open, cpu, examples, fixture, json, limits_of, micro_batch};
use qlora_train::data::{Example, MicroBatch};
use qlora_train::device::{Device, Dtype};
use qlora_train::model::block::mlp_rows;
use qlora_train::model::load::{Quantization, Residence};
use qlora_train::model::tokens::Limits;
use qlora_train::model::workspace::{Keep, Purpose};
use qlora_train::ops::dropout::Draw;
use qlora_train::tolerance;

/// Records of a family, again and again, until they have more than `tokens` tokens.
fn many(family: &str, tokens: usize) -> Vec<Example> {
    let reference = json(&fixture("models").join(family).join("reference.json"));
    let records = examples(reference["rows"].as_array().unwrap());
    let mut many = Vec::new();
    let mut count = 0;
    for record in records.iter().cycle() {
        if count > tokens {
            break;
        }
        count += record.tokens.len();
        many.push(record.clone());
    }
    many
}

/// Gradients of `window`.
fn gradient(
    family: &str,
    device: &Device,
    (keep, residence, dropout): (Keep, Residence, f64),
    window: &[MicroBatch],
) -> Vec<f32> {
    let folder = fixture("models").join(family);
    let most = |of: fn(&Limits) -> usize| window.iter().map(|m| of(&limits_of(m))).max().unwrap();
    let open = Open {
        folder: &folder,
        adapter: Some(&folder.join("adapter")),
        dropout,
        quantization: Quantization::None,
        device: device.clone(),
        residence,
        limits: Limits {
            tokens: most(|l| l.tokens),
            sequences: most(|l| l.sequences),
            targets: most(|l| l.targets),
        },
        purpose: Purpose::Training(keep),
    };
    let mut session = open.session();
    let step = session.gradient(window, Draw { seed: 1, stream: 5 }).unwrap();
    assert!(step.loss.is_finite());
    let mut grads = vec![0.0_f32; session.params.index().len()];
    device.download(&session.params.grads, &mut grads);
    device.synchronize().unwrap();
    grads
}

/// All ways of keeping things.
fn ways(layers: usize) -> [(Keep, Residence); 4] {
    let (resident, streamed) = (Residence::Resident, Residence::Streamed);
    [
        (Keep { blocks: layers, ..Keep::INPUTS }, resident),
        (Keep::INPUTS, resident),
        (Keep { parked: true, ..Keep::INPUTS }, streamed),
        (Keep { blocks: 0, lanes: 2, ..Keep::INPUTS }, streamed),
    ]
}

#[test]
fn what_is_kept_changes_no_bit_of_a_long_batch() {
    for family in ["llama", "gemma2", "qwen3"] {
        for (dtype, dropout) in [(Dtype::F32, 0.0), (Dtype::Bf16, 0.1)] {
            let device = cpu(2, dtype);
            let window = [micro_batch(&many(family, 2 * mlp_rows(usize::MAX)))];
            let of =
                |(keep, residence)| gradient(family, &device, (keep, residence, dropout), &window);
            let usual = of((Keep::EVERYTHING, Residence::Resident));
            for way in ways(2) {
                assert!(of(way) == usual, "{family} in {dtype:?}, dropout {dropout}, {way:?}");
            }
        }
    }
}

#[test]
fn a_long_batch_has_the_gradient_of_short_ones() {
    for family in ["llama", "gemma2"] {
        let (device, records) = (cpu(2, Dtype::F32), many(family, 2 * mlp_rows(usize::MAX)));
        let way = (Keep::INPUTS, Residence::Resident, 0.0);
        let long = gradient(family, &device, way, &[micro_batch(&records)]);
        let short: Vec<MicroBatch> = records.chunks(16).map(micro_batch).collect();
        let error = tolerance::scaled_error(&gradient(family, &device, way, &short), &long);
        assert!(error < 1e-6, "{family}: {error:e}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_long_batch_on_a_gpu_has_the_same_bits_parked_and_streamed() {
    let device = common::gpu();
    let window = [micro_batch(&many("llama", mlp_rows(usize::MAX)))];
    let of = |(keep, residence)| gradient("llama", &device, (keep, residence, 0.1), &window);
    let usual = of((Keep::EVERYTHING, Residence::Resident));
    let parked = Keep { parked: true, ..Keep::INPUTS };
    assert!(of((parked, Residence::Streamed)) == usual);
}
