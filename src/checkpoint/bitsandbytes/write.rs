//! One quantized weight on its way into a file, as bitsandbytes itself would store it.
//!
//! The one difference: the JSON of the state ends with spaces. Its length depends on the offset,
//! which is known only after quantizing, while the header must be written before; and the spaces
//! give the next layer its alignment (see `layout`).

use super::{BLOCK, CodeBook, NESTED_BLOCK, STATE, ScaleKind, Tables, torch_name};
use crate::checkpoint::tensors::DType;
use crate::checkpoint::writer::{TensorSpec, TensorWriter};
use crate::error::Error;

/// Longest text of an f64 in the JSON: `-2.2250738585072014e-308`.
const LONGEST_NUMBER: usize = 24;

/// A weight after quantization.
#[derive(Debug, Clone, Copy)]
pub struct NewWeight<'a> {
    /// The code book.
    pub book: CodeBook,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Type of the weight before: BF16, F16 or F32.
    pub dtype: DType,
    /// Two codes a byte, the first in the high nibble.
    pub codes: &'a [u8],
    /// One scale for each [`BLOCK`] codes.
    pub scales: NewScales<'a>,
}

/// Scales of blocks, in the order of the codes.
#[derive(Debug, Clone, Copy)]
pub enum NewScales<'a> {
    /// As they are.
    Plain(&'a [f32]),
    /// Doubly quantized; meaning as in [`Scales::Nested`](super::Scales::Nested).
    Nested {
        /// Codes of the scales.
        absmax: &'a [u8],
        /// One for each [`NESTED_BLOCK`] scales.
        nested_absmax: &'a [f32],
        /// Mean of the scales.
        offset: f32,
    },
}

/// The tensors that the weight `name` of this `shape` will have, for the plan of a file.
pub fn parts(
    name: &str,
    shape: [usize; 2],
    dtype: DType,
    book: CodeBook,
    scales: ScaleKind,
) -> Vec<TensorSpec> {
    let elements = shape[0] * shape[1];
    let blocks = elements.div_ceil(BLOCK);
    let part = |suffix, dtype, n| TensorSpec::new(format!("{name}.{suffix}"), dtype, &[n]);
    let mut list = vec![
        TensorSpec::new(name, DType::U8, &[elements.div_ceil(2), 1]),
        part("quant_map", DType::F32, 16),
    ];
    match scales {
        ScaleKind::Plain => list.push(part("absmax", DType::F32, blocks)),
        ScaleKind::Nested => list.extend([
            part("absmax", DType::U8, blocks),
            part("nested_absmax", DType::F32, blocks.div_ceil(NESTED_BLOCK)),
            part("nested_quant_map", DType::F32, 256),
        ]),
    }
    // The longest JSON that this weight can get: all but the offset is known.
    let offset = (scales == ScaleKind::Nested).then_some("");
    let room = state_json(shape, dtype, book, offset).len() + LONGEST_NUMBER;
    list.push(TensorSpec::text(state_name(name, book), room));
    list
}

/// Writes all tensors of the weight `name` that [`parts`] announced.
pub fn write(
    writer: &mut TensorWriter,
    name: &str,
    weight: &NewWeight<'_>,
    tables: Tables<'_>,
) -> Result<(), Error> {
    writer.write(name, weight.codes)?;
    writer.write_f32(&format!("{name}.quant_map"), tables.codes(weight.book))?;
    let offset = match weight.scales {
        NewScales::Plain(absmax) => {
            writer.write_f32(&format!("{name}.absmax"), absmax)?;
            None
        }
        NewScales::Nested { absmax, nested_absmax, offset } => {
            writer.write(&format!("{name}.absmax"), absmax)?;
            writer.write_f32(&format!("{name}.nested_absmax"), nested_absmax)?;
            writer.write_f32(&format!("{name}.nested_quant_map"), tables.dynamic)?;
            Some(python_float(f64::from(offset)))
        }
    };
    let json = state_json(weight.shape, weight.dtype, weight.book, offset.as_deref());
    writer.write_text(&state_name(name, weight.book), &json)
}

fn state_name(name: &str, book: CodeBook) -> String {
    format!("{name}{STATE}{}", book.name())
}

/// The state as Python's `json.dumps` writes it, in bitsandbytes' order of keys.
fn state_json(shape: [usize; 2], dtype: DType, book: CodeBook, offset: Option<&str>) -> String {
    let nested = offset.map_or(String::new(), |offset| {
        format!(
            ", \"nested_blocksize\": {NESTED_BLOCK}, \"nested_dtype\": \"float32\", \
             \"nested_offset\": {offset}"
        )
    });
    format!(
        "{{\"quant_type\": \"{}\", \"blocksize\": {BLOCK}, \"dtype\": \"{}\", \
         \"shape\": [{}, {}]{nested}}}",
        book.name(),
        torch_name(dtype),
        shape[0],
        shape[1]
    )
}

/// A finite number as Python prints it: shortest digits that read back the same, an exponent of two
/// digits at least when the number is below 1e-4 or from 1e16 on.
fn python_float(value: f64) -> String {
    assert!(value.is_finite(), "{value} cannot stand in JSON");
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        format!("{value:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right-hand sides are what `repr` prints in CPython 3.
    #[test]
    fn numbers_are_spelled_as_python_spells_them() {
        let cases = [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (f64::from(0.054_918_345_f32), "0.05491834506392479"),
            (1e-4, "0.0001"),
            (9.999e-5, "9.999e-05"),
            (1e-5, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (1.5e-300, "1.5e-300"),
        ];
        for (value, text) in cases {
            assert_eq!(python_float(value), text);
        }
        assert!(python_float(-f64::MIN_POSITIVE).len() <= LONGEST_NUMBER);
    }

    #[test]
    fn the_state_is_spelled_as_bitsandbytes_spells_it() {
        assert_eq!(
            state_json([64, 172], DType::BF16, CodeBook::Nf4, Some("0.25")),
            r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 172], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}"#
        );
        assert_eq!(
            state_json([1, 2], DType::F32, CodeBook::Fp4, None),
            r#"{"quant_type": "fp4", "blocksize": 64, "dtype": "float32", "shape": [1, 2]}"#
        );
    }
}
