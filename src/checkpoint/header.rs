//! The header of a safetensors file, checked completely before anything trusts it.
//!
//! Layout: 8 bytes length N (little endian), N bytes of JSON that begin with `{`, then the data of
//! all tensors, back to back, without holes. The crate `safetensors` reads the same format but keeps
//! the last of two equal names, accepts a header that begins with a space, and accepts any name;
//! tests compare the two on damaged headers: what this reader takes, the crate takes too.
//!
//! The checks cost at most one pass over the JSON and no allocation larger than the header itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::tensors::DType;
use crate::error::{Error, Place, escape};
use crate::json::repeated;

/// Longest header, in bytes; the same bound as the format's own library.
pub(super) const LONGEST_HEADER: u64 = 100_000_000;
/// Most tensors in one file. A file of a 400 B model in 4 bits holds about 6,000.
const MOST_TENSORS: usize = 100_000;
/// Longest tensor name, in bytes.
const LONGEST_NAME: usize = 1024;
/// Most dimensions of one tensor.
const MOST_DIMENSIONS: usize = 16;
/// Most entries of the free metadata.
const MOST_METADATA: usize = 10_000;

/// One tensor as the header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Bytes of the file, from its beginning.
    pub range: Range<usize>,
}

/// Where the data begins in a file of `size` bytes that starts with `head` (8 bytes at least).
///
/// The error says what the length is and what would be possible.
pub(super) fn data_start(head: &[u8], size: u64) -> Result<usize, String> {
    let Some(first) = head.first_chunk::<8>() else {
        return Err(format!("{size} bytes are too few for a tensor file: download it again"));
    };
    let length = u64::from_le_bytes(*first);
    if length > LONGEST_HEADER {
        return Err(format!(
            "not a tensor file: the header would be {length} bytes long, at most {LONGEST_HEADER} \
             are read"
        ));
    }
    if 8 + length > size {
        return Err(format!(
            "cut off: the header alone needs {} bytes, the file has {size}: download it again",
            8 + length
        ));
    }
    // At most LONGEST_HEADER + 8, checked above.
    Ok(8 + length as usize)
}

/// Parses and checks the whole header in `bytes`, the first `start` bytes of a file of `size`.
pub(super) fn parse(
    bytes: &[u8],
    size: u64,
    path: &Path,
) -> Result<BTreeMap<String, Entry>, Error> {
    let json = &bytes[8..];
    if json.first() != Some(&b'{') {
        return Err(Error::input(
            path,
            "damaged header: it must begin with `{`: download the file again",
        ));
    }
    let text = std::str::from_utf8(json)
        .map_err(|_| Error::input(path, "damaged header: not UTF-8: download the file again"))?;
    let raw = serde_json::from_str::<RawHeader>(text)
        .map_err(|e| Error::input(path, format!("damaged header: {e}")))?;
    place_tensors(raw.0, bytes.len(), size, path)
}

/// Turns offsets into checked ranges of the file: each of the right length, no hole, no overlap.
fn place_tensors(
    mut raw: Vec<(String, RawEntry)>,
    start: usize,
    size: u64,
    path: &Path,
) -> Result<BTreeMap<String, Entry>, Error> {
    raw.sort_unstable_by_key(|(_, entry)| entry.data_offsets);
    let mut entries = BTreeMap::new();
    let mut end = 0;
    for (name, tensor) in raw {
        let at = || Place::file(path).tensor(&name);
        check_name(&name).map_err(|what| Error::input(at(), what))?;
        let entry = tensor.check(end, start).map_err(|what| Error::input(at(), what))?;
        end = tensor.data_offsets.1;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(Error::input(at(), "stands twice in the header"));
        }
    }
    let needed = (start as u64).saturating_add(end);
    if needed != size {
        let fault = if needed > size { "cut off" } else { "too long" };
        return Err(Error::input(
            path,
            format!(
                "{fault}: its tensors need {needed} bytes, the file has {size}: download it again"
            ),
        ));
    }
    Ok(entries)
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        Err(format!("a name of {} bytes, expected 1 to {LONGEST_NAME}", name.len()))
    } else if name.chars().any(char::is_control) {
        Err("control characters in the name".into())
    } else {
        Ok(())
    }
}

