//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! [`AdapterConfig`] is what the numbers depend on; [`Adapter`] adds the matrices. Whether a module
//! exists in the base model, and of which size it is, is not known here. Field and tensor names are
//! those of the `peft` package (0.21), whose files load here and which loads what is written here.

mod config;
mod fields;
mod matrices;
mod provenance;

use std::collections::BTreeMap;
use std::path::Path;

pub use config::{AdapterConfig, Scaling, TargetModules};
pub use matrices::LoraPair;
pub use provenance::Provenance;

use super::atomic;
use super::tensors::DType;
use super::writer::{Align, TensorSpec, TensorWriter};
use crate::error::Error;

/// Name of the configuration file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensor file.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// Both.
pub const FILES: [&str; 2] = [CONFIG_FILE, TENSOR_FILE];
/// What PEFT puts in front of the base model's module names.
pub const PREFIX: &str = "base_model.model.";

/// A LoRA adapter read from its folder.
#[derive(Debug)]
pub struct Adapter {
    /// The fields that matter.
    pub config: AdapterConfig,
    /// The matrices by module, named as in the base model (`model.layers.0.self_attn.q_proj`).
    pub modules: BTreeMap<String, LoraPair>,
    /// What it was made from.
    pub provenance: Provenance,
}

impl Adapter {
    /// Reads `folder` and checks all of it: every field that changes numbers is understood, every
    /// tensor belongs to a pair, shapes fit the rank, every number is finite.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let config = AdapterConfig::read(&folder.join(CONFIG_FILE))?;
        let (modules, provenance) = matrices::read(folder, &config)?;
        Ok(Self { config, modules, provenance })
    }
}

/// One tensor of an adapter to be written: its full name in the file
/// (`base_model.model.….lora_A.weight`), and its sizes.
pub type AdapterTensor<'a> = (&'a str, [usize; 2]);

/// Writes both files into `folder`, each whole or not at all; the configuration comes last, so that
/// a folder with a configuration has its tensors. `read` gives the values of a tensor by its number,
/// row-major; one tensor at a time is in memory.
pub fn write(
    folder: &Path,
    (config, provenance): (&AdapterConfig, &Provenance),
    tensors: &[AdapterTensor<'_>],
    mut read: impl FnMut(usize, &mut [f32]),
) -> Result<(), Error> {
    let spec = |(name, shape): &AdapterTensor<'_>| TensorSpec::new(*name, DType::F32, shape);
    let (specs, path) = (tensors.iter().map(spec).collect(), folder.join(TENSOR_FILE));
    let mut writer =
        TensorWriter::create_with(&path, vec![specs], Align::Packed, &provenance.metadata())?;
    let mut values = Vec::new();
    for (number, (name, [rows, columns])) in tensors.iter().enumerate() {
        values.resize(rows * columns, 0.0);
        read(number, &mut values);
        writer.write_f32(name, &values)?;
    }
    writer.finish()?;
    atomic::write_bytes(&folder.join(CONFIG_FILE), config.to_json())
}

/// Full names of the two tensors of `module`: A, then B.
pub fn tensor_names(module: &str) -> [String; 2] {
    ["A", "B"].map(|which| format!("{PREFIX}{module}.lora_{which}.weight"))
}
