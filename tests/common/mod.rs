//! What the tests of whole models share: fixtures, sessions on them, and shared data.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};

use qlora_train::checkpoint::adapter::Adapter;
use qlora_train::checkpoint::location::ModelFiles;
use qlora_train::checkpoint::tensors::TensorFile;
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::{Example, Origin};
use qlora_train::data::{MicroBatch, Row};
use qlora_train::device::{Device, Dtype};
use qlora_train::methods::lora;
use qlora_train::model::config::Config;
use qlora_train::model::load::{Quantization, Residence, ScaleForm, load};
use qlora_train::model::tokens::Limits;
use qlora_train::model::workspace::{Keep, Purpose};
use qlora_train::params::Index;
use qlora_train::quant::Kind;
use qlora_train::train::session::Session;

/// NF4 with double quantization.
pub const NF4: Quantization = Quantization::FourBit(Kind::Nf4, ScaleForm::Nested);

/// Everything kept: the usual way of training.
pub const TRAINING: Purpose = Purpose::Training(Keep::EVERYTHING);

/// A fixture's path. Tests run in the root of the repository, wherever that is: a program that is carried
/// to another machine finds it there.
pub fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures").join(name)
}

/// The folder of shared test data, where there is one.
pub fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("QLORA_SHARED").map_or(beside, PathBuf::from);
    if folder.join("data").is_dir() {
        return Some(folder);
    }
    println!("skipped: shared data absent");
    None
}

/// The CPU without a limit.
pub fn cpu(threads: usize, dtype: Dtype) -> Device {
    Device::cpu(threads, dtype, u64::MAX)
}

/// A GPU: an emulated one, which runs the kernels that ship on the CPU and checks them; with
/// `TEST_DEVICE=cuda` a real one.
#[cfg(target_os = "linux")]
pub fn gpu() -> Device {
    open_driver();
    Device::cuda(0, None).unwrap()
}

/// Opens the emulator as the driver of this process, unless the machine's own is wanted.
#[cfg(target_os = "linux")]
pub fn open_driver() {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    if is_emulated() {
        // A process that has opened a library of the driver's name finds no other driver.
        // SAFETY: it has no constructors, and its functions are those of a driver.
        let opened = unsafe { Library::open(Some(emulator()), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(opened.unwrap());
    }
}

/// Whether kernels and instructions are tested through a driver: that of a card, or the emulator in its place.
pub fn is_on_a_driver() -> bool {
    matches!(std::env::var("TEST_DEVICE").as_deref(), Ok("cuda" | "emulated-driver"))
}

/// Whether [`gpu`] is an emulated one.
pub fn is_emulated() -> bool {
    std::env::var("TEST_DEVICE").as_deref() != Ok("cuda")
}

/// What this thread has asked the emulated driver for so far; nothing of a real card.
#[cfg(target_os = "linux")]
pub fn counts() -> ptx_emu::Counts {
    let mut counts = ptx_emu::Counts::default();
    if is_emulated() {
        type Tell = unsafe extern "C" fn(*mut ptx_emu::Counts) -> i32;
        // SAFETY: the emulator has this function, which writes such a struct.
        let code = unsafe {
            let library = libloading::os::unix::Library::new(emulator()).unwrap();
            library.get::<Tell>(b"ptx_emu_counts").unwrap()(&mut counts)
        };
        assert_eq!(code, 0);
    }
    counts
}

/// The emulator as a driver, which the build has put beside this program.
pub fn emulator() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libptx_emu.so")
}

/// How a test opens a model.
pub struct Open<'a> {
    pub folder: &'a Path,
    pub adapter: Option<&'a Path>,
    pub dropout: f64,
    pub quantization: Quantization,
    pub residence: Residence,
    pub device: Device,
    pub limits: Limits,
    pub purpose: Purpose,
}

impl Open<'_> {
    /// Loads the model, attaches the adapter and takes memory.
    pub fn session(&self) -> Session {
        let files = ModelFiles::resolve(self.folder.to_str().unwrap()).unwrap();
        let config = Config::read(&files.config).unwrap();
        let weights = Weights::open(&files.weights).unwrap();
        let device = self.device.clone();
        let how = (self.quantization, self.residence);
        let mut decoder = load(&device, config, Some(&weights), how.0, how.1).unwrap();
        let adapter = self.adapter.map(|folder| (Adapter::read(folder).unwrap(), folder));
        let index = match &adapter {
            None => Index::default(),
            Some((adapter, folder)) => {
                lora::attach_adapter(&mut decoder, adapter, folder, self.dropout).unwrap().index
            }
        };
        let mut session =
            Session::new(device.clone(), decoder, index, self.limits, self.purpose).unwrap();
        if let Some((adapter, _)) = &adapter {
            lora::restore(&device, &mut session.params, adapter);
        }
        session
    }
}

/// Records with labels as examples: label i is the target of token i, −100 of none.
pub fn examples(rows: &[serde_json::Value]) -> Vec<Example> {
    let numbers = |row: &serde_json::Value, key: &str| -> Vec<i64> {
        row[key].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
    };
    let example = |row: &serde_json::Value| Example {
        tokens: numbers(row, "input_ids").iter().map(|id| *id as u32).collect(),
        supervised: numbers(row, "labels")
            .iter()
            .enumerate()
            .map(|(i, label)| i > 0 && *label >= 0)
            .collect(),
        origin: Origin { file: 0, line: 1, record: 0 },
    };
    rows.iter().map(example).collect()
}

/// All examples in one micro-batch.
pub fn micro_batch(examples: &[Example]) -> MicroBatch {
    MicroBatch::new(examples, &[Row { examples: (0..examples.len()).collect() }])
}

/// Room for `micro`.
pub fn limits_of(micro: &MicroBatch) -> Limits {
    Limits {
        tokens: micro.tokens.len(),
        sequences: micro.segments.len(),
        targets: micro.targets.len(),
    }
}

/// A tensor of a fixture as f32.
pub fn tensor(file: &TensorFile, name: &str) -> Vec<f32> {
    let tensor = file.find(name).unwrap_or_else(|| panic!("no {name}"));
    let mut values = vec![0.0; tensor.elements()];
    tensor.to_f32(&mut values).unwrap();
    values
}

/// A JSON fixture.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
