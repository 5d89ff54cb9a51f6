//! One tensor file, mapped: names, shapes and bytes, with nothing copied.
//!
//! The whole header is checked when the file is opened (see `header`), so that a tensor which can
//! be named can be read. The bytes stay in the map: [`Tensor::mapped`] hands them out as an owned
//! range that keeps the map alive, and [`Tensor::to_f32`] converts where numbers are needed.
//!
//! A map shows what the file holds at the moment of the access. If another program shortens the
//! file while it is mapped, the operating system ends this process; nothing short of copying the
//! weights can prevent that.
//!
//! Several files behind one list of names: see [`super::weights`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;

use super::header::{self, Entry};
use super::identify::Kind;
use crate::error::{Error, Place, escape};
use crate::json::plain_file_size;

/// Declares the element types with the name the format gives them and their size in bits.
macro_rules! dtypes {
    ($($name:ident $bits:literal $what:literal,)*) => {
        /// The element types of the format, by its own names.
        #[allow(non_camel_case_types, reason = "the names are the format's")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DType { $(#[doc = $what] $name,)* }

        impl DType {
            /// The type with this name, if the format knows it.
            pub fn parse(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)* _ => None }
            }

            /// The name in the file.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Size of one element in bits.
            pub fn bits(self) -> usize {
                match self { $(Self::$name => $bits,)* }
            }
        }
    };
}

dtypes! {
    BOOL 8 "Truth value.",
    F4 4 "4-bit float of the MX formats.",
    F6_E2M3 6 "6-bit float, 2 exponent bits.",
    F6_E3M2 6 "6-bit float, 3 exponent bits.",
    U8 8 "Byte; also the codes of 4-bit weights.",
    I8 8 "Signed byte.",
    F8_E5M2 8 "8-bit float, 5 exponent bits.",
    F8_E4M3 8 "8-bit float, 4 exponent bits.",
    F8_E8M0 8 "8-bit power of two.",
    F8_E4M3FNUZ 8 "8-bit float, 4 exponent bits, no negative zero.",
    F8_E5M2FNUZ 8 "8-bit float, 5 exponent bits, no negative zero.",
    I16 16 "Signed 16-bit integer.",
    U16 16 "Unsigned 16-bit integer.",
    F16 16 "IEEE half precision.",
    BF16 16 "Upper half of an f32.",
    I32 32 "Signed 32-bit integer.",
    U32 32 "Unsigned 32-bit integer.",
    F32 32 "Single precision.",
    C64 64 "Complex, two f32.",
    F64 64 "Double precision.",
    I64 64 "Signed 64-bit integer.",
    U64 64 "Unsigned 64-bit integer.",
}

impl DType {
    /// Bytes of `elements` elements. Only for types of whole bytes.
    pub fn bytes(self, elements: usize) -> usize {
        assert_eq!(self.bits() % 8, 0, "{self} has no whole bytes");
        elements * (self.bits() / 8)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One mapped safetensors file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    path: Arc<Path>,
    map: Arc<Mmap>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens, maps and checks `path`.
    ///
    /// Errors: not a plain file; another format (named, with advice); a damaged header; a length
    /// that differs from what the header promises.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let size = plain_file_size(&path)?;
        let mut file = File::open(&path).map_err(Error::io(&path))?;
        let start = check_start(&mut file, size, &path)?;
        // SAFETY: the map is read-only and only ever seen as bytes; a file that another program
        // changes meanwhile gives other bytes or a signal, as the module documentation says.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        let mapped = map.len() as u64;
        if mapped != size {
            return Err(Error::input(
                &path,
                format!("changed from {size} to {mapped} bytes while it was opened"),
            ));
        }
        let entries = header::parse(&map[..start], size, &path)?;
        // The crate has the last word, so that nothing is read here that other programs refuse.
        let (_, header) = SafeTensors::read_metadata(&map)
            .map_err(|error| Error::input(&path, format!("{error}: download it again")))?;
        let metadata = header.metadata().iter().flatten();
        let metadata = metadata.map(|(key, text)| (key.clone(), text.clone())).collect();
        Ok(Self { path: path.into(), map: Arc::new(map), entries, metadata })
    }

    /// The path given to [`open`](Self::open).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The tensor `name`, if the file has it.
    pub fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.entries.get_key_value(name)?;
        Some(Tensor {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            data: &self.map[entry.range.clone()],
            offset: entry.range.start,
            file: self,
        })
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.names().filter_map(|name| self.find(name))
    }
}

/// Reads the first bytes: says what a stranger is, or where the data of a tensor file begins.
fn check_start(file: &mut File, size: u64, path: &Path) -> Result<usize, Error> {
    let mut head = Vec::new();
    file.take(64).read_to_end(&mut head).map_err(Error::io(path))?;
    let what = match Kind::of(&head) {
        Some(stranger) => stranger.advice().to_owned(),
        None if size == 0 => "is empty: download it again".to_owned(),
        None => match header::data_start(&head, size) {
            Ok(start) => return Ok(start),
            Err(what) => what,
        },
    };
    Err(Error::input(path, what))
}

/// A view of one tensor in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Sizes, slowest first (row-major).
    pub shape: &'a [usize],
    /// Little-endian elements; not necessarily aligned to their size.
    pub data: &'a [u8],
    offset: usize,
    file: &'a TensorFile,
}

