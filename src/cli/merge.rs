//! `merge`: base and adapter as one model in bf16.
//!
//! W' = W + s·B·A, in f32, rounded once. W is the weight that the adapter was trained on: under
//! `--quantization nf4` (as in training) the decoded 4-bit value, under `none` the original. One
//! matrix is in memory at a time. A small update can vanish in the rounding to bf16; how much of it
//! is left is measured and told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use half::bf16;
use qlora_train::checkpoint::adapter::{Adapter, LoraPair};
use qlora_train::checkpoint::atomic;
use qlora_train::checkpoint::bitsandbytes::{CodeBook, FourBit, Scales};
use qlora_train::checkpoint::folder::OutputFolder;
use qlora_train::checkpoint::tensors::DType;
use qlora_train::checkpoint::writer::{Align, TensorSpec, TensorWriter};
use qlora_train::device::{Device, Dtype, Hardware};
use qlora_train::error::{Error, Place};
use qlora_train::json;
use qlora_train::methods::lora;
use qlora_train::model::load::{Quantization, Residence, ScaleForm, load, tables};
use qlora_train::model::quantize::{NestedScales, encode};
use qlora_train::quant::{self, Kind};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::flags::{BaseFlags, DeviceFlags, ForeignFlags};
use super::opened::{Opened, open};
use super::quantize::groups;
use super::table::mib;
use super::{copies, output, signals};

/// Flags of `merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// Model folder, .safetensors file, or org/name in the local cache
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Adapter folder
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    adapter: Option<PathBuf>,
    /// Where the folder goes; absent or empty
    #[arg(
        long,
        visible_alias = "output-dir",
        value_name = "DIR",
        required_unless_present = "config"
    )]
    output: Option<PathBuf>,
    /// Settings from a file, in snake_case; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    foreign: ForeignFlags,
    #[command(flatten)]
    base: BaseFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

/// Merges.
///
/// # Errors
/// Whatever is wrong with model or adapter; a folder that holds something.
pub fn run(args: &MergeArgs) -> anyhow::Result<()> {
    args.device.start_threads("merge")?;
    let missing = |name: &str| Error::input(Place::flag(name), "missing");
    let opened = open(args.model.as_deref().ok_or_else(|| missing("MODEL"))?)?;
    let adapter_folder = args.adapter.as_deref().ok_or_else(|| missing("--adapter"))?;
    let path = args.output.as_deref().ok_or_else(|| missing("--output"))?;
    let adapter = opened.adapter(adapter_folder, args.foreign)?;
    let merge = Merge {
        shapes: shapes(&opened, &adapter, adapter_folder)?,
        opened: &opened,
        adapter: &adapter,
        quantization: args.base.quantization(),
    };
    merge.tell_base();
    let stop = signals::watch()?;
    let mut folder = OutputFolder::create(path)?;
    let file = folder.file("model.safetensors");
    let loss = merge.write(&file, || signals::check(&stop))?;
    copies::around_weights(&opened.files, &mut folder)?;
    atomic::write_bytes(&folder.file("config.json"), config(&opened)?)?;
    folder.commit();
    loss.tell();
    let size = std::fs::metadata(&file).map_err(Error::io(&file))?.len();
    output::result(format_args!("{}: {} MiB", path.display(), mib(size)))
}

/// Shapes of all linear weights; that the adapter belongs to the model is checked on the way.
fn shapes(
    opened: &Opened,
    adapter: &Adapter,
    folder: &Path,
) -> Result<BTreeMap<String, [usize; 2]>, Error> {
    let device = Device::plan(Hardware::Cpu { threads: 1 }, Dtype::Bf16, u64::MAX);
    let config = opened.config.clone();
    let mut decoder =
        load(&device, config, Some(&opened.weights), Quantization::None, Residence::Resident)?;
    lora::attach_adapter(&mut decoder, adapter, folder, 0.0)?;
    let linears = decoder.layers.iter().flat_map(|block| block.linears());
    let named = |linear: &qlora_train::model::linear::Linear| {
        (linear.name.clone(), [linear.weight.rows, linear.weight.cols])
    };
    Ok(linears.map(named).collect())
}

struct Merge<'a> {
    opened: &'a Opened,
    adapter: &'a Adapter,
    quantization: Quantization,
    shapes: BTreeMap<String, [usize; 2]>,
}

