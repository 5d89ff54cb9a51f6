//! Which tokens are special: begin, end, padding, unknown.
//!
//! Read from the small files beside `tokenizer.json`. The order is Hugging Face's:
//! `tokenizer_config.json` wins over `special_tokens_map.json`; the end ids of
//! `generation_config.json` come last and only add ids at which generation stops. Trainers of that
//! world teach `tokenizer.eos_token`, so a model whose files disagree is taught the one of
//! `tokenizer_config.json`. See [`super::tokenizer`] for how they are used.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Place};
use crate::json;

/// The files that say how a model writes text as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`: vocabulary and rules.
    pub tokenizer_json: PathBuf,
    /// `tokenizer_config.json`: special tokens, `add_bos_token`, often the chat template.
    pub tokenizer_config: Option<PathBuf>,
    /// `special_tokens_map.json`, of older models.
    pub special_tokens_map: Option<PathBuf>,
    /// `generation_config.json`: ids at which generation stops.
    pub generation_config: Option<PathBuf>,
    /// `chat_template.jinja`; wins over the one inside `tokenizer_config.json`.
    pub chat_template: Option<PathBuf>,
}

impl TokenizerFiles {
    /// The tokenizer files of a model folder, as far as they are there.
    pub fn in_folder(folder: &Path) -> Self {
        let present = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        Self {
            tokenizer_json: folder.join("tokenizer.json"),
            tokenizer_config: present("tokenizer_config.json"),
            special_tokens_map: present("special_tokens_map.json"),
            generation_config: present("generation_config.json"),
            chat_template: present("chat_template.jinja"),
        }
    }
}

/// What the small files say, before the ids are looked up.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// Special tokens by variable name (`bos_token`), in file order.
    pub tokens: Vec<(String, String)>,
    /// `add_bos_token`, where it is set.
    pub add_bos: Option<bool>,
    /// `eos_token_id` of generation_config.json.
    pub end_ids: Vec<u32>,
    /// `chat_template` of tokenizer_config.json with the place it stands at.
    pub template: Option<(Place, String)>,
}

const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Declared {
    /// Reads the small files that are there.
    pub fn read(files: &TokenizerFiles) -> Result<Self, Error> {
        let mut declared = Self::default();
        if let Some(path) = &files.tokenizer_config {
            let config = json::read_object(path)?;
            declared.add_tokens(path, &config)?;
            declared.add_bos = flag(path, &config, "add_bos_token")?;
            declared.template = inline_template(path, &config)?;
        }
        if let Some(path) = &files.special_tokens_map {
            declared.add_tokens(path, &json::read_object(path)?)?;
        }
        if let Some(path) = &files.generation_config {
            declared.end_ids = end_ids(path, &json::read_object(path)?)?;
        }
        Ok(declared)
    }

    /// The text of a special token.
    pub fn token(&self, name: &str) -> Option<&str> {
        let found = self.tokens.iter().find(|(known, _)| known == name);
        found.map(|(_, text)| text.as_str())
    }

    fn add_tokens(&mut self, path: &Path, object: &Map<String, Value>) -> Result<(), Error> {
        for name in NAMES {
            let Some(text) = token_text(path, name, object.get(name))? else {
                continue;
            };
            if self.token(name).is_none() {
                self.tokens.push((name.to_string(), text));
            }
        }
        Ok(())
    }
}

fn token_text(path: &Path, name: &str, value: Option<&Value>) -> Result<Option<String>, Error> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        Some(value) => value.as_str(),
    };
    text.map(|text| Some(text.to_string()))
        .ok_or_else(|| bad(path, name, "is neither a string nor an object with `content`"))
}

fn flag(path: &Path, config: &Map<String, Value>, name: &str) -> Result<Option<bool>, Error> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(set)) => Ok(Some(*set)),
        Some(_) => Err(bad(path, name, "is not true or false")),
    }
}

fn end_ids(path: &Path, config: &Map<String, Value>) -> Result<Vec<u32>, Error> {
    let name = "eos_token_id";
    let ids = match config.get(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().collect(),
        Some(id) => vec![id],
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = ids.into_iter().map(id).collect();
    ids.ok_or_else(|| bad(path, name, "is neither a token id nor a list of token ids"))
}

/// A string, or a list of `{name, template}` of which `default` is for chats.
fn inline_template(
    path: &Path,
    config: &Map<String, Value>,
) -> Result<Option<(Place, String)>, Error> {
    let name = "chat_template";
    let text = match config.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => default_template(list),
        Some(value) => value.as_str(),
    };
    let text = text.ok_or_else(|| {
        let what = "is neither a string nor a list of {name, template} with a `default`";
        bad(path, name, what)
    })?;
    Ok(Some((Place::file(path).field(name), text.to_string())))
}

fn default_template(list: &[Value]) -> Option<&str> {
    let is_default = |entry: &&Value| entry["name"] == "default";
    list.iter().find(is_default)?["template"].as_str()
}

fn bad(path: &Path, field: &str, what: &str) -> Error {
    let what = format!("{what}; copy the file from the model again");
    Error::input(Place::file(path).field(field), what)
}
