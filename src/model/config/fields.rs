//! The raw object: single fields with their checks. What they mean together is decided elsewhere.
//!
//! `null` counts as absent, except to [`Fields::stands`].

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Place, escape};
use crate::json::kind;

/// An object of the file, with the names of the objects around it, for messages.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
    prefix: String,
}

impl<'a> Fields<'a> {
    /// The document itself.
    pub fn of(map: &'a Map<String, Value>, path: &'a Path) -> Self {
        let prefix = String::new();
        Self { map, path, prefix }
    }

    pub fn refuse(&self, key: &str, what: impl Into<String>) -> Error {
        let field = format!("{}{key}", self.prefix);
        Error::input(Place::file(self.path).field(&field), what)
    }

    /// The field's value is wrong: quotes it before `what`.
    pub fn refuse_value(&self, key: &str, what: &str) -> Error {
        let value = match self.value(key) {
            Some(value @ (Value::Array(_) | Value::Object(_))) => kind(value).to_owned(),
            Some(value) => escape(&value.to_string()),
            None => "missing".to_owned(),
        };
        self.refuse(key, format!("{value}, {what}"))
    }

    /// `found`, or the error that `key` is missing.
    pub fn needed<T>(&self, key: &str, found: Option<T>, expected: &str) -> Result<T, Error> {
        found.ok_or_else(|| self.refuse(key, format!("missing, expected {expected}")))
    }

    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, even with null.
    pub fn stands(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The keys that have a value.
    pub fn keys(&self) -> impl Iterator<Item = &'a String> {
        let set = self.map.iter().filter(|(_, value)| !value.is_null());
        set.map(|(key, _)| key)
    }

    /// A whole number from 1 to `most`.
    pub fn size(&self, key: &str, most: usize) -> Result<usize, Error> {
        let expected = format!("a whole number from 1 to {most}");
        self.needed(key, self.optional_size(key, most)?, &expected)
    }

    /// Like [`Fields::size`], absent allowed.
    pub fn optional_size(&self, key: &str, most: usize) -> Result<Option<usize>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(size) if (1..=most as u64).contains(&size) => Ok(Some(size as usize)),
            _ => {
                let what = format!("expected a whole number from 1 to {most}");
                Err(self.refuse_value(key, &what))
            }
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(_) => Err(self.refuse_value(key, "expected a number")),
        }
    }

    /// A number within `from` to `to`, both included.
    pub fn number_within(&self, key: &str, from: f64, to: f64) -> Result<Option<f64>, Error> {
        match self.number(key)? {
            Some(number) if !(from..=to).contains(&number) => {
                let what = format!("expected a number from {from:?} to {to:?}");
                Err(self.refuse_value(key, &what))
            }
            number => Ok(number),
        }
    }

    /// True or false; `absent` where nothing stands.
    pub fn flag(&self, key: &str, absent: bool) -> Result<bool, Error> {
        match self.value(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.refuse_value(key, "expected true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse_value(key, "expected a string")),
        }
    }

    pub fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.refuse_value(key, "expected a list")),
        }
    }

    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields { map, path: self.path, prefix: format!("{}{key}.", self.prefix) }))
            }
            Some(_) => Err(self.refuse_value(key, "expected an object")),
        }
    }

    /// A token, or a list of them, all below `vocab`.
    pub fn tokens(&self, key: &str, vocab: usize) -> Result<Vec<u32>, Error> {
        let one = |value| self.token_in(key, value, vocab);
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    /// A single token below `vocab`.
    pub fn token(&self, key: &str, vocab: usize) -> Result<Option<u32>, Error> {
        let value = self.value(key);
        value.map(|value| self.token_in(key, value, vocab)).transpose()
    }

    fn token_in(&self, key: &str, value: &Value, vocab: usize) -> Result<u32, Error> {
        match value.as_u64() {
            Some(id) if id < vocab as u64 => Ok(id as u32),
            _ => {
                let found = escape(&value.to_string());
                let what = format!("{found}, expected a token from 0 to {}, or null", vocab - 1);
                Err(self.refuse(key, what))
            }
        }
    }
}
