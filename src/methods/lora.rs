//! LoRA: low-rank updates beside frozen linear maps (Hu et al., arXiv 2106.09685).
//!
//! A new update starts as PEFT's does: A uniform in ±1/√in (Kaiming with a = √5), B zero, so that
//! the model starts as it was. Draws are counted by matrix and position and depend on nothing else.

use std::collections::BTreeMap;

use crate::checkpoint::adapter::{Adapter, AdapterConfig, Scaling, TargetModules, tensor_names};
use crate::device::Device;
use crate::error::{Error, Place};
use crate::model::decoder::Decoder;
use crate::model::linear::{Linear, Lora};
use crate::params::{Entry, Index, Params};
use crate::random::{Purpose, Random};

/// Which linear maps get an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every one but the head.
    AllLinear,
    /// Those named, by whole name or by what it ends in after a dot.
    Named(Vec<String>),
}

/// A new adapter as the user wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// R.
    pub rank: usize,
    /// α; the update is multiplied by α/R.
    pub alpha: f64,
    /// Probability with which a number of an input does not reach A in training.
    pub dropout: f64,
    /// Where it attaches.
    pub targets: Targets,
}

/// What has been attached.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The trainable matrices.
    pub index: Index,
    /// The adapter as its file will describe it.
    pub config: AdapterConfig,
}

/// Attaches new updates to `decoder`.
///
/// # Errors
/// A target that no linear map answers to.
pub fn attach(decoder: &mut Decoder, settings: &Settings) -> Result<Attached, Error> {
    if let Targets::Named(names) = &settings.targets {
        check_targets(decoder, names)?;
    }
    let mut index = Index::default();
    let scale = settings.alpha / settings.rank as f64;
    for linear in linears(decoder).filter(|linear| settings.targets.include(&linear.name)) {
        add(&mut index, linear, settings.rank, scale, settings.dropout);
    }
    let config = AdapterConfig {
        base_model: None,
        rank: settings.rank,
        alpha: settings.alpha,
        dropout: settings.dropout,
        scaling: Scaling::Rank,
        target_modules: settings.targets.for_file(decoder),
        rank_pattern: Vec::new(),
        alpha_pattern: Vec::new(),
        unknown: Vec::new(),
    };
    Ok(Attached { index, config })
}

/// Attaches the updates of an existing adapter, read from `folder`, to `decoder`; `dropout` is for
/// further training.
///
/// # Errors
/// A module that the decoder does not have, or that has another size.
pub fn attach_adapter(
    decoder: &mut Decoder,
    adapter: &Adapter,
    folder: &std::path::Path,
    dropout: f64,
) -> Result<Attached, Error> {
    let mut index = Index::default();
    let mut found = 0;
    for linear in linears(decoder) {
        let Some(pair) = adapter.modules.get(&linear.name) else { continue };
        let (rank, scale) = (pair.rank, adapter.config.scale_of(&linear.name));
        if [pair.outputs, pair.inputs] != [linear.weight.rows, linear.weight.cols] {
            let what = format!(
                "is for a map of {} x {}, the model's has {} x {}: it belongs to another model",
                pair.outputs, pair.inputs, linear.weight.rows, linear.weight.cols
            );
            return Err(Error::input(Place::file(folder).tensor(&linear.name), what));
        }
        add(&mut index, linear, rank, scale, dropout);
        found += 1;
    }
    if found < adapter.modules.len() {
        let names: Vec<_> = linears(decoder).map(|linear| linear.name.clone()).collect();
        let stranger = adapter.modules.keys().find(|name| !names.contains(name));
        let stranger = stranger.expect("a module that was not found");
        let what = "the model has no linear map of this name: the adapter belongs to another model";
        return Err(Error::input(Place::file(folder).tensor(stranger), what));
    }
    let target_modules = updated(decoder);
    Ok(Attached {
        index,
        config: AdapterConfig { dropout, target_modules, ..adapter.config.clone() },
    })
}

/// Sets the values of a new adapter.
pub fn initialize(device: &Device, params: &mut Params, seed: u64) {
    let Params { index, values, .. } = params;
    device.zero(values);
    for (number, entry) in index.entries().iter().enumerate().filter(|(_, entry)| is_a(entry)) {
        let draw = Random::new(seed, Purpose::Init, number as u32);
        let bound = 1.0 / (entry.shape[1] as f32).sqrt();
        let value = |i| bound * (2.0 * draw.uniform_at(i as u64) - 1.0);
        let drawn: Vec<f32> = (0..entry.range.len()).map(value).collect();
        device.upload_at(&drawn, values, entry.range.start);
    }
}