impl Merge<'_> {
    fn tell_base(&self) {
        output::note(match (self.opened.is_four_bit(), self.quantization) {
            (true, _) => "base: the model's stored 4-bit weights, decoded",
            (_, Quantization::None) => "base: the original weights (--quantization none)",
            _ => {
                "base: the weights as training in four bits sees them, decoded; --quantization \
                 none merges into the original weights"
            }
        });
    }

    fn write(&self, path: &Path, check: impl Fn() -> Result<(), Error>) -> Result<Loss, Error> {
        let groups = self.groups();
        let mut specs = Vec::new();
        for group in &groups {
            let spec = |name: &String| {
                let shape = self.shape(name)?;
                Ok(TensorSpec::new(name, DType::BF16, &shape))
            };
            specs.push(group.iter().map(spec).collect::<Result<Vec<_>, Error>>()?);
        }
        let mut writer = TensorWriter::create(path, specs, Align::Packed)?;
        let mut loss = Loss::default();
        for name in groups.iter().flatten() {
            check()?;
            let values = self.merged(name, &mut loss)?;
            writer.write(name, bytemuck::cast_slice(&values))?;
        }
        writer.finish()?;
        Ok(loss)
    }

    /// Names of the dense tensors, without the parts of quantized ones.
    fn groups(&self) -> Vec<Vec<String>> {
        let mut groups = groups(self.opened);
        for group in &mut groups {
            group.retain(|name| qlora_train::checkpoint::bitsandbytes::owner(name).is_none());
        }
        groups
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, Error> {
        Ok(match name.strip_suffix(".weight").and_then(|module| self.shapes.get(module)) {
            Some(shape) => shape.to_vec(),
            None => match self.stored(name)? {
                Some(stored) => stored.shape.to_vec(),
                None => self.opened.weights.tensor(name)?.shape.to_vec(),
            },
        })
    }

    fn merged(&self, name: &str, loss: &mut Loss) -> Result<Vec<bf16>, Error> {
        let module =
            name.strip_suffix(".weight").filter(|module| self.shapes.contains_key(*module));
        let Some(module) = module else {
            let values = match self.stored(name)? {
                Some(stored) => decode_stored(&stored),
                None => self.opened.weights.tensor(name)?.finite_f32()?,
            };
            return Ok(values.into_iter().map(bf16::from_f32).collect());
        };
        let base = self.frozen(name)?;
        let Some(pair) = self.adapter.modules.get(module) else {
            return Ok(base.into_iter().map(bf16::from_f32).collect());
        };
        let scale = self.adapter.config.scale_of(module) as f32;
        Ok(add_update(module, &base, pair, scale, loss))
    }

    /// The tensor `name`, if the model has it in four bits.
    fn stored(&self, name: &str) -> Result<Option<FourBit>, Error> {
        FourBit::find(&self.opened.weights, name, tables())
    }

    /// The weight as the forward pass sees it.
    fn frozen(&self, name: &str) -> Result<Vec<f32>, Error> {
        if let Some(stored) = self.stored(name)? {
            return Ok(decode_stored(&stored));
        }
        let tensor = self.opened.weights.tensor(name)?;
        let Quantization::FourBit(kind, form) = self.quantization else {
            return tensor.finite_f32();
        };
        let encoded = encode(&tensor, kind)?;
        let mut values = vec![0.0; tensor.elements()];
        match form {
            ScaleForm::Plain => {
                decode(kind, &encoded.codes, |block| encoded.scales[block], &mut values);
            }
            ScaleForm::Nested => {
                let nested = NestedScales::of(&encoded.scales);
                let scale = nested_scale(&nested.codes, &nested.absmax, nested.offset);
                decode(kind, &encoded.codes, scale, &mut values);
            }
        }
        Ok(values)
    }
}

fn decode_stored(stored: &FourBit) -> Vec<f32> {
    let kind = match stored.book {
        CodeBook::Nf4 => Kind::Nf4,
        CodeBook::Fp4 => Kind::Fp4,
    };
    let mut values = vec![0.0; stored.shape[0] * stored.shape[1]];
    match &stored.scales {
        Scales::Plain(bytes) => {
            let scales: &[[u8; 4]] = bytes.as_chunks().0;
            decode(kind, &stored.codes, |block| f32::from_le_bytes(scales[block]), &mut values);
        }
        Scales::Nested { absmax, nested_absmax, offset } => {
            decode(kind, &stored.codes, nested_scale(absmax, nested_absmax, *offset), &mut values);
        }
    }
    values
}

fn nested_scale(codes: &[u8], absmax: &[f32], offset: f32) -> impl Fn(usize) -> f32 + Sync {
    let map = quant::SIGNED.values();
    move |block| map[codes[block] as usize] * absmax[block / quant::NESTED_BLOCK] + offset
}

/// Values that one task decodes: whole blocks.
const PIECE: usize = 64 * 1024;

