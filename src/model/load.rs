//! From the tensors of a model folder to a decoder on a device.
//!
//! Weights are taken tensor by tensor and quantized in pieces on all cores, so that host memory
//! holds the quantized model and one tensor at most. Tensors that are in the wanted form already
//! (bf16, or 4-bit in bitsandbytes' layout) stay mapped on a device that shares the host's memory.
//! Every tensor of the files must be one that the decoder uses: a weight that would be ignored is
//! refused. Without files (a plan) the same calls take their shapes from the config alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;

use crate::checkpoint::bitsandbytes::{self, Tables};
use crate::checkpoint::tensors::{DType, MappedBytes, Tensor};
use crate::checkpoint::weights::Weights;
use crate::device::conveyor::{Layout, Origin, Source};
use crate::device::{Act, Buf, Device, Dtype, Hardware, HostBytes};
use crate::error::Error;
use crate::quant::{self, Kind};

use super::block::{AttentionShape, Block, Norms, Slot};
use super::config::{Config, LayerKind, Projections};
use super::declared::{Declared, LAYERS, Role};
use super::decoder::Decoder;
use super::linear::Linear;
use super::quantize::{NestedScales, check_finite, encode};
use super::table::{Rows, Table};
use super::weight::{BlockScales, Weight};
use crate::ops::attention::Heads;

/// How the frozen linear weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// As they are.
    None,
    /// In four bits.
    FourBit(Kind, ScaleForm),
}

/// How the scales of 4-bit blocks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleForm {
    /// f32.
    Plain,
    /// 8 bits with a second level.
    Nested,
}

/// Where the frozen linear weights of the layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// All of them on the device.
    Resident,
    /// Those of two layers; each layer is read from its file when its turn comes.
    Streamed,
}

/// All tensors of a model of `config`, in the order of a step but for the last norm and the head.
///
/// # Errors
/// None that a consistent config could make.
pub fn declared(config: &Config) -> Result<Vec<Declared>, Error> {
    let device = Device::plan(Hardware::Cpu { threads: 1 }, Dtype::Bf16, u64::MAX);
    let mut loader = Loader::new(&device, None, Quantization::None, Residence::Resident)?;
    loader.decoder(config.clone())?;
    Ok(loader.used)
}

/// Labels of allocations.
const BASE: &str = "base weights";
const STREAMED: &str = "streamed weights";
const TABLES: &str = "embeddings and head";
const NORMS: &str = "norms and biases";

/// The code tables that weights in files must agree with.
pub fn tables() -> Tables<'static> {
    Tables { nf4: Kind::Nf4.values(), fp4: Kind::Fp4.values(), dynamic: quant::SIGNED.values() }
}

/// Builds the decoder of `config` on `device` from `weights`, or from shapes alone on a plan.
///
/// # Errors
/// A tensor that is missing, of a wrong shape or type, not finite, or not used; one that is to be
/// streamed and is not in the form in which it is used; [`Error::OutOfMemory`].
pub fn load(
    device: &Device,
    config: Config,
    weights: Option<&Weights>,
    quantization: Quantization,
    residence: Residence,
) -> Result<Decoder, Error> {
    assert!(weights.is_some() || device.is_plan(), "only a plan can do without weights");
    let mut loader = Loader::new(device, weights, quantization, residence)?;
    let decoder = loader.decoder(config)?;
    loader.refuse_unused(&decoder.config)?;
    Ok(decoder)
}

struct Loader<'a> {
    device: &'a Device,
    weights: Option<&'a Weights>,
    quantization: Quantization,
    used: Vec<Declared>,
    map: Arc<Buf<f32>>,
    /// Where weights of layers go that do not stay.
    layout: Option<Layout>,
    /// The files that they come from.
    origins: BTreeMap<PathBuf, Arc<Origin>>,
}

impl<'a> Loader<'a> {
    fn new(
        device: &'a Device,
        weights: Option<&'a Weights>,
        quantization: Quantization,
        residence: Residence,
    ) -> Result<Self, Error> {
        let mut map = device.alloc(NORMS, 256)?;
        device.upload(quant::SIGNED.values(), &mut map);
        let layout = (residence == Residence::Streamed).then(|| Layout::new(STREAMED));
        let (used, origins, map) = (Vec::new(), BTreeMap::new(), Arc::new(map));
        Ok(Self { device, weights, quantization, used, map, layout, origins })
    }

    fn declare(&mut self, name: &str, shape: &[usize], role: Role) {
        self.used.push(Declared { name: name.to_owned(), shape: shape.to_vec(), role });
    }

