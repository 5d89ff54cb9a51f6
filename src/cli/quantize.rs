//! `quantize`: the model as a folder in four bits, in bitsandbytes' layout.
//!
//! Tensor by tensor: one matrix is in memory at a time. The file holds embeddings, then the layers
//! one after the other, then the last norm and the head, which is the order of a step. Norms,
//! embeddings and head stay as they are, but for a head that `--quantize-head` names. What a run computes from the result is bit for bit what it
//! computes when it quantizes the model itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use qlora_train::checkpoint::atomic;
use qlora_train::checkpoint::bitsandbytes::{self, NewScales, NewWeight};
use qlora_train::checkpoint::folder::OutputFolder;
use qlora_train::checkpoint::tensors::{DType, Tensor};
use qlora_train::checkpoint::writer::{Align, TensorSpec, TensorWriter};
use qlora_train::device::{Device, Dtype, Hardware};
use qlora_train::error::{Error, Place};
use qlora_train::json;
use qlora_train::model::config::Config;
use qlora_train::model::fingerprint;
use qlora_train::model::load::{Quantization, Residence, ScaleForm, load, tables};
use qlora_train::model::quantize::{NestedScales, StoreForm, book_of, encode, scale_kind_of};
use qlora_train::model::synthetic;
use serde_json::Value;

use super::flags::{BaseFlags, DeviceFlags};
use super::opened::{Opened, open, read_config};
use super::table::mib;
use super::{copies, output, signals};

/// Flags of `quantize`.
#[derive(Debug, Clone, Args)]
pub struct QuantizeArgs {
    /// Model folder, .safetensors file, or org/name in the local cache
    #[arg(required_unless_present_any = ["config", "synthetic"])]
    model: Option<String>,
    /// Instead of a model: one of this shape, with random weights
    #[arg(long, value_name = "CONFIG.json", conflicts_with = "model")]
    synthetic: Option<PathBuf>,
    /// Seed of random weights
    #[arg(long, default_value_t = 42, value_name = "N", requires = "synthetic")]
    seed: u64,
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
    /// The head in four bits, too, where it is not the embedding: less memory, at some loss
    #[arg(long)]
    quantize_head: bool,
    #[command(flatten)]
    base: BaseFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

/// Quantizes.
///
/// # Errors
/// Whatever is wrong with the model; a folder that holds something.
pub fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    args.device.start_threads("quantize")?;
    let missing = |name: &str| Error::input(Place::flag(name), "missing");
    let path = args.output.as_deref().ok_or_else(|| missing("--output"))?;
    let Quantization::FourBit(kind, scales) = args.base.quantization() else {
        let what = "none would be a copy: choose nf4 or fp4";
        return Err(Error::input(Place::flag("--quantization"), what).into());
    };
    let form = StoreForm { kind, scales, head: args.quantize_head };
    let target = Target { path, form };
    match (&args.synthetic, &args.model) {
        (Some(config), _) => target.synthetic(config, args.seed),
        (None, Some(model)) => target.quantized(&open(model)?),
        (None, None) => Err(missing("MODEL").into()),
    }
}

/// What is to be made.
struct Target<'a> {
    path: &'a Path,
    form: StoreForm,
}

impl Target<'_> {
    fn quantized(&self, opened: &Opened) -> anyhow::Result<()> {
        if opened.is_four_bit() || opened.config.quantization.is_some() {
            let what = "is in four bits already: use it as MODEL as it is";
            return Err(Error::input(&opened.files.folder, what).into());
        }
        let stop = signals::watch()?;
        self.check_head(&opened.config)?;
        let linears = linears(opened, self.form.head)?;
        let store = Store { opened, form: self.form, linears };
        let mut folder = OutputFolder::create(self.path)?;
        let file = folder.file(WEIGHTS);
        store.write(&file, || signals::check(&stop))?;
        copies::around_weights(&opened.files, &mut folder)?;
        self.finish(folder, &opened.files.config)
    }

    fn synthetic(&self, config: &Path, seed: u64) -> anyhow::Result<()> {
        let shape = read_config(config)?;
        if shape.quantization.is_some() {
            let what = "quantization_config: give the shape of a model that is not quantized";
            return Err(Error::input(config, what).into());
        }
        self.check_head(&shape)?;
        let stop = signals::watch()?;
        let mut folder = OutputFolder::create(self.path)?;
        let file = folder.file(WEIGHTS);
        synthetic::write(&file, &shape, self.form, seed, |done, count| {
            tell_part(done, count);
            signals::check(&stop)
        })?;
        self.finish(folder, config)
    }

    /// A head that is the embedding stays as it is.
    fn check_head(&self, config: &Config) -> Result<(), Error> {
        if self.form.head && config.tied {
            let what =
                "the head of this model is its embedding, which stays as it is: leave it out";
            return Err(Error::input(Place::flag("--quantize-head"), what));
        }
        Ok(())
    }

    /// Writes the config beside the weights.
    fn finish(&self, mut folder: OutputFolder, config: &Path) -> anyhow::Result<()> {
        let (book, scales) = (book_of(self.form.kind), scale_kind_of(self.form.scales));
        let mut config = json::read_object(config)?;
        let quantization =
            bitsandbytes::quantization_config(book, scales, self.form.head, DType::BF16);
        config.insert("quantization_config".to_owned(), quantization);
        let text = format!("{:#}\n", Value::Object(config));
        atomic::write_bytes(&folder.file("config.json"), text)?;
        folder.commit();
        let file = self.path.join(WEIGHTS);
        let size = std::fs::metadata(&file).map_err(Error::io(&file))?.len();
        output::result(format_args!("{}: {} MiB", self.path.display(), mib(size)))
    }
}

