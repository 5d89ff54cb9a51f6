//! One quantized weight out of a model's tensors, every size and table checked.

use serde_json::{Map, Value};

use super::{BLOCK, CodeBook, NESTED_BLOCK, STATE, Tables};
use crate::checkpoint::tensors::{DType, MappedBytes, Tensor};
use crate::checkpoint::weights::Weights;
use crate::error::{Error, escape};
use crate::json;

/// A 4-bit weight as it lies in the file. Codes and scales stay mapped.
#[derive(Debug, Clone)]
pub struct FourBit {
    /// The code book.
    pub book: CodeBook,
    /// Rows and columns of the weight.
    pub shape: [usize; 2],
    /// The type the weight had, and that decoded values are rounded to.
    pub dtype: DType,
    /// Two codes a byte, the first in the high nibble; rows x columns of them, row-major.
    pub codes: MappedBytes,
    /// One scale for each [`BLOCK`] codes.
    pub scales: Scales,
}

/// Scales of blocks, in the order of the codes.
#[derive(Debug, Clone)]
pub enum Scales {
    /// f32, little endian, not necessarily aligned.
    Plain(MappedBytes),
    /// scale = `dynamic[absmax[i]] * nested_absmax[i / 256] + offset`.
    Nested {
        /// Codes of the scales in the dynamic table.
        absmax: MappedBytes,
        /// One for each [`NESTED_BLOCK`] scales.
        nested_absmax: Vec<f32>,
        /// The mean of all scales of this weight.
        offset: f32,
    },
}

impl FourBit {
    /// The quantized weight `name` (`….weight`); `None` if `name` has no quantization state.
    ///
    /// Errors name the tensor or the field: a missing part, a wrong size, another block size than
    /// 64 (nested: 256), another code table than in `tables`, scales that are not finite.
    pub fn find(weights: &Weights, name: &str, tables: Tables<'_>) -> Result<Option<Self>, Error> {
        let found = |book: CodeBook| {
            let state = weights.find(&format!("{name}{STATE}{}", book.name()))?;
            Some((book, state))
        };
        let Some((book, state)) = found(CodeBook::Nf4).or_else(|| found(CodeBook::Fp4)) else {
            return Ok(None);
        };
        let group = Group { weights, name, state: State::parse(state, book)? };
        group.read(book, tables).map(Some)
    }

    /// Number of blocks, and so of scales.
    pub fn blocks(&self) -> usize {
        (self.shape[0] * self.shape[1]).div_ceil(BLOCK)
    }
}

/// The JSON of the state with the tensor it comes from.
struct State<'a> {
    tensor: Tensor<'a>,
    fields: Map<String, Value>,
}

impl<'a> State<'a> {
    fn parse(tensor: Tensor<'a>, book: CodeBook) -> Result<Self, Error> {
        let fields = match json::parse_line(tensor.text()?, &tensor.place())? {
            Value::Object(fields) => fields,
            other => {
                let what = format!("{}, expected an object", json::kind(&other));
                return Err(Error::input(tensor.place(), what));
            }
        };
        let state = Self { tensor, fields };
        state.expect("quant_type", &Value::from(book.name()))?;
        state.expect("blocksize", &Value::from(BLOCK))?;
        Ok(state)
    }

    fn field(&self, key: &str) -> &Value {
        self.fields.get(key).unwrap_or(&Value::Null)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = escape(&self.field(key).to_string());
        let what = format!("{found}, expected {expected}");
        Error::input(self.tensor.place().field(key), what)
    }

    fn expect(&self, key: &str, value: &Value) -> Result<(), Error> {
        if self.field(key) == value {
            return Ok(());
        }
        Err(self.wrong(key, &value.to_string()))
    }

    fn dtype(&self) -> Result<DType, Error> {
        match self.field("dtype").as_str() {
            Some("bfloat16") => Ok(DType::BF16),
            Some("float16") => Ok(DType::F16),
            Some("float32") => Ok(DType::F32),
            _ => Err(self.wrong("dtype", "bfloat16, float16 or float32")),
        }
    }