/// A tensor as it stands in the JSON; offsets count from the end of the header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl RawEntry {
    /// Checks this tensor, which must begin where the one before it ended.
    fn check(&self, expected_begin: u64, start: usize) -> Result<Entry, String> {
        let dtype = DType::parse(&self.dtype)
            .ok_or_else(|| format!("unknown dtype {}", escape(&self.dtype)))?;
        let (begin, end) = self.data_offsets;
        if begin != expected_begin || end < begin {
            return Err(format!(
                "data offsets {begin}..{end}, expected to begin at {expected_begin}: tensors must \
                 follow each other without hole or overlap"
            ));
        }
        let (shape, bytes) = self.shape_and_bytes(dtype)?;
        if bytes != end - begin {
            return Err(format!(
                "shape {shape:?} of {dtype} needs {bytes} bytes, its offsets give {}",
                end - begin
            ));
        }
        let in_file = |offset: u64| usize::try_from(offset).ok()?.checked_add(start);
        match (in_file(begin), in_file(end)) {
            (Some(from), Some(to)) => Ok(Entry { dtype, shape, range: from..to }),
            _ => Err("offsets beyond this machine's address space".into()),
        }
    }

    fn shape_and_bytes(&self, dtype: DType) -> Result<(Vec<usize>, u64), String> {
        let too_large = || format!("shape {:?} is too large", self.shape.0);
        let mut shape = Vec::with_capacity(self.shape.0.len());
        let mut bits = dtype.bits() as u64;
        for &n in &self.shape.0 {
            shape.push(usize::try_from(n).map_err(|_| too_large())?);
            bits = bits.checked_mul(n).ok_or_else(too_large)?;
        }
        if !bits.is_multiple_of(8) {
            return Err(format!("shape {shape:?} of {dtype} is not a whole number of bytes"));
        }
        Ok((shape, bits / 8))
    }
}

/// Sizes, bounded in number while they are read: a header may hold millions.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = items.next_element()? {
            if shape.len() == MOST_DIMENSIONS {
                return Err(A::Error::custom(format_args!(
                    "more than {MOST_DIMENSIONS} dimensions"
                )));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

/// All entries in the order of the JSON; `__metadata__` is checked and dropped.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor).map(Self)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Vec<(String, RawEntry)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut has_metadata = false;
        while let Some(name) = entries.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(repeated(&name));
                }
                entries.next_value::<Option<Metadata>>()?;
            } else if tensors.len() == MOST_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MOST_TENSORS} tensors")));
            } else {
                tensors.push((name, entries.next_value()?));
            }
        }
        Ok(tensors)
    }
}