fn decode(kind: Kind, codes: &[u8], scale: impl Fn(usize) -> f32 + Sync, values: &mut [f32]) {
    let pieces = values.par_chunks_mut(PIECE).enumerate();
    pieces.for_each(|(i, out)| quant::decode_f32(kind, codes, &scale, i * PIECE, out));
}

/// W + s·B·A, rounded.
fn add_update(
    module: &str,
    base: &[f32],
    pair: &LoraPair,
    scale: f32,
    loss: &mut Loss,
) -> Vec<bf16> {
    let mut merged = vec![bf16::ZERO; base.len()];
    let rows = merged.par_chunks_mut(pair.inputs).zip(base.par_chunks(pair.inputs));
    let sums: Vec<_> = rows
        .enumerate()
        .map(|(row, (out, base))| {
            let mut update = vec![0.0f32; pair.inputs];
            for (b, a) in pair.b[row * pair.rank..].iter().zip(pair.a.chunks_exact(pair.inputs)) {
                update.iter_mut().zip(a).for_each(|(sum, a)| *sum += scale * b * a);
            }
            let mut sums = Sums::default();
            for ((out, base), update) in out.iter_mut().zip(base).zip(update) {
                *out = bf16::from_f32(base + update);
                sums.add(*base, update, *out);
            }
            sums
        })
        .collect();
    // In the order of the rows, so that the figure does not depend on the threads.
    let total = sums.into_iter().fold(Sums::default(), Sums::plus);
    loss.add(module, total);
    merged
}

/// How an update fares in the rounding: Σ update², and Σ of what of it arrived · update.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    update: f64,
    arrived: f64,
}

impl Sums {
    fn add(&mut self, base: f32, update: f32, merged: bf16) {
        let arrived = merged.to_f32() - bf16::from_f32(base).to_f32();
        self.update += f64::from(update) * f64::from(update);
        self.arrived += f64::from(arrived) * f64::from(update);
    }

    fn plus(self, other: Self) -> Self {
        Self { update: self.update + other.update, arrived: self.arrived + other.arrived }
    }

    /// The share of the update that is left, along its own direction.
    fn share(self) -> f64 {
        if self.update == 0.0 { 1.0 } else { self.arrived / self.update }
    }
}

/// What rounding left of the updates.
#[derive(Debug, Default)]
struct Loss {
    all: Sums,
    /// The module that fared worst, with its share.
    worst: Option<(String, f64)>,
}

/// Below this share an update counts as lost.
const LOST: f64 = 0.5;

impl Loss {
    fn add(&mut self, module: &str, sums: Sums) {
        self.all = self.all.plus(sums);
        if self.worst.as_ref().is_none_or(|(_, share)| sums.share() < *share) {
            self.worst = Some((module.to_owned(), sums.share()));
        }
    }

    fn tell(&self) {
        let Some((module, worst)) = &self.worst else {
            return;
        };
        let percent = |share: f64| 100.0 * share;
        output::note(format_args!(
            "rounding to bf16 leaves {:.1} % of the update; least at {module}: {:.1} %",
            percent(self.all.share()),
            percent(*worst)
        ));
        if *worst < LOST {
            output::warn(format_args!(
                "the update at {module} is too small for bf16 and mostly vanishes: serve base and \
                 adapter side by side instead"
            ));
        }
    }
}

fn config(opened: &Opened) -> Result<String, Error> {
    let mut config: Map<String, Value> = json::read_object(&opened.files.config)?;
    config.remove("quantization_config");
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.to_owned(), "bfloat16".into());
    Ok(format!("{:#}\n", Value::Object(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> LoraPair {
        LoraPair {
            rank: 2,
            inputs: 3,
            outputs: 2,
            a: vec![1., 2., 3., 4., 5., 6.],
            b: vec![1., 0.5, -1., 2.],
        }
    }

    #[test]
    fn the_update_is_scale_times_b_times_a() {
        let mut loss = Loss::default();
        let merged = add_update("m", &[1.0; 6], &pair(), 2.0, &mut loss);
        let merged: Vec<f32> = merged.into_iter().map(bf16::to_f32).collect();
        assert_eq!(merged, [7.0, 10.0, 13.0, 15.0, 17.0, 19.0]);
        assert_eq!(loss.all.share(), 1.0);
    }

    #[test]
    fn an_update_that_vanishes_is_noticed() {
        let mut loss = Loss::default();
        let merged = add_update("m", &[1.0; 6], &pair(), 1e-6, &mut loss);
        assert!(merged.iter().all(|value| value.to_f32() == 1.0));
        assert!(loss.worst.unwrap().1 < LOST);
    }
}
