//! Where each tensor of a new file goes.
//!
//! The format forbids holes between tensors, so alignment must come from order. [`Align::Cache`]
//! promises, for groups of tensors such as one layer's:
//!
//! 1. A group begins at a multiple of 64 bytes, and its tensors stand together, group after group.
//! 2. In a group, tensors whose size is a multiple of 64 come first, in the order given; each of
//!    them is therefore aligned to 64. For hidden sizes that are multiples of 64 these are all
//!    weights, codes and scales.
//! 3. The others follow, larger elements first, so each is aligned to its element at least.
//! 4. Texts come last, and the last text of a group is lengthened to fill up to the next multiple
//!    of 64. A text is JSON in a byte tensor (bitsandbytes' description of a quantized weight), and
//!    spaces behind a JSON value mean nothing. So no foreign padding tensors are needed.
//! 5. A group without a text has nothing to fill up with: its tensors of odd size move to the end
//!    of the file.
//!
//! [`Align::Packed`] keeps the order given; only the data begins at a multiple of 8.

use std::collections::BTreeMap;

use super::tensors::DType;

/// Alignment of [`Align::Cache`]: a cache line, and the widest vector load.
const LINE: usize = 64;

/// How tensors are placed in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// In the order given, for files that are read once.
    Packed,
    /// At multiples of 64 bytes, for files that are used from the map.
    Cache,
}

/// One tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type, of whole bytes.
    pub dtype: DType,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Numbers,
    Text,
}

impl TensorSpec {
    /// A tensor of numbers.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), content: Content::Numbers }
    }

    /// A byte tensor for JSON text of at most `room` bytes; spaces fill it up.
    pub fn text(name: impl Into<String>, room: usize) -> Self {
        Self { name: name.into(), dtype: DType::U8, shape: vec![room], content: Content::Text }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.shape.iter().product())
    }

    /// Whether this is a text, which spaces may lengthen.
    pub(super) fn is_text(&self) -> bool {
        self.content == Content::Text
    }

    fn is_whole_lines(&self) -> bool {
        self.bytes().is_multiple_of(LINE)
    }
}

/// The tensors in the order of the file, texts at their final length.
pub(super) fn arrange(groups: Vec<Vec<TensorSpec>>, align: Align) -> Vec<TensorSpec> {
    if align == Align::Packed {
        return groups.into_iter().flatten().collect();
    }
    let mut file = Vec::new();
    let mut tail = Vec::new();
    for group in groups {
        let (texts, numbers): (Vec<_>, Vec<_>) = group.into_iter().partition(TensorSpec::is_text);
        let (whole, mut odd): (Vec<_>, Vec<_>) =
            numbers.into_iter().partition(TensorSpec::is_whole_lines);
        file.extend(whole);
        if texts.is_empty() {
            tail.append(&mut odd);
        } else {
            file.extend(fill_up(odd, texts));
        }
    }
    sort_by_element(&mut tail);
    file.extend(tail);
    file
}

/// Odd tensors and texts, together a multiple of 64 bytes; `texts` is not empty.
fn fill_up(mut odd: Vec<TensorSpec>, texts: Vec<TensorSpec>) -> Vec<TensorSpec> {
    sort_by_element(&mut odd);
    odd.extend(texts);
    let bytes: usize = odd.iter().map(TensorSpec::bytes).sum();
    if let Some(last) = odd.last_mut() {
        last.shape[0] += bytes.next_multiple_of(LINE) - bytes;
    }
    odd
}

/// Larger elements first; the order given otherwise stays.
fn sort_by_element(tensors: &mut [TensorSpec]) {
    tensors.sort_by_key(|t| std::cmp::Reverse(t.dtype.bits()));
}

/// The header for these tensors, length in front, padded with spaces so that the data is aligned.
pub(super) fn header(
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    align: Align,
) -> Vec<u8> {
    let mut json = String::from("{\"__metadata__\":{\"format\":\"pt\"");
    for (key, value) in metadata {
        let [key, value] = [key, value].map(|text| serde_json::Value::from(text.as_str()));
        json += &format!(",{key}:{value}");
    }
    json.push('}');
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.bytes();
        json += &format!(
            ",{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{begin},{end}]}}",
            serde_json::Value::from(tensor.name.as_str()),
            tensor.dtype,
            serde_json::Value::from(tensor.shape.clone()),
        );
        begin = end;
    }
    json.push('}');
    let multiple = match align {
        Align::Packed => 8,
        Align::Cache => LINE,
    };
    let start = (8 + json.len()).next_multiple_of(multiple);
    let mut bytes = (start as u64 - 8).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(start, b' ');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(tensors: &[TensorSpec]) -> Vec<(&str, usize)> {
        let mut at = 0;
        let mut list = Vec::new();
        for tensor in tensors {
            list.push((tensor.name.as_str(), at));
            at += tensor.bytes();
        }
        list.push(("end", at));
        list
    }

    #[test]
    fn packed_keeps_the_order_given() {
        let specs =
            vec![TensorSpec::new("b", DType::U8, &[3]), TensorSpec::new("a", DType::F32, &[5])];
        assert_eq!(arrange(vec![specs.clone()], Align::Packed), specs);
    }

    #[test]
    fn every_group_begins_on_a_line_and_numbers_on_their_element() {
        let layer = |n: usize| {
            vec![
                TensorSpec::new(format!("{n}.odd"), DType::U8, &[3]),
                TensorSpec::new(format!("{n}.codes"), DType::U8, &[128, 1]),
                TensorSpec::text(format!("{n}.text"), 10),
                TensorSpec::new(format!("{n}.scales"), DType::F32, &[3]),
                TensorSpec::new(format!("{n}.norm"), DType::BF16, &[32]),
            ]
        };
        let head = vec![TensorSpec::new("embed", DType::BF16, &[7, 3])];
        let file = arrange(vec![head, layer(0), layer(1)], Align::Cache);
        assert_eq!(
            offsets(&file),
            [
                ("0.codes", 0),
                ("0.norm", 128),
                ("0.scales", 192),
                ("0.odd", 204),
                ("0.text", 207),
                ("1.codes", 256),
                ("1.norm", 384),
                ("1.scales", 448),
                ("1.odd", 460),
                ("1.text", 463),
                ("embed", 512),
                ("end", 554)
            ]
        );
        assert_eq!(header(&file, &BTreeMap::new(), Align::Cache).len() % 64, 0);
    }
}
