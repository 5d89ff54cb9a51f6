//! The tensors of an adapter: pairs A and B by module, every one accounted for.

use std::collections::BTreeMap;
use std::path::Path;

use super::{AdapterConfig, PREFIX, Provenance, TENSOR_FILE, tensor_names};
use crate::checkpoint::tensors::{Tensor, TensorFile};
use crate::error::{Error, Place};

/// LoRA's two matrices of one linear, in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    /// Rank R.
    pub rank: usize,
    /// Inputs of the linear.
    pub inputs: usize,
    /// Outputs of the linear.
    pub outputs: usize,
    /// A, `[rank, inputs]`.
    pub a: Vec<f32>,
    /// B, `[outputs, rank]`.
    pub b: Vec<f32>,
}

/// Reads the tensor file of the adapter in `folder`.
pub(super) fn read(
    folder: &Path,
    config: &AdapterConfig,
) -> Result<(BTreeMap<String, LoraPair>, Provenance), Error> {
    let path = folder.join(TENSOR_FILE);
    if !path.exists() {
        return Err(Error::input(&path, why_missing(folder)));
    }
    let file = TensorFile::open(path)?;
    let mut modules = BTreeMap::new();
    for tensor in file.tensors() {
        let module = module_of(&tensor)?;
        if !modules.contains_key(module) {
            modules.insert(module.to_owned(), read_pair(&file, module, config)?);
        }
    }
    if modules.is_empty() {
        return Err(Error::input(file.path(), "holds no LoRA matrices"));
    }
    Ok((modules, Provenance::of(file.metadata())))
}

fn why_missing(folder: &Path) -> &'static str {
    if folder.join("adapter_model.bin").exists() {
        "missing, there is only adapter_model.bin, a pickle, which is never opened: save the \
         adapter again with a current peft"
    } else {
        "missing: an adapter folder holds adapter_config.json and adapter_model.safetensors"
    }
}

/// The module that a tensor belongs to, by its name.
fn module_of<'a>(tensor: &Tensor<'a>) -> Result<&'a str, Error> {
    let module = tensor.name.strip_prefix(PREFIX).and_then(|name| {
        name.strip_suffix(".lora_A.weight").or_else(|| name.strip_suffix(".lora_B.weight"))
    });
    module.filter(|m| !m.is_empty()).ok_or_else(|| {
        let what = format!(
            "not a LoRA matrix of a linear layer, expected {PREFIX}MODULE.lora_A.weight or \
             .lora_B.weight: other kinds of adapter cannot be read"
        );
        Error::input(tensor.place(), what)
    })
}

fn read_pair(file: &TensorFile, module: &str, config: &AdapterConfig) -> Result<LoraPair, Error> {
    let [name_a, name_b] = tensor_names(module);
    let (a, b) = (half(file, &name_a)?, half(file, &name_b)?);
    let ([rank, inputs], [outputs, columns]) = (matrix(&a)?, matrix(&b)?);
    let expected = config.rank_of(module);
    if rank != expected {
        let what = format!("rank {rank}, expected {expected} by adapter_config.json");
        return Err(Error::input(a.place(), what));
    }
    if columns != rank {
        let what = format!("{columns} columns, expected the rank {rank} of lora_A");
        return Err(Error::input(b.place(), what));
    }
    Ok(LoraPair { rank, inputs, outputs, a: a.finite_f32()?, b: b.finite_f32()? })
}

fn half<'a>(file: &'a TensorFile, name: &str) -> Result<Tensor<'a>, Error> {
    file.find(name).ok_or_else(|| {
        let place = Place::file(file.path()).tensor(name);
        Error::input(place, "missing, its other half is there: the file is incomplete")
    })
}

/// The two sizes of a matrix that has elements.
fn matrix(tensor: &Tensor<'_>) -> Result<[usize; 2], Error> {
    match *tensor.shape {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => {
            let what = format!("shape {:?}, expected a matrix", tensor.shape);
            Err(Error::input(tensor.place(), what))
        }
    }
}