impl<'a> Tensor<'a> {
    /// File and tensor, for error messages.
    pub fn place(&self) -> Place {
        Place::file(&self.file.path).tensor(self.name)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes as an owned range that keeps the file mapped.
    pub fn mapped(&self) -> MappedBytes {
        MappedBytes {
            path: Arc::clone(&self.file.path),
            map: Arc::clone(&self.file.map),
            range: self.offset..self.offset + self.data.len(),
        }
    }

    /// Refuses any other shape.
    pub fn expect_shape(&self, shape: &[usize]) -> Result<(), Error> {
        if self.shape == shape {
            return Ok(());
        }
        Err(Error::input(self.place(), format!("shape {:?}, expected {shape:?}", self.shape)))
    }

    /// Refuses any other element type.
    pub fn expect_dtype(&self, dtype: DType) -> Result<(), Error> {
        if self.dtype == dtype {
            return Ok(());
        }
        Err(Error::input(self.place(), format!("{} elements, expected {dtype}", self.dtype)))
    }

    /// Refuses types that are not BF16, F16, F32 or F64.
    pub fn expect_float(&self) -> Result<(), Error> {
        match self.dtype {
            DType::BF16 | DType::F16 | DType::F32 | DType::F64 => Ok(()),
            other => Err(Error::input(
                self.place(),
                format!(
                    "{} elements, expected BF16, F16 or F32: give the model in one of these",
                    other
                ),
            )),
        }
    }

    /// Converts all elements into `out`, which must have [`elements`](Self::elements) places.
    ///
    /// F64 is rounded to the nearest f32; the other float types convert exactly. Errors: not a
    /// float type.
    pub fn to_f32(&self, out: &mut [f32]) -> Result<(), Error> {
        assert_eq!(out.len(), self.elements(), "places for {}", self.name);
        self.to_f32_at(0, out)
    }

    /// Converts the `out.len()` elements that begin at element `first`.
    ///
    /// For callers that take a large tensor in pieces. Panics if the piece reaches past the end.
    pub fn to_f32_at(&self, first: usize, out: &mut [f32]) -> Result<(), Error> {
        self.expect_float()?;
        let size = self.dtype.bits() / 8;
        let bytes = &self.data[first * size..(first + out.len()) * size];
        match self.dtype {
            DType::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F16 => f16_to_f32(bytes, out),
            DType::F32 => convert(bytes, out, f32::from_le_bytes),
            DType::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
            other => unreachable!("{other} was refused above"),
        }
        Ok(())
    }

    /// All elements as f32, refusing numbers that are not finite.
    pub fn finite_f32(&self) -> Result<Vec<f32>, Error> {
        self.expect_float()?;
        let mut values = vec![0.0; self.elements()];
        self.to_f32(&mut values)?;
        self.check_finite(0, &values)?;
        Ok(values)
    }

    /// Refuses NaN and infinities among `values`, elements of this tensor from `first` on.
    pub fn check_finite(&self, first: usize, values: &[f32]) -> Result<(), Error> {
        // No early exit inside a piece: the compiler makes vector code of it.
        let is_clean = |piece: &[f32]| piece.iter().fold(true, |ok, v| ok & v.is_finite());
        let Some(piece) = values.chunks(1024).position(|piece| !is_clean(piece)) else {
            return Ok(());
        };
        let index = (piece * 1024..values.len())
            .find(|&i| !values[i].is_finite())
            .expect("the piece holds a value that is not finite");
        Err(Error::input(
            self.place(),
            format!(
                "element {} is {}: the file is damaged or the training that made it diverged",
                first + index,
                values[index]
            ),
        ))
    }

    /// The text of a U8 tensor.
    pub fn text(&self) -> Result<&'a str, Error> {
        self.expect_dtype(DType::U8)?;
        std::str::from_utf8(self.data).map_err(|_| Error::input(self.place(), "not UTF-8 text"))
    }
}

/// Element by element; the compiler turns it into vector loads that need no alignment.
fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (to, from) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *to = f(*from);
    }
}

/// The processor's own conversion where the bytes are aligned, otherwise one by one.
fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    match bytemuck::try_cast_slice::<u8, f16>(bytes) {
        Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(out),
        _ => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
    }
}

/// Bytes of a mapped file; keeps the file mapped as long as it lives. Cheap to clone.
#[derive(Clone)]
pub struct MappedBytes {
    path: Arc<Path>,
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl MappedBytes {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where in the file they begin.
    pub fn offset(&self) -> u64 {
        self.range.start as u64
    }

    /// A part of these bytes. Panics if `part` reaches outside.
    pub fn slice(&self, part: Range<usize>) -> Self {
        assert!(
            part.start <= part.end && part.end <= self.len(),
            "{part:?} of {} bytes",
            self.len()
        );
        Self {
            path: Arc::clone(&self.path),
            map: Arc::clone(&self.map),
            range: self.range.start + part.start..self.range.start + part.end,
        }
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl fmt::Debug for MappedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedBytes({:?})", self.range)
    }
}

/// Names quoted for a message, at most `most` of them, in their order.
pub(super) fn quote<'a>(names: impl IntoIterator<Item = &'a str>, most: usize) -> String {
    let mut names = names.into_iter();
    let mut list: Vec<_> = names.by_ref().take(most).map(escape).collect();
    let rest = names.count();
    if rest > 0 {
        list.push(format!("and {rest} more"));
    }
    list.join(", ")
}
