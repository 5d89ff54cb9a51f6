//! Strict JSON: what a human or another program wrote, read without guessing.
//!
//! `serde_json` keeps the last of two equal keys in silence; here a repeated key is an error, so
//! that a file cannot mean one thing to a reader and another to this program. A byte order mark is
//! skipped, sizes are bounded, and every error names the file and the line. Nesting is bounded by
//! `serde_json` itself (128 levels), and a number outside the range of f64 is an error.
//!
//! Not for `tokenizer.json`, which its own crate reads, and not for tensor headers: see
//! `checkpoint/header.rs`.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Place, escape};

/// Largest file [`read`] takes, in bytes. A value takes up to 36 times the room of its text, and a
/// file that is refused should not cost much before.
pub const LARGEST_FILE: u64 = 4 << 20;

/// Reads the JSON document in the file `path`.
///
/// Errors name the file and the line: not a plain file, larger than [`LARGEST_FILE`], not UTF-8,
/// not JSON, a repeated key.
pub fn read(path: &Path) -> Result<Value, Error> {
    parse(&read_text(path, LARGEST_FILE)?, path)
}

/// Like [`read`], for a file whose document must be an object.
pub fn read_object(path: &Path) -> Result<Map<String, Value>, Error> {
    match read(path)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::input(path, format!("holds {}, expected a JSON object", kind(&other)))),
    }
}

/// Parses a whole document; an error adds the line to `place`.
pub fn parse(text: &str, place: impl Into<Place>) -> Result<Value, Error> {
    typed(text, place).map(|Strict(value)| value)
}

/// What is wrong with a JSON text, for a reader that knows where the text begins.
#[derive(Debug)]
pub struct Fault {
    /// Line within the text, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Parses bytes that are one document of their own, such as a record.
pub fn parse_bytes(bytes: &[u8]) -> Result<Value, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|error| not_utf8(bytes, error.valid_up_to()))?;
    serde_json::from_str::<Strict>(without_mark(text))
        .map(|Strict(value)| value)
        .map_err(|error| Fault { line: error.line().max(1), what: what(&error) })
}

fn not_utf8(bytes: &[u8], at: usize) -> Fault {
    let before = &bytes[..at];
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    Fault {
        line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
        what: format!("byte {} of the line is not UTF-8: save the file as UTF-8", at - start + 1),
    }
}

/// Parses one line of a JSONL file; `place` already names the line.
pub fn parse_line(text: &str, place: &Place) -> Result<Value, Error> {
    serde_json::from_str::<Strict>(without_mark(text))
        .map(|strict| strict.0)
        .map_err(|e| Error::input(place.clone(), what(&e)))
}

/// Parses a document into a type of its own, which answers for repeated keys.
pub fn typed<'a, T: Deserialize<'a>>(text: &'a str, place: impl Into<Place>) -> Result<T, Error> {
    serde_json::from_str(without_mark(text))
        .map_err(|e| Error::input(place.into().line(e.line()), what(&e)))
}

/// Reads a text file of at most `most` bytes that must be UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String, Error> {
    let size = plain_file_size(path)?;
    if size > most {
        let what = format!("{size} bytes are too many, at most {most} are read");
        return Err(Error::input(path, what));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(most).read_to_end(&mut bytes).map_err(Error::io(path))?;
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..good].iter().filter(|&&b| b == b'\n').count();
        let place = Place::file(path).line(line);
        Error::input(place, "not UTF-8: save the file as UTF-8 text")
    })
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The size of `path`, which must be a plain file: a pipe or a device would block or never end.
pub fn plain_file_size(path: &Path) -> Result<u64, Error> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else if metadata.is_dir() {
        Err(Error::input(path, "is a folder, expected a file"))
    } else {
        Err(Error::input(path, "is not a plain file"))
    }
}

/// What kind of value this is, in words for a message.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The parser's message with its position reduced to the column: the line is in the place.
fn what(error: &serde_json::Error) -> String {
    let full = error.to_string();
    let tail = format!(" at line {} column {}", error.line(), error.column());
    let message = full.strip_suffix(&tail).unwrap_or(&full);
    let fault = if error.is_data() { "" } else { "not valid JSON at " };
    format!("{fault}column {}: {message}", error.column())
}

/// A value whose objects have no repeated keys.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(repeated(&key));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The error for a key that stands twice in one object.
pub fn repeated<E: de::Error>(key: &str) -> E {
    E::custom(format_args!("the key \"{}\" stands twice", escape(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text, Place::file("c.json")).unwrap_err().to_string()
    }

    #[test]
    fn good_documents_equal_what_serde_json_reads() {
        for text in [
            r#"{"b":[1,-2,0.5,1e300],"a":{"x":null,"y":true,"é":"\u00e9"}}"#,
            " [ ] ",
            "18446744073709551615",
            "\"s\"",
        ] {
            let plain: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text, Place::file("x")).unwrap(), plain);
        }
        assert_eq!(parse("\u{feff}1", Place::file("x")).unwrap(), Value::from(1));
    }

    #[test]
    fn key_order_survives_because_templates_print_it() {
        let value = parse(r#"{"z":1,"a":2}"#, Place::file("x")).unwrap();
        assert_eq!(value.to_string(), r#"{"z":1,"a":2}"#);
    }

    #[test]
    fn repeated_keys_are_refused_at_any_depth_and_in_any_spelling() {
        assert_eq!(
            refusal("{\"a\":\n[{\"k\":1,\"\\u006b\":2}]}"),
            "c.json: line 2: column 16: the key \"k\" stands twice"
        );
    }

    #[test]
    fn hostile_text_is_an_error_with_its_line() {
        let deep = "[".repeat(100_000);
        let long = "9".repeat(400);
        let cases = [
            ("", "line 1: not valid JSON at column 0: EOF"),
            ("{\n\"a\": }", "line 2: not valid JSON at column 6"),
            ("1e400", "number out of range"),
            (&long, "number out of range"),
            (&deep, "recursion limit"),
            ("{\"a\": NaN}", "not valid JSON"),
            ("\"\\ud800\"", "not valid JSON"),
            ("{} x", "trailing characters"),
        ];
        for (text, fragment) in cases {
            let message = refusal(text);
            assert!(message.contains(fragment), "{message}");
            assert!(message.len() < 200, "{message}");
        }
    }

    #[test]
    fn a_jsonl_line_keeps_the_place_of_its_caller() {
        let place = Place::file("d.jsonl").line(7);
        let message = parse_line("{", &place).unwrap_err().to_string();
        assert!(message.starts_with("d.jsonl: line 7: not valid JSON at column 1"));
    }

    #[test]
    fn files_that_are_not_text_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        fs::write(&path, b"{\n\"a\": \"\xff\"}").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("line 2: not UTF-8"), "{message}");
        let message = read(folder.path()).unwrap_err().to_string();
        assert!(message.contains("is a folder"), "{message}");
    }

    #[test]
    fn bad_utf8_names_line_and_byte() {
        let fault = parse_bytes(b"{\"a\":\n\"\xff\"}").unwrap_err();
        assert_eq!(fault.line, 2);
        assert!(fault.what.contains("byte 2"), "{}", fault.what);
    }
}
