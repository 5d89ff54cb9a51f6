//! The 4-bit layout of bitsandbytes in safetensors files, read and written.
//!
//! A quantized weight `X.weight` of shape `[rows, columns]` (n elements) is a group of tensors:
//!
//! | tensor | elements | what |
//! |---|---|---|
//! | `X.weight` | U8 `[n/2, 1]` | codes, two a byte, the first in the high nibble |
//! | `X.weight.absmax` | F32 `[n/64]`, or U8 with double quantization | scale of each block |
//! | `X.weight.quant_map` | F32 `[16]` | the value of each code |
//! | `X.weight.nested_absmax` | F32 `[n/64/256]` | double quantization: scale of 256 scales |
//! | `X.weight.nested_quant_map` | F32 `[256]` | double quantization: value of each scale code |
//! | `X.weight.quant_state.bitsandbytes__nf4` | U8 | JSON: the rest of the state |
//!
//! scale = `nested_quant_map[absmax] * nested_absmax + nested_offset`. Counts are rounded up.
//!
//! This module knows sizes and names, not arithmetic: code tables come from the caller, and a file
//! with other tables is refused, because its numbers would silently be others. [`FourBit`] is what
//! was read, [`parts`] and [`write()`] are the way back.

mod read;
mod write;

use serde_json::{Map, Value, json};

pub use read::{FourBit, Scales};
pub use write::{NewScales, NewWeight, parts, write};

use super::tensors::DType;
use crate::error::{Error, Place, escape};
use crate::json::kind;

/// Elements under one scale.
pub const BLOCK: usize = 64;
/// Scales under one nested scale.
pub const NESTED_BLOCK: usize = 256;

const STATE: &str = ".quant_state.bitsandbytes__";

/// The two 4-bit code books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeBook {
    /// Quantiles of the normal distribution.
    Nf4,
    /// A small float.
    Fp4,
}

impl CodeBook {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

/// How the scales are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleKind {
    /// As f32.
    Plain,
    /// As bytes with scales of their own: double quantization.
    Nested,
}

/// The code tables that the caller computes with.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// Values of the NF4 codes.
    pub nf4: &'a [f32; 16],
    /// Values of the FP4 codes.
    pub fp4: &'a [f32; 16],
    /// Values of the codes of nested scales.
    pub dynamic: &'a [f32; 256],
}

impl Tables<'_> {
    fn codes(&self, book: CodeBook) -> &[f32; 16] {
        match book {
            CodeBook::Nf4 => self.nf4,
            CodeBook::Fp4 => self.fp4,
        }
    }
}

/// The weight that tensor `name` is a part of, if its name says that it is one:
/// `X.weight.absmax` belongs to `X.weight`.
pub fn owner(name: &str) -> Option<&str> {
    let suffixes = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
    suffixes
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .or_else(|| name.split_once(STATE).map(|(weight, _)| weight))
}

/// The code book of the weight that tensor `name` is the quantization state of, if it is one.
pub fn book(name: &str) -> Option<CodeBook> {
    let (_, book) = name.split_once(STATE)?;
    [CodeBook::Nf4, CodeBook::Fp4].into_iter().find(|known| known.name() == book)
}

/// The object `quantization_config` of config.json, with the fields transformers writes.
///
/// `head` says whether the head is in four bits too, `compute` in what type products are computed:
/// BF16 on current hardware.
pub fn quantization_config(book: CodeBook, scales: ScaleKind, head: bool, compute: DType) -> Value {
    // Without a list, the head is left out.
    let skipped = if head { json!([]) } else { Value::Null };
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": torch_name(compute),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": book.name(),
        "bnb_4bit_use_double_quant": scales == ScaleKind::Nested,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

/// Refuses a `quantization_config` (at `place`) other than bitsandbytes in 4 bits.
pub fn check_quantization_config(config: &Value, place: &Place) -> Result<(), Error> {
    let Value::Object(map) = config else {
        let what = format!("{}, expected an object", kind(config));
        return Err(Error::input(place.clone(), what));
    };
    expect(map, "quant_method", &json!("bitsandbytes"), place)?;
    expect(map, "load_in_4bit", &json!(true), place)?;
    if map.get("bnb_4bit_quant_storage").is_some_and(|v| !v.is_null()) {
        expect(map, "bnb_4bit_quant_storage", &json!("uint8"), place)?;
    }
    Ok(())
}

fn expect(map: &Map<String, Value>, key: &str, value: &Value, place: &Place) -> Result<(), Error> {
    let found = map.get(key).unwrap_or(&Value::Null);
    if found == value {
        return Ok(());
    }
    Err(Error::input(
        place.clone(),
        format!(
            "{key} is {}, expected {value}: give the model unquantized or in bitsandbytes' 4 bits",
            escape(&found.to_string())
        ),
    ))
}

/// PyTorch's name of a float type. Panics for others.
fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F32 => "float32",
        other => panic!("{other} is not a type of weights"),
    }
}
