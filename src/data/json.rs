//! JSON as records need it: duplicate keys refused, key order kept, lines named.
//!
//! `serde_json` reads the text; this file adds what it lets pass. Not a record reader: that is
//! [`super::record`]; which bytes of a file are one record is decided in [`super::source`].

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What is wrong with a JSON text.
#[derive(Debug)]
pub(super) struct Fault {
    /// Line within the text, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Reads one JSON value; an object with a key twice is a fault.
pub(super) fn parse(text: &[u8]) -> Result<Value, Fault> {
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let text = std::str::from_utf8(text).map_err(|error| not_utf8(text, error.valid_up_to()))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut reader).map_err(fault)?;
    reader.end().map_err(fault)?;
    Ok(value)
}

fn not_utf8(text: &[u8], at: usize) -> Fault {
    let before = &text[..at];
    let start = before.iter().rposition(|&byte| byte == b'\n');
    Fault {
        line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
        what: format!(
            "byte {} of the line is not UTF-8; convert the file to UTF-8",
            at - start.map_or(0, |newline| newline + 1) + 1
        ),
    }
}

fn fault(error: serde_json::Error) -> Fault {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    Fault {
        line: error.line().max(1),
        what: format!("not valid JSON: {} (column {})", &text[..end], error.column()),
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict)?;
            if map.contains_key(&key) {
                let key = crate::error::escape(&key);
                return Err(A::Error::custom(format!(
                    "the key `{key}` stands twice in one object"
                )));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_refused_at_any_depth_and_order_is_kept() {
        let fault = parse(b"{\"a\":\n[{\"b\":1,\"b\":2}]}").unwrap_err();
        assert_eq!(fault.line, 2);
        assert!(fault.what.contains("`b` stands twice"), "{}", fault.what);
        let value = parse(b"{\"z\":1,\"a\":[true,null,-1,1.5,\"x\"]}").unwrap();
        assert_eq!(value.to_string(), "{\"z\":1,\"a\":[true,null,-1,1.5,\"x\"]}");
    }

    #[test]
    fn bad_utf8_names_line_and_byte() {
        let fault = parse(b"{\"a\":\n\"\xff\"}").unwrap_err();
        assert_eq!(fault.line, 2);
        assert!(fault.what.contains("byte 2"), "{}", fault.what);
    }
}
