//! What is planned is what is taken, to the byte, and a run that was planned to fit does: over shapes,
//! budgets, methods and orders that nobody thought of, on the CPU and on a GPU.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{examples, limits_of, micro_batch};
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::MicroBatch;
use qlora_train::device::cpu::SCRATCH;
use qlora_train::device::{Device, Dtype, Hardware};
use qlora_train::methods::lora::{self, Targets};
use qlora_train::model::config::Config;
use qlora_train::model::load::{Quantization, Residence, ScaleForm, load};
use qlora_train::model::quantize::StoreForm;
use qlora_train::model::synthetic;
use qlora_train::model::tokens::Limits;
use qlora_train::model::workspace::Purpose;
use qlora_train::ops::dropout::Draw;
use qlora_train::optim::adamw::{Moments, Settings};
use qlora_train::quant::Kind;
use qlora_train::random::{self, Random};
use qlora_train::train::plan::{Job, Method, Plan, plan};
use qlora_train::train::session::Session;

/// Numbers drawn one after the other.
struct Dice {
    random: Random,
    position: u64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        Self { random: Random::new(seed, random::Purpose::Shuffle, 0), position: 0 }
    }

    fn below(&mut self, end: usize) -> usize {
        self.position += 1;
        self.random.u32_at(self.position) as usize % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A model and a run on it.
struct Case {
    config: serde_json::Value,
    quantization: Quantization,
    form: ScaleForm,
    /// Whether the head is in four bits, too.
    head: bool,
    lora: lora::Settings,
    moments: Moments,
    window: Vec<MicroBatch>,
    limits: Limits,
}

impl Case {
    fn draw(dice: &mut Dice) -> Self {
        let head_dim = dice.one_of(&[16, 32]);
        let kv_heads = dice.one_of(&[1, 2]);
        let heads = kv_heads * dice.one_of(&[1, 2, 3]);
        let hidden = 64 * (1 + dice.below(2));
        let vocab = 96 + 8 * dice.below(8);
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "head_dim": head_dim,
            "hidden_size": hidden,
            "intermediate_size": 64 * (1 + dice.below(3)),
            "num_hidden_layers": 1 + dice.below(6),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "attention_bias": dice.below(2) == 0,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": dice.below(2) == 0,
            "vocab_size": vocab,
        });
        let window: Vec<MicroBatch> = (0..1 + dice.below(4)).map(|_| micro(dice, vocab)).collect();
        let mut limits = Limits { tokens: 1, sequences: 1, targets: 1 };
        for of in window.iter().map(limits_of) {
            limits.tokens = limits.tokens.max(of.tokens);
            limits.sequences = limits.sequences.max(of.sequences);
            limits.targets = limits.targets.max(of.targets);
        }
        Self {
            config,
            quantization: Quantization::FourBit(Kind::Nf4, ScaleForm::Nested),
            form: dice.one_of(&[ScaleForm::Plain, ScaleForm::Nested]),
            head: dice.below(3) == 0,
            lora: lora::Settings {
                rank: 1 + dice.below(12),
                alpha: 16.0,
                dropout: dice.one_of(&[0.0, 0.1]),
                targets: match dice.below(2) {
                    0 => Targets::AllLinear,
                    _ => Targets::Named(vec!["q_proj".to_owned(), "down_proj".to_owned()]),
                },
            },
            moments: dice.one_of(&[Moments::F32, Moments::EightBit]),
            window,
            limits,
        }
    }
}

/// Records of any length behind each other.
fn micro(dice: &mut Dice, vocab: usize) -> MicroBatch {
    let mut rows = Vec::new();
    for _ in 0..1 + dice.below(3) {
        let ids: Vec<usize> = (0..2 + dice.below(40)).map(|_| dice.below(vocab)).collect();
        let labels: Vec<i64> = ids.iter().map(|id| *id as i64).collect();
        rows.push(serde_json::json!({ "input_ids": ids, "labels": labels }));
    }
    micro_batch(&examples(&rows))
}

/// What a device is, and how it is opened with so many bytes.
struct On<'a> {
    hardware: Hardware,
    dtype: Dtype,
    open: &'a dyn Fn(u64) -> Device,
}

/// Bytes by label, and all of them together.
fn taken(device: &Device) -> (BTreeMap<&'static str, u64>, u64) {
    let report = device.report();
    let labels = report.labels.iter().map(|(label, usage)| (*label, usage.peak));
    (labels.collect(), report.total.peak)
}

impl Case {
    /// Plans within a share of what keeping everything takes, runs, and compares. Gives the plan.
    fn check(&self, on: &On, folder: &Path, share: f64, residence: Option<Residence>) -> Plan {
        let config = Config::read(&folder.join("config.json")).unwrap();
        let weights = Weights::single(&folder.join("model.safetensors")).unwrap();
        let method = Method::Lora(&self.lora);
        let job = Job { weights: Some(&weights), residence, ..self.job(&config, &method, on) };
        let largest = plan(&Job { residence: Some(Residence::Resident), ..job }, u64::MAX).unwrap();
        let planned = plan(&job, (largest.total() as f64 * share) as u64).unwrap();
        let planned = if planned.fits() { planned } else { plan(&job, planned.total()).unwrap() };
        assert!(planned.fits(), "the smallest plan fits into what it takes");
        // Not a byte more than the plan says.
        let device = (on.open)(planned.total());
        self.run(&device, &config, &weights, &planned);
        let report = &planned.report;
        let labels = report.labels.iter().map(|(label, usage)| (*label, usage.peak)).collect();
        assert_eq!(taken(&device), (labels, planned.total()), "{:?}", planned.keep);
        assert_eq!(device.host_report().total.peak, planned.host, "{:?}", planned.keep);
        planned
    }