/// Sets the values of an existing adapter.
pub fn restore(device: &Device, params: &mut Params, adapter: &Adapter) {
    let Params { index, values, .. } = params;
    device.zero(values);
    for (entry, source) in matched(index.entries(), adapter) {
        device.upload_at(source, values, entry.range.start);
    }
}

/// Refuses unless `adapter` holds the very bits of `params`, all of them; says where it does not.
///
/// # Errors
/// A tensor that is missing or another one.
pub fn compare(device: &Device, params: &Params, adapter: &Adapter) -> Result<(), String> {
    let mut values = Vec::new();
    let entries = params.index().entries();
    let mut found = 0;
    for (entry, source) in matched(entries, adapter) {
        values.resize(source.len(), 0.0_f32);
        device.download_at(&params.values, entry.range.start, &mut values);
        let same = values.iter().zip(source).all(|(a, b)| a.to_bits() == b.to_bits());
        if !same {
            return Err(format!("{} is not what was written", entry.name));
        }
        found += 1;
    }
    match found == entries.len() {
        true => Ok(()),
        false => Err(format!("{found} of {} adapter tensors are there", entries.len())),
    }
}

/// Entries that `adapter` has, with its values of them.
fn matched<'a>(
    entries: &'a [Entry],
    adapter: &'a Adapter,
) -> impl Iterator<Item = (&'a Entry, &'a [f32])> {
    let tensors: BTreeMap<String, &[f32]> = adapter
        .modules
        .iter()
        .flat_map(|(module, pair)| {
            let [a, b] = tensor_names(module);
            [(a, pair.a.as_slice()), (b, pair.b.as_slice())]
        })
        .collect();
    let values = move |entry: &'a Entry| Some((entry, *tensors.get(&entry.name)?));
    entries.iter().filter_map(values)
}

fn is_a(entry: &Entry) -> bool {
    entry.name.ends_with(".lora_A.weight")
}

fn linears(decoder: &mut Decoder) -> impl Iterator<Item = &mut Linear> {
    decoder.layers.iter_mut().flat_map(|block| block.linears_mut())
}

fn add(index: &mut Index, linear: &mut Linear, rank: usize, scale: f64, dropout: f64) {
    let [a, b] = tensor_names(&linear.name);
    linear.lora = Some(Lora {
        stream: index.entries().len() as u64,
        a: index.push(a, [rank, linear.weight.cols]),
        b: index.push(b, [linear.weight.rows, rank]),
        rank,
        scale: scale as f32,
        dropout: dropout as f32,
    });
}

impl Targets {
    fn include(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Named(names) => names.iter().any(|name| is_named(module, name)),
        }
    }

    /// Names as PEFT's file has them: `all-linear` spelled out.
    fn for_file(&self, decoder: &mut Decoder) -> TargetModules {
        let mut names = match self {
            Self::Named(names) => names.clone(),
            Self::AllLinear => linears(decoder).map(|linear| last_part(&linear.name)).collect(),
        };
        names.sort();
        names.dedup();
        TargetModules::Suffixes(names)
    }
}

/// Names by which PEFT finds the maps with an update and no others: their last parts, or, where these
/// say too much (an adapter of some layers only), whole names.
fn updated(decoder: &mut Decoder) -> TargetModules {
    let (with, without): (Vec<_>, Vec<_>) =
        linears(decoder).partition(|linear| linear.lora.is_some());
    let mut names: Vec<_> = with.iter().map(|linear| last_part(&linear.name)).collect();
    if without.iter().any(|linear| names.contains(&last_part(&linear.name))) {
        names = with.iter().map(|linear| linear.name.clone()).collect();
    }
    names.sort();
    names.dedup();
    TargetModules::Suffixes(names)
}

fn is_named(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn last_part(module: &str) -> String {
    module.rsplit('.').next().unwrap_or(module).to_owned()
}

fn check_targets(decoder: &mut Decoder, names: &[String]) -> Result<(), Error> {
    for name in names {
        if linears(decoder).any(|linear| is_named(&linear.name, name)) {
            continue;
        }
        let mut known: Vec<_> = linears(decoder).map(|linear| last_part(&linear.name)).collect();
        known.sort();
        known.dedup();
        let what = format!(
            "no linear map is called {}: name some of {}, or all-linear",
            crate::error::escape(name),
            known.join(", ")
        );
        return Err(Error::input(Place::flag("--target-modules"), what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_matches_whole_parts_only() {
        assert!(is_named("model.layers.0.self_attn.q_proj", "q_proj"));
        assert!(is_named("model.layers.0.self_attn.q_proj", "self_attn.q_proj"));
        assert!(is_named("q_proj", "q_proj"));
        assert!(!is_named("model.layers.0.self_attn.qq_proj", "q_proj"));
    }
}