/// The free metadata: strings by name. Nothing here uses them, but a file must not lie there either.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings as __metadata__")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Metadata, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some((key, _)) = entries.next_entry::<String, String>()? {
            if seen.contains(&key) {
                return Err(repeated(&key));
            }
            if seen.len() == MOST_METADATA {
                return Err(A::Error::custom("too much __metadata__"));
            }
            seen.insert(key);
        }
        Ok(Metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a file with this header text and `data` zero bytes.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
        let size = bytes.len() as u64;
        let start = data_start(bytes, size)?;
        parse(&bytes[..start], size, Path::new("m")).map_err(|e| e.to_string())
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt","x":"y"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"a":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"e":{"dtype":"U8","shape":[0,7],"data_offsets":[32,32]}}  "#;

    #[test]
    fn a_good_header_is_read_as_written() {
        let entries = read(&file(GOOD, 32)).unwrap();
        let start = 8 + GOOD.len();
        assert_eq!(entries["b"].range, start..start + 24);
        assert_eq!(entries["b"].shape, [2, 3]);
        assert_eq!(entries["a"].dtype, DType::BF16);
        assert_eq!(entries["e"].range, start + 32..start + 32);
        assert!(read(&file("{}", 0)).unwrap().is_empty());
    }

    #[test]
    fn damaged_headers_are_refused_and_say_why() {
        let t = |body: &str| format!("{{\"t\":{body}}}");
        let long = "n".repeat(1025);
        let cases: Vec<(String, usize, &str)> = vec![
            (" {}".into(), 0, "must begin with `{`"),
            ("[]".into(), 0, "must begin with `{`"),
            ("{".into(), 0, "damaged header"),
            ("{}x".into(), 0, "damaged header"),
            ("{}".into(), 1, "too long: its tensors need 10 bytes, the file has 11"),
            (GOOD.into(), 31, "cut off: its tensors need"),
            (t(r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#), 4, "tensor t: unknown dtype F33"),
            (t(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,8]}"#), 8, "needs 4 bytes, its offsets give 8"),
            (t(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), 8, "expected to begin at 0"),
            (t(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), 8, "expected to begin at 0"),
            (t(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), 4, "damaged header"),
            (t(r#"{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}"#), 4, "damaged header"),
            (t(r#"{"dtype":"F32","shape":[1]}"#), 4, "missing field `data_offsets`"),
            (t(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"s":1}"#), 4, "unknown field"),
            (t(r#"{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 4, "duplicate field"),
            (t(r#"{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}"#), 4, "is too large"),
            (t(r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,4]}"#), 4, "is too large"),
            (t(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#), 2, "whole number of bytes"),
            (t(r#"{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}"#), 1, "more than 16 dimensions"),
            (r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#.into(), 2, "stands twice"),
            (r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"u":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#.into(), 3, "tensor u: data offsets 1..3"),
            (r#"{"t\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, "control characters"),
            (r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, "a name of 0 bytes"),
            (format!(r#"{{"{long}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), 1, "a name of 1025 bytes"),
            (r#"{"__metadata__":{"a":1}}"#.into(), 0, "damaged header"),
            (r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(), 0, "stands twice"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "stands twice"),
        ];
        for (header, data, fragment) in cases {
            let message = read(&file(&header, data)).unwrap_err();
            assert!(message.contains(fragment), "{header}: {message}");
            assert!(message.len() < 700, "{message}");
        }
    }

    #[test]
    fn lengths_are_checked_before_they_size_anything() {
        let claim = |n: u64| {
            let mut bytes = n.to_le_bytes().to_vec();
            bytes.extend_from_slice(b"{}");
            read(&bytes).unwrap_err()
        };
        assert!(read(b"1234567").unwrap_err().contains("too few"));
        assert!(claim(3).contains("cut off"));
        assert!(claim(LONGEST_HEADER + 1).contains("not a tensor file"));
        assert!(claim(u64::MAX).contains("not a tensor file"));
    }

    /// A small generator of repeatable numbers (SplitMix64).
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Changes one to three places: a flipped bit, another byte, a digit, a copied piece.
    fn mutate(bytes: &mut Vec<u8>, state: &mut u64) {
        for _ in 0..1 + next(state) % 3 {
            let i = next(state) as usize % bytes.len();
            match next(state) % 5 {
                0 => bytes[i] ^= 1 << (next(state) % 8),
                1 => bytes[i] = b"0123456789{}[],:\" "[next(state) as usize % 18],
                2 => drop(bytes.remove(i)),
                3 => bytes.insert(i, b'0' + (next(state) % 10) as u8),
                _ => bytes[8 + i % 8] = next(state) as u8,
            }
            if bytes.len() < 16 {
                return;
            }
            let length = bytes.len() as u64 - 8 - 32;
            let claims_its_length = next(state) as u8 > 31;
            if claims_its_length {
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
        }
    }

    #[test]
    fn damaged_headers_never_panic_and_never_pass_where_the_crate_refuses() {
        let good = file(GOOD, 32);
        let (mut state, mut accepted, mut stricter) = (42, 0, 0);
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            mutate(&mut bytes, &mut state);
            let (ours, theirs) = (read(&bytes), safetensors::SafeTensors::deserialize(&bytes));
            match (ours, theirs) {
                (Ok(entries), Ok(tensors)) => {
                    accepted += 1;
                    assert_eq!(entries.len(), tensors.len());
                    for (name, view) in tensors.iter() {
                        assert_eq!(&bytes[entries[name].range.clone()], view.data());
                        assert_eq!(entries[name].shape, view.shape());
                        assert_eq!(entries[name].dtype.to_string(), view.dtype().to_string());
                    }
                }
                (Ok(_), Err(e)) => panic!("accepted what the crate refuses ({e}): {bytes:?}"),
                (Err(_), Ok(_)) => stricter += 1,
                (Err(_), Err(_)) => {}
            }
        }
        assert!(accepted > 500 && stricter > 10, "{accepted} {stricter}");
    }
}