    /// Of shapes alone.
    fn job<'a>(&self, config: &'a Config, method: &'a Method<'a>, on: &On) -> Job<'a> {
        Job {
            config,
            weights: None,
            quantization: self.quantization,
            method,
            residence: None,
            limits: self.limits,
            window: self.window.len(),
            moments: self.moments,
            host_budget: u64::MAX,
            hardware: on.hardware,
            dtype: on.dtype,
        }
    }

    fn run(&self, device: &Device, config: &Config, weights: &Weights, planned: &Plan) {
        let (config, residence) = (config.clone(), planned.residence);
        let mut decoder =
            load(device, config, Some(weights), self.quantization, residence).unwrap();
        let index = lora::attach(&mut decoder, &self.lora).unwrap().index;
        let scratch = planned.report.labels.get(SCRATCH).map_or(0, |usage| usage.peak);
        device.reserve_scratch(scratch as usize).unwrap();
        let purpose = Purpose::Training(planned.keep);
        let mut session =
            Session::new(device.clone(), decoder, index, self.limits, purpose).unwrap();
        lora::initialize(device, &mut session.params, 1);
        let settings = Settings {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        };
        let mut optimizer = session.optimizer(settings, self.moments, planned.paging).unwrap();
        for step in 1..=2 {
            let done = session.gradient(&self.window, Draw { seed: 1, stream: 0 }).unwrap();
            let norm = optimizer.step(device, &mut session.params, 1e-3, step).unwrap();
            assert!(done.loss.is_finite() && norm.is_finite(), "{} {norm}", done.loss);
        }
        session.evaluate(&self.window[0]).unwrap();
        device.synchronize().unwrap();
    }
}

/// Runs `count` cases, each within three budgets; gives how many were streamed, in several lanes, and
/// with inputs that wait in host memory.
fn check_cases(seed: u64, count: usize, on: &On) -> [usize; 3] {
    let mut dice = Dice::new(seed);
    let (mut streamed, mut lanes, mut parked) = (0, 0, 0);
    for _ in 0..count {
        let (case, folder) = (Case::draw(&mut dice), tempfile::tempdir().unwrap());
        let path = folder.path().join("config.json");
        std::fs::write(&path, case.config.to_string()).unwrap();
        let config = Config::read(&path).unwrap();
        let how = StoreForm { kind: Kind::Nf4, scales: case.form, head: case.head };
        let store = folder.path().join("model.safetensors");
        synthetic::write(&store, &config, how, 7, |_, _| Ok(())).unwrap();
        let some = 0.3 + 0.1 * dice.below(9) as f64;
        for (share, residence) in [(some, None), (0.05, None), (2.0, Some(Residence::Streamed))] {
            let planned = case.check(on, folder.path(), share, residence);
            streamed += usize::from(planned.residence == Residence::Streamed);
            lanes += usize::from(planned.keep.lanes > 1);
            parked += usize::from(planned.keep.parked);
        }
    }
    [streamed, lanes, parked]
}

#[test]
fn two_hundred_runs_on_the_cpu_take_what_was_planned() {
    for (dtype, seed) in [(Dtype::Bf16, 1), (Dtype::F32, 2)] {
        let hardware = Hardware::Cpu { threads: 2 };
        let open = |limit| Device::cpu(2, dtype, limit);
        let [streamed, lanes, parked] = check_cases(seed, 34, &On { hardware, dtype, open: &open });
        assert!(streamed > 40 && streamed < 102, "{streamed} of 102 were streamed");
        assert!(lanes > 15, "{lanes} of 102 in several lanes");
        assert_eq!(parked, 0, "there is no other memory beside that of the CPU");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn runs_on_a_gpu_take_what_was_planned() {
    // Opened once before, so that the driver of the test is the one that is found.
    drop(common::gpu());
    let open = |limit| Device::cuda(0, Some(limit)).unwrap();
    let hardware = Hardware::Cuda { ordinal: 0, capability: Some((8, 6)) };
    let [streamed, _, parked] =
        check_cases(3, 3, &On { hardware, dtype: Dtype::Bf16, open: &open });
    assert!(streamed > 0 && parked > 0, "{streamed} streamed, {parked} parked");
}

#[test]
fn what_waits_in_host_memory_has_a_budget_of_its_own() {
    let (mut dice, folder) = (Dice::new(4), tempfile::tempdir().unwrap());
    let open = |_| unreachable!("nothing runs");
    let hardware = Hardware::Cuda { ordinal: 0, capability: Some((8, 6)) };
    let on = On { hardware, dtype: Dtype::Bf16, open: &open };
    let mut parked = 0;
    for _ in 0..20 {
        let case = Case::draw(&mut dice);
        let path = folder.path().join("config.json");
        std::fs::write(&path, case.config.to_string()).unwrap();
        let (config, method) = (Config::read(&path).unwrap(), Method::Lora(&case.lora));
        let job = case.job(&config, &method, &on);
        let smallest = plan(&job, 0).unwrap();
        let fits = plan(&job, smallest.total()).unwrap();
        assert!(fits.fits() && fits.host <= smallest.host);
        if fits.host > 0 {
            parked += 1;
            let short = Job { host_budget: fits.host - 1, ..job };
            let less = plan(&short, smallest.total()).unwrap();
            assert!(!less.fits() || less.host < fits.host, "{less:?}");
        }
    }
    assert!(parked > 5, "{parked} of 20 let something wait");
}