    fn decoder(&mut self, config: Config) -> Result<Decoder, Error> {
        let shape = [config.vocab, config.hidden];
        self.declare("model.embed_tokens.weight", &shape, Role::Table);
        let embedding = self.table(&config, "model.embed_tokens.weight", shape)?;
        let mut layers = Vec::with_capacity(config.layers);
        for (i, kind) in config.kinds.iter().enumerate() {
            layers.push(self.block(&config, &format!("{LAYERS}{i}"), kind)?);
        }
        let norm = self.vector("model.norm.weight", config.hidden)?;
        let head = match config.tied {
            true => None,
            false => Some(self.matrix(TABLES, "lm_head.weight", shape, Quantization::None)?),
        };
        let conveyor = self.layout.take().map(|layout| layout.finish(self.device)).transpose()?;
        let conveyor = conveyor.map(Mutex::new);
        Ok(Decoder { config, embedding, layers, norm, head, conveyor })
    }

    fn block(&mut self, c: &Config, at: &str, kind: &LayerKind) -> Result<Block, Error> {
        if let Some(layout) = &mut self.layout {
            layout.begin_part();
        }
        let attention = AttentionShape {
            heads: Heads { heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim },
            scale: c.attention_scale,
            soft_cap: c.attention_soft_cap,
            window: kind.window,
            rope: kind.rope,
        };
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv: &[(&str, usize)] = match c.projections {
            Projections::Separate => &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)],
            Projections::Fused => &[("qkv_proj", q + 2 * kv)],
        };
        let gate_up: &[(&str, usize)] = match c.projections {
            Projections::Separate => &[("gate_proj", c.feed_forward), ("up_proj", c.feed_forward)],
            Projections::Fused => &[("gate_up_proj", 2 * c.feed_forward)],
        };
        let (attn, mlp) = (format!("{at}.self_attn"), format!("{at}.mlp"));
        Ok(Block {
            attention,
            activation: c.activation,
            norms: self.norms(c, at)?,
            qkv: self.slots(&attn, qkv, c.hidden, c.qkv_bias)?,
            output: self.linear(&format!("{attn}.o_proj"), [c.hidden, q], c.o_bias)?,
            gate_up: self.slots(&mlp, gate_up, c.hidden, c.mlp_bias)?,
            down: self.linear(
                &format!("{mlp}.down_proj"),
                [c.hidden, c.feed_forward],
                c.mlp_bias,
            )?,
        })
    }

    fn norms(&mut self, c: &Config, at: &str) -> Result<Norms, Error> {
        let mut vector = |name: &str, len| self.vector(&format!("{at}.{name}.weight"), len);
        let input = vector("input_layernorm", c.hidden)?;
        let query_key = match c.qk_norm {
            true => Some((
                vector("self_attn.q_norm", c.head_dim)?,
                vector("self_attn.k_norm", c.head_dim)?,
            )),
            false => None,
        };
        let after_attention = vector("post_attention_layernorm", c.hidden)?;
        let (mlp, outputs) = match c.sandwich {
            true => (
                vector("pre_feedforward_layernorm", c.hidden)?,
                Some((after_attention, vector("post_feedforward_layernorm", c.hidden)?)),
            ),
            false => (after_attention, None),
        };
        Ok(Norms { input, query_key, outputs, mlp, eps: c.eps, center: c.center })
    }

    fn slots(
        &mut self,
        at: &str,
        maps: &[(&str, usize)],
        inputs: usize,
        bias: bool,
    ) -> Result<Vec<Slot>, Error> {
        let mut start = 0;
        let mut slots = Vec::with_capacity(maps.len());
        for (name, outputs) in maps {
            let linear = self.linear(&format!("{at}.{name}"), [*outputs, inputs], bias)?;
            slots.push(Slot { linear, columns: start..start + outputs });
            start += outputs;
        }
        Ok(slots)
    }

    /// Where weights are streamed to a device with memory of its own, so are the rows of the embeddings,
    /// unless they are the head too.
    fn table(&mut self, config: &Config, name: &str, shape: [usize; 2]) -> Result<Table, Error> {
        let found = self.weights.map(|weights| weights.require(name, &shape)).transpose()?;
        let in_form = found.as_ref().is_none_or(|tensor| tensor.dtype == DType::BF16);
        if self.layout.is_none() || self.device.is_host() || config.tied || !in_form {
            return self.dense(TABLES, name, shape).map(Table::Resident);
        }
        if let Some(tensor) = found.as_ref().filter(|_| !self.device.is_plan()) {
            check_finite(tensor)?;
        }
        let bytes = found.map(|tensor| host(tensor.mapped()));
        Ok(Table::Streamed(Rows { cols: shape[1], bytes }))
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) -> Result<Linear, Error> {
        let weight = self.matrix(BASE, &format!("{name}.weight"), shape, self.quantization)?;
        let bias = match bias {
            true => Some(self.vector(&format!("{name}.bias"), shape[0])?),
            false => None,
        };
        Ok(Linear { name: name.to_owned(), weight, bias, lora: None })
    }

    /// A vector kept in f32.
    fn vector(&mut self, name: &str, len: usize) -> Result<Buf<f32>, Error> {
        let mut buf = self.device.alloc(NORMS, len)?;
        let role = if name.ends_with(".bias") { Role::Bias } else { Role::Norm };
        self.declare(name, &[len], role);
        if let Some(weights) = self.weights {
            self.device.upload(&weights.require(name, &[len])?.finite_f32()?, &mut buf);
        }
        Ok(buf)
    }

    fn matrix(
        &mut self,
        label: &'static str,
        name: &str,
        shape: [usize; 2],
        quantization: Quantization,
    ) -> Result<Weight, Error> {
        self.declare(name, &shape, if label == BASE { Role::Linear } else { Role::Head });
        if let Some(weights) = self.weights
            && let Some(found) = bitsandbytes::FourBit::find(weights, name, tables())?
        {
            return self.mapped_four_bit(label, weights, name, shape, found);
        }
        match quantization {
            Quantization::None => self.dense(label, name, shape),
            Quantization::FourBit(kind, form) => {
                let tensor = self.weights.map(|w| w.require(name, &shape)).transpose()?;
                self.quantized(label, tensor, shape, kind, form)
            }
        }
    }

    fn streams(&self, label: &'static str) -> bool {
        self.layout.is_some() && label == BASE
    }

    /// Bytes of a file: a place for them if they are streamed, else in place or copied.
    fn bring<T: Pod>(&mut self, label: &'static str, bytes: MappedBytes) -> Result<Buf<T>, Error> {
        match self.layout.as_mut().filter(|_| label == BASE) {
            None => self.device.adopt(label, host(bytes)),
            Some(layout) => {
                let source = source(&mut self.origins, &bytes)?;
                Ok(layout.place(self.device, Some(source), bytes.len() / size_of::<T>()))
            }
        }
    }

    /// Room for what is computed, or planned: `tensor` is what it is computed from.
    fn room<T: Pod>(
        &mut self,
        label: &'static str,
        tensor: Option<&Tensor>,
        len: usize,
    ) -> Result<Buf<T>, Error> {
        match (self.layout.as_mut().filter(|_| label == BASE), tensor) {
            (None, _) => self.device.alloc(label, len),
            (Some(layout), None) => Ok(layout.place(self.device, None, len)),
            (Some(_), Some(tensor)) => Err(unstreamable(tensor)),
        }
    }

    fn mapped_four_bit(
        &mut self,
        label: &'static str,
        weights: &Weights,
        name: &str,
        shape: [usize; 2],
        found: bitsandbytes::FourBit,
    ) -> Result<Weight, Error> {
        if found.shape != shape {
            let what = format!("shape {:?}, expected {shape:?}", found.shape);
            return Err(Error::input(weights.tensor(name)?.place(), what));
        }
        let codes = self.bring(label, found.codes)?;
        let scales = match found.scales {
            bitsandbytes::Scales::Plain(scales) => BlockScales::Plain(self.bring(label, scales)?),
            bitsandbytes::Scales::Nested { absmax, nested_absmax, offset } => {
                let mut nested = self.device.alloc(label, nested_absmax.len())?;
                self.device.upload(&nested_absmax, &mut nested);
                BlockScales::Nested {
                    absmax: self.bring(label, absmax)?,
                    nested_absmax: nested,
                    offset,
                    map: self.map.clone(),
                }
            }
        };
        Ok(Weight::four_bit(shape, kind_of(found.book), codes, scales))
    }

    fn quantized(
        &mut self,
        label: &'static str,
        tensor: Option<Tensor>,
        shape: [usize; 2],
        kind: Kind,
        form: ScaleForm,
    ) -> Result<Weight, Error> {
        let (device, count) = (self.device, shape[0] * shape[1]);
        let blocks = quant::blocks(count);
        let mut codes = self.room(label, tensor.as_ref(), quant::code_bytes(count))?;
        let computed = tensor.as_ref().filter(|_| !device.is_plan());
        let encoded = computed.map(|tensor| encode(tensor, kind)).transpose()?;
        if let Some(encoded) = &encoded {
            device.upload(&encoded.codes, &mut codes);
        }
        let scales = match form {
            ScaleForm::Plain => {
                let mut buf = self.room(label, tensor.as_ref(), blocks)?;
                if let Some(encoded) = &encoded {
                    device.upload(&encoded.scales, &mut buf);
                }
                BlockScales::Plain(buf)
            }
            ScaleForm::Nested => {
                let mut absmax = self.room(label, tensor.as_ref(), blocks)?;
                let mut nested_absmax = device.alloc(label, quant::nested_blocks(blocks))?;
                let nested = encoded.map(|encoded| NestedScales::of(&encoded.scales));
                if let Some(nested) = &nested {
                    device.upload(&nested.codes, &mut absmax);
                    device.upload(&nested.absmax, &mut nested_absmax);
                }
                let offset = nested.map_or(0.0, |nested| nested.offset);
                BlockScales::Nested { absmax, nested_absmax, offset, map: self.map.clone() }
            }
        };
        Ok(Weight::four_bit(shape, kind, codes, scales))
    }

    /// A matrix kept as it is: in bf16, or, on a device of f32 activations, in f32 unless the file
    /// has bf16, which f32 would only make larger.
    fn dense(
        &mut self,
        label: &'static str,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Weight, Error> {
        let [rows, cols] = shape;
        let Some(weights) = self.weights else {
            let values = Act::of(self.room(label, None, rows * cols * 2)?, Dtype::Bf16);
            return Ok(Weight::dense(rows, cols, values));
        };
        let tensor = weights.require(name, &shape)?;
        tensor.expect_float()?;
        let values = match tensor.dtype {
            DType::BF16 if self.streams(label) => {
                Act::of(self.bring(label, tensor.mapped())?, Dtype::Bf16)
            }
            DType::BF16 => self.device.adopt_dense(label, host(tensor.mapped()), Dtype::Bf16)?,
            _ if self.streams(label) => return Err(unstreamable(&tensor)),
            _ => self.converted(label, &tensor)?,
        };
        if !self.device.is_plan() {
            check_finite(&tensor)?;
        }
        Ok(Weight::dense(rows, cols, values))
    }

    fn converted(&self, label: &'static str, tensor: &Tensor) -> Result<Act, Error> {
        let dtype = match self.device.dtype() {
            Dtype::Bf16 => Dtype::Bf16,
            Dtype::F32 | Dtype::F64 => Dtype::F32,
        };
        let mut act = self.device.alloc_dense(label, tensor.elements(), dtype)?;
        if self.device.is_plan() {
            return Ok(act);
        }
        let mut values = vec![0.0f32; tensor.elements()];
        tensor.to_f32(&mut values)?;
        if dtype == Dtype::Bf16 {
            let values: Vec<half::bf16> = values.into_iter().map(half::bf16::from_f32).collect();
            self.device.upload(bytemuck::cast_slice(&values), act.bytes_mut());
        } else {
            self.device.upload(bytemuck::cast_slice(&values), act.bytes_mut());
        }
        Ok(act)
    }

    /// A tensor that nothing uses changes what the model computes elsewhere; it must not be dropped
    /// in silence. Rotary tables (computed here) and the second copy of a tied head are known.
    fn refuse_unused(&self, config: &Config) -> Result<(), Error> {
        let Some(weights) = self.weights else { return Ok(()) };
        let used: BTreeSet<&str> = self.used.iter().map(|tensor| tensor.name.as_str()).collect();
        for name in weights.names() {
            let owner = bitsandbytes::owner(name).unwrap_or(name);
            let known = used.contains(owner)
                || name.ends_with("rotary_emb.inv_freq")
                || config.tied && name == "lm_head.weight";
            if !known {
                let place = weights.tensor(name)?.place();
                let what = format!(
                    "is no part of {} as config.json describes it: check that weights and config \
                     belong together",
                    config.architecture
                );
                return Err(Error::input(place, what));
            }
        }
        Ok(())
    }
}

/// Where mapped bytes can be read again.
fn source(
    origins: &mut BTreeMap<PathBuf, Arc<Origin>>,
    bytes: &MappedBytes,
) -> Result<Source, Error> {
    let path = bytes.path().to_path_buf();
    let origin = match origins.get(&path) {
        Some(origin) => origin.clone(),
        None => origins.entry(path.clone()).or_insert(Arc::new(Origin::open(path)?)).clone(),
    };
    Ok(Source { origin, offset: bytes.offset() })
}

fn unstreamable(tensor: &Tensor) -> Error {
    let what = "is not in the form in which it is used, so it cannot be streamed: make a model in \
                four bits of it with `qlora-train quantize` and train that";
    Error::input(tensor.place(), what)
}

fn kind_of(book: bitsandbytes::CodeBook) -> Kind {
    match book {
        bitsandbytes::CodeBook::Nf4 => Kind::Nf4,
        bitsandbytes::CodeBook::Fp4 => Kind::Fp4,
    }
}

/// Mapped bytes as memory that a device may use in place.
fn host(bytes: MappedBytes) -> HostBytes {
    struct Held(MappedBytes);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Arc::new(Held(bytes))
}