    /// Rows and columns; their product fits a usize.
    fn shape(&self) -> Result<[usize; 2], Error> {
        let sizes: Option<Vec<usize>> = self.field("shape").as_array().and_then(|list| {
            let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
            list.iter().map(size).collect()
        });
        match sizes.as_deref() {
            Some(&[rows, columns]) if rows.checked_mul(columns).is_some_and(|n| n > 0) => {
                Ok([rows, columns])
            }
            _ => Err(self.wrong("shape", "two sizes")),
        }
    }

    fn offset(&self) -> Result<f32, Error> {
        let offset = self.field("nested_offset").as_f64().map(|v| v as f32);
        offset
            .filter(|v| v.is_finite())
            .ok_or_else(|| self.wrong("nested_offset", "a finite number"))
    }
}

/// The tensors of one weight.
struct Group<'a> {
    weights: &'a Weights,
    name: &'a str,
    state: State<'a>,
}

impl Group<'_> {
    fn read(&self, book: CodeBook, tables: Tables<'_>) -> Result<FourBit, Error> {
        let shape = self.state.shape()?;
        let elements = shape[0] * shape[1];
        self.check_table("quant_map", tables.codes(book))?;
        let codes = self.weights.tensor(self.name)?;
        if codes.dtype != DType::U8 {
            let what = format!(
                "{} elements, expected U8: only bnb_4bit_quant_storage uint8 can be read",
                codes.dtype
            );
            return Err(Error::input(codes.place(), what));
        }
        codes.expect_shape(&[elements.div_ceil(2), 1])?;
        Ok(FourBit {
            book,
            shape,
            dtype: self.state.dtype()?,
            codes: codes.mapped(),
            scales: self.scales(elements.div_ceil(BLOCK), tables)?,
        })
    }

    fn scales(&self, blocks: usize, tables: Tables<'_>) -> Result<Scales, Error> {
        let absmax = self.part("absmax")?;
        absmax.expect_shape(&[blocks])?;
        if !self.state.fields.contains_key("nested_blocksize") {
            absmax.expect_dtype(DType::F32)?;
            check_finite(&absmax)?;
            return Ok(Scales::Plain(absmax.mapped()));
        }
        absmax.expect_dtype(DType::U8)?;
        self.state.expect("nested_blocksize", &Value::from(NESTED_BLOCK))?;
        self.state.expect("nested_dtype", &Value::from("float32"))?;
        self.check_table("nested_quant_map", tables.dynamic)?;
        let nested = self.part("nested_absmax")?;
        nested.expect_dtype(DType::F32)?;
        nested.expect_shape(&[blocks.div_ceil(NESTED_BLOCK)])?;
        Ok(Scales::Nested {
            absmax: absmax.mapped(),
            nested_absmax: nested.finite_f32()?,
            offset: self.state.offset()?,
        })
    }

    fn part(&self, suffix: &str) -> Result<Tensor<'_>, Error> {
        self.weights.tensor(&format!("{}.{suffix}", self.name))
    }

    fn check_table(&self, suffix: &str, table: &[f32]) -> Result<(), Error> {
        let tensor = self.part(suffix)?;
        tensor.expect_dtype(DType::F32)?;
        tensor.expect_shape(&[table.len()])?;
        let found = tensor.finite_f32()?;
        match (0..table.len()).find(|&i| found[i] != table[i]) {
            None => Ok(()),
            Some(i) => Err(Error::input(
                tensor.place(),
                format!(
                    "value {i} is {}, expected {}: another code table than bitsandbytes' own",
                    found[i], table[i]
                ),
            )),
        }
    }
}

/// Checks a mapped F32 tensor in small pieces: plain scales of a large model take gigabytes.
fn check_finite(tensor: &Tensor<'_>) -> Result<(), Error> {
    let mut piece = [0.0; 1024];
    for first in (0..tensor.elements()).step_by(piece.len()) {
        let count = piece.len().min(tensor.elements() - first);
        tensor.to_f32_at(first, &mut piece[..count])?;
        tensor.check_finite(first, &piece[..count])?;
    }
    Ok(())
}
