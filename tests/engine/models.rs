//! A tiny model of each family against float64 numbers of the Python stack: logits, loss and every
//! LoRA gradient, on plain and on NF4 weights, in f32 and in bf16.

use std::path::Path;

use crate::common::{
    NF4, Open, TRAINING, cpu, examples, fixture, json, limits_of, micro_batch, tensor,
};
use qlora_train::checkpoint::adapter::{self, Adapter, LoraPair, TargetModules, tensor_names};
use qlora_train::checkpoint::tensors::TensorFile;
use qlora_train::data::MicroBatch;
use qlora_train::device::{Device, Dtype, Hardware};
use qlora_train::methods::lora;
use qlora_train::model::config::Config;
use qlora_train::model::load::{Quantization, Residence, load};
use qlora_train::model::workspace::{Keep, Purpose};
use qlora_train::ops::dropout::Draw;
use qlora_train::tolerance::{self, max_error, scaled_error};
use qlora_train::train::session::Session;

const FAMILIES: [&str; 10] = [
    "llama",
    "llama2",
    "llama-dynamic",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3",
];

const BASES: [(&str, Quantization); 2] = [("none", Quantization::None), ("nf4", NF4)];

/// One gradient beside the exact one.
struct Gradient {
    name: String,
    ours: Vec<f32>,
    exact: Vec<f32>,
}

/// One family on one base.
struct Case {
    name: String,
    session: Session,
    rows: Vec<MicroBatch>,
    all: MicroBatch,
    numbers: TensorFile,
    reference: serde_json::Value,
    base: &'static str,
}