/// The file with the tensors.
const WEIGHTS: &str = "model.safetensors";

fn tell_part(done: usize, count: usize) {
    output::note(format_args!("{done}/{count} parts written"));
}

/// The linear maps that a run quantizes, by the loader's own word; on the way it checks that the
/// model is whole and nothing in it is left over.
fn linears(opened: &Opened, head: bool) -> Result<BTreeMap<String, [usize; 2]>, Error> {
    let device = Device::plan(Hardware::Cpu { threads: 1 }, Dtype::Bf16, u64::MAX);
    let config = opened.config.clone();
    let decoder =
        load(&device, config, Some(&opened.weights), Quantization::None, Residence::Resident)?;
    let linears = decoder.layers.iter().flat_map(|block| block.linears());
    let named = |linear: &qlora_train::model::linear::Linear| {
        (format!("{}.weight", linear.name), [linear.weight.rows, linear.weight.cols])
    };
    let head = decoder.head.as_ref().filter(|_| head);
    let head = head.map(|head| ("lm_head.weight".to_owned(), [head.rows, head.cols]));
    Ok(linears.map(named).chain(head).collect())
}

struct Store<'a> {
    opened: &'a Opened,
    form: StoreForm,
    linears: BTreeMap<String, [usize; 2]>,
}

impl Store<'_> {
    fn write(&self, path: &Path, check: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
        let groups = groups(self.opened);
        let mut specs = Vec::new();
        for group in &groups {
            let of_group =
                group.iter().map(|name| self.specs(name)).collect::<Result<Vec<_>, _>>()?;
            specs.push(of_group.concat());
        }
        let source = fingerprint::linear_weights(&self.opened.weights)?;
        let metadata = source.map(|digest| (fingerprint::SOURCE.to_owned(), digest));
        let metadata = metadata.into_iter().collect();
        let mut writer = TensorWriter::create_with(path, specs, Align::Cache, &metadata)?;
        for (done, group) in groups.iter().enumerate() {
            check()?;
            group.iter().try_for_each(|name| self.write_one(&mut writer, name))?;
            tell_part(done + 1, groups.len());
        }
        writer.finish()
    }

    fn specs(&self, name: &str) -> Result<Vec<TensorSpec>, Error> {
        let tensor = self.opened.weights.tensor(name)?;
        tensor.expect_float()?;
        Ok(match self.linears.get(name) {
            None => vec![TensorSpec::new(name, tensor.dtype, tensor.shape)],
            Some(shape) => bitsandbytes::parts(
                name,
                *shape,
                stated_dtype(&tensor),
                book_of(self.form.kind),
                scale_kind_of(self.form.scales),
            ),
        })
    }

    fn write_one(&self, writer: &mut TensorWriter, name: &str) -> Result<(), Error> {
        let tensor = self.opened.weights.tensor(name)?;
        let Some(shape) = self.linears.get(name) else {
            return writer.write(name, tensor.data);
        };
        let encoded = encode(&tensor, self.form.kind)?;
        let nested = match self.form.scales {
            ScaleForm::Plain => None,
            ScaleForm::Nested => Some(NestedScales::of(&encoded.scales)),
        };
        let weight = NewWeight {
            book: book_of(self.form.kind),
            shape: *shape,
            dtype: stated_dtype(&tensor),
            codes: &encoded.codes,
            scales: match &nested {
                None => NewScales::Plain(&encoded.scales),
                Some(nested) => NewScales::Nested {
                    absmax: &nested.codes,
                    nested_absmax: &nested.absmax,
                    offset: nested.offset,
                },
            },
        };
        bitsandbytes::write(writer, name, &weight, tables())
    }
}

/// The type that the state names as the weight's own; it has no name for f64.
fn stated_dtype(tensor: &Tensor) -> DType {
    match tensor.dtype {
        DType::F64 => DType::F32,
        dtype => dtype,
    }
}

/// Names of the tensors in the order of a step: what stands in front of the layers, each layer, and
/// what comes behind. A second copy of a tied head and rotary tables are left out.
pub fn groups(opened: &Opened) -> Vec<Vec<String>> {
    let mut groups = vec![Vec::new(); opened.config.layers + 2];
    for name in opened.weights.names() {
        let unused =
            name.ends_with("rotary_emb.inv_freq") || opened.config.tied && name == "lm_head.weight";
        if !unused {
            groups[group_of(name, opened.config.layers)].push(name.to_owned());
        }
    }
    for group in &mut groups {
        group.sort_by_key(|name| place_of(name));
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// 0 for the embedding, i + 1 for layer i, and one more for the rest.
fn group_of(name: &str, layers: usize) -> usize {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    match layer.and_then(|number| number.parse::<usize>().ok()) {
        Some(number) if number < layers => number + 1,
        _ if name.starts_with("model.embed_tokens") => 0,
        _ => layers + 1,
    }
}

/// The order in which a layer uses its parts.
const ORDER: [&str; 15] = [
    ".input_layernorm.",
    ".q_proj.",
    ".k_proj.",
    ".v_proj.",
    ".qkv_proj.",
    ".q_norm.",
    ".k_norm.",
    ".o_proj.",
    ".post_attention_layernorm.",
    ".pre_feedforward_layernorm.",
    ".gate_proj.",
    ".up_proj.",
    ".gate_up_proj.",
    ".down_proj.",
    ".post_feedforward_layernorm.",
];

fn place_of(name: &str) -> usize {
    let place = ORDER.iter().position(|part| name.contains(part));
    // The last norm comes before the head.
    place.unwrap_or(ORDER.len() + usize::from(name.starts_with("lm_head")))
}