impl Case {
    fn open(
        family: &str,
        (base, quantization): (&'static str, Quantization),
        device: &Device,
    ) -> Self {
        let folder = fixture("models").join(family);
        let reference = json(&folder.join("reference.json"));
        let examples = examples(reference["rows"].as_array().unwrap());
        let all = micro_batch(&examples);
        let open = Open {
            folder: &folder,
            adapter: Some(&folder.join("adapter")),
            dropout: 0.0,
            quantization,
            device: device.clone(),
            residence: Residence::Resident,
            limits: limits_of(&all),
            purpose: TRAINING,
        };
        Self {
            name: format!("{family} on {base}"),
            session: open.session(),
            rows: examples.iter().map(|row| micro_batch(std::slice::from_ref(row))).collect(),
            all,
            numbers: TensorFile::open(folder.join("reference.safetensors")).unwrap(),
            reference: reference["bases"][base].clone(),
            base,
        }
    }

    /// Logits of the tokens of a row from `first` on.
    fn logits(&mut self, row: usize, first: usize) -> (Vec<f32>, Vec<f32>) {
        let micro = &self.rows[row];
        let count = micro.tokens.len();
        let ours =
            (first..count).flat_map(|token| self.session.logits(micro, token).unwrap()).collect();
        let exact = tensor(&self.numbers, &format!("{}.logits.{row}", self.base));
        (ours, exact[exact.len() / count * first..].to_vec())
    }

    fn last(&self, row: usize) -> usize {
        self.rows[row].tokens.len() - 1
    }

    fn gradients(&mut self) -> (f64, Vec<Gradient>) {
        let step = self
            .session
            .gradient(std::slice::from_ref(&self.all), Draw { seed: 0, stream: 0 })
            .unwrap();
        let params = &self.session.params;
        let mut grads = vec![0.0; params.index().len()];
        self.session.device.download(&params.grads, &mut grads);
        let entry = |entry: &qlora_train::params::Entry| {
            let exact = tensor(&self.numbers, &format!("{}.grad.{}", self.base, entry.name));
            Gradient { name: entry.name.clone(), ours: grads[entry.range.clone()].to_vec(), exact }
        };
        (step.loss, params.index().entries().iter().map(entry).collect())
    }
}

fn cases(device: &Device) -> impl Iterator<Item = Case> {
    let with_bases =
        move |family| BASES.into_iter().map(move |base| Case::open(family, base, device));
    FAMILIES.into_iter().flat_map(with_bases)
}

#[test]
fn f32_logits_losses_and_gradients_are_those_of_float64() {
    for mut case in cases(&cpu(2, Dtype::F32)) {
        for row in 0..case.rows.len() {
            let (ours, exact) = case.logits(row, 0);
            let error = scaled_error(&ours, &exact);
            assert!(error <= tolerance::F32, "{}: logits of row {row}: {error}", case.name);
        }
        let (loss, gradients) = case.gradients();
        let exact = case.reference["loss"].as_f64().unwrap();
        assert!((loss - exact).abs() <= 1e-5 * exact, "{}: loss {loss}, not {exact}", case.name);
        assert!(gradients.len() > 10, "{}: {} gradients", case.name, gradients.len());
        for Gradient { name, ours, exact } in gradients {
            let error = scaled_error(&ours, &exact);
            assert!(error <= tolerance::F32, "{}: gradient of {name}: {error}", case.name);
        }
    }
}

#[test]
fn bf16_strays_no_further_than_plain_bf16_arithmetic() {
    assert_plain_bf16(&cpu(2, Dtype::Bf16), |_, _| 0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_gpu_strays_no_further_than_plain_bf16_arithmetic() {
    // A pass for each token would take minutes.
    assert_plain_bf16(&crate::common::gpu(), Case::last);
}

/// `first` is the first token of a row whose logits are looked at.
fn assert_plain_bf16(device: &Device, first: fn(&Case, usize) -> usize) {
    for mut case in cases(device) {
        let allowed = case.reference["bf16_error"].clone();
        let most = tolerance::BF16 * allowed["logits"]["abs"].as_f64().unwrap();
        for row in 0..case.rows.len() {
            let first = first(&case, row);
            let (ours, exact) = case.logits(row, first);
            let error = max_error(&ours, &exact);
            assert!(error <= most, "{}: logits of row {row}: {error} > {most}", case.name);
        }
        let (loss, gradients) = case.gradients();
        let exact = case.reference["loss"].as_f64().unwrap();
        assert!((loss - exact).abs() <= 0.01 * exact, "{}: loss {loss}, not {exact}", case.name);
        for Gradient { name, ours, exact } in gradients {
            let plain = allowed["gradients"][&name]["abs"].as_f64().unwrap();
            let (error, most) = (max_error(&ours, &exact), tolerance::BF16_GRADIENT * plain);
            assert!(error <= most, "{}: gradient of {name}: {error} > {most}", case.name);
        }
    }
}

#[test]
fn recomputing_a_block_gives_the_same_bits_as_keeping_it() {
    for family in FAMILIES {
        let folder = fixture("models").join(family);
        let reference = json(&folder.join("reference.json"));
        let all = micro_batch(&examples(reference["rows"].as_array().unwrap()));
        let layers = Config::read(&folder.join("config.json")).unwrap().layers;
        let gradient = |keep, threads| {
            let open = Open {
                folder: &folder,
                adapter: Some(&folder.join("adapter")),
                dropout: 0.0,
                quantization: NF4,
                device: cpu(threads, Dtype::Bf16),
                residence: Residence::Resident,
                limits: limits_of(&all),
                purpose: Purpose::Training(keep),
            };
            let mut session = open.session();
            session.gradient(std::slice::from_ref(&all), Draw { seed: 0, stream: 0 }).unwrap();
            let mut grads = vec![0.0f32; session.params.index().len()];
            session.device.download(&session.params.grads, &mut grads);
            grads.iter().map(|g| g.to_bits()).collect::<Vec<_>>()
        };
        let kept = gradient(Keep::EVERYTHING, 1);
        assert_eq!(kept, gradient(Keep::INPUTS, 1), "{family}: recomputed");
        assert_eq!(kept, gradient(Keep::INPUTS, 3), "{family}: three threads");
        for blocks in 2..layers {
            let some = Keep { blocks, ..Keep::INPUTS };
            assert_eq!(kept, gradient(some, 1), "{family}: {blocks} blocks kept");
        }
    }
}

#[test]
fn blocks_that_share_memory_have_room_for_the_largest_update_of_any() {
    let folder = fixture("models/llama");
    let reference = json(&folder.join("reference.json"));
    let all = micro_batch(&examples(reference["rows"].as_array().unwrap()));
    let mut adapter = Adapter::read(&folder.join("adapter")).unwrap();
    let first = |name: &str| name.contains(".layers.0.");
    let of_first = adapter.modules.iter_mut().filter(|(name, _)| first(name));
    of_first.for_each(|(_, pair)| pair.b.fill(0.0));
    let even = tempfile::tempdir().unwrap();
    write_adapter(even.path(), &adapter);
    // The same function: nothing in the first block, twice the rank in the others.
    adapter.modules.retain(|name, _| !first(name));
    adapter.modules.values_mut().for_each(double_rank);
    adapter.config.rank *= 2;
    let deep = tempfile::tempdir().unwrap();
    write_adapter(deep.path(), &adapter);
    let loss = |adapter: &Path, purpose| {
        let open = Open {
            folder: &folder,
            adapter: Some(adapter),
            dropout: 0.0,
            quantization: Quantization::None,
            device: cpu(2, Dtype::F32),
            residence: Residence::Resident,
            limits: limits_of(&all),
            purpose,
        };
        let (mut session, rows) = (open.session(), std::slice::from_ref(&all));
        session.gradient(rows, Draw { seed: 0, stream: 0 }).unwrap().loss
    };
    let expected = loss(even.path(), TRAINING);
    for keep in [Keep::EVERYTHING, Keep::INPUTS] {
        let found = loss(deep.path(), Purpose::Training(keep));
        assert!((found - expected).abs() <= 1e-5 * expected, "{keep:?}: {found}, not {expected}");
    }
}

/// The same update: s/2 times the sum of two equal ones.
fn double_rank(pair: &mut LoraPair) {
    pair.a = [&pair.a[..], &pair.a].concat();
    pair.b = pair.b.chunks(pair.rank).flat_map(|row| [row, row].concat()).collect();
    pair.rank *= 2;
}

fn write_adapter(folder: &Path, adapter: &Adapter) {
    let of_pair = |(module, pair): (&String, &LoraPair)| {
        let [a, b] = tensor_names(module);
        [
            (a, [pair.rank, pair.inputs], pair.a.clone()),
            (b, [pair.outputs, pair.rank], pair.b.clone()),
        ]
    };
    let matrices: Vec<_> = adapter.modules.iter().flat_map(of_pair).collect();
    let tensors: Vec<_> = matrices.iter().map(|(name, shape, _)| (&name[..], *shape)).collect();
    let form = (&adapter.config, &adapter.provenance);
    adapter::write(folder, form, &tensors, |i, to| to.copy_from_slice(&matrices[i].2)).unwrap();
}

#[test]
fn an_adapter_of_some_layers_is_written_on_for_these_layers_only() {
    let folder = fixture("models/llama");
    let mut adapter = Adapter::read(&folder.join("adapter")).unwrap();
    let named = |adapter: &Adapter| {
        let config = Config::read(&folder.join("config.json")).unwrap();
        let device = Device::plan(Hardware::Cpu { threads: 1 }, Dtype::F32, u64::MAX);
        let mut decoder =
            load(&device, config, None, Quantization::None, Residence::Resident).unwrap();
        lora::attach_adapter(&mut decoder, adapter, &folder, 0.0).unwrap().config.target_modules
    };
    let parts = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(named(&adapter), TargetModules::Suffixes(parts.map(String::from).to_vec()));
    adapter.modules.retain(|name, _| name.contains(".layers.1."));
    let whole = adapter.modules.keys().cloned().collect();
    assert_eq!(named(&adapter), TargetModules::Suffixes(whole));
}

#[test]
fn both_spellings_of_a_config_mean_the_same_model() {
    for family in FAMILIES {
        let folder = fixture("models").join(family);
        let new = Config::read(&folder.join("config.json")).unwrap();
        let old = Config::read(&folder.join("config_v4.json")).unwrap();
        assert_eq!(format!("{new:?}"), format!("{old:?}"), "{family}");
    }
}

#[test]
fn greedy_tokens_are_those_of_float64() {
    for family in FAMILIES.into_iter().filter(|family| *family != "llama-dynamic") {
        for (base, quantization) in BASES {
            let folder = fixture("models").join(family);
            let reference = &json(&folder.join("reference.json"))["bases"][base];
            let ids = |key: &str| -> Vec<u32> {
                let list = reference[key].as_array().unwrap().iter();
                list.map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let (prompt, expected) = (ids("greedy_prompt"), ids("greedy"));
            let capacity = prompt.len() + expected.len();
            let limits = qlora_train::model::tokens::Limits {
                tokens: prompt.len(),
                sequences: 1,
                targets: 1,
            };
            let mut session = Open {
                folder: &folder,
                adapter: None,
                dropout: 0.0,
                quantization,
                device: cpu(1, Dtype::F32),
                residence: Residence::Resident,
                limits,
                purpose: Purpose::Generation { capacity },
            }
            .session();
            assert_eq!(greedy(&mut session, &prompt, expected.len()), expected, "{family} {base}");
        }
    }
}

fn greedy(session: &mut Session, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut logits = session.extend(prompt, 0).unwrap();
    let mut tokens = Vec::new();
    loop {
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        tokens.push(best as u32);
        if tokens.len() == count {
            return tokens;
        }
        logits = session.extend(&[best as u32], prompt.len() + tokens.len() - 1).unwrap();
    }
}
