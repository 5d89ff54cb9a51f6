//! What the word MODEL on the command line may be, and which files it means.
//!
//! A `.safetensors` file, a model folder, or `org/name` in the local Hugging Face cache. Nothing is
//! ever downloaded. What is there but cannot be used (an adapter, a pickle, a GGUF file) is named
//! for what it is, with the way out. No file's content is read here beyond its first bytes: weights
//! are opened by [`super::weights`], and `config.json` is understood by `model`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::identify::Kind;
use super::tensors::quote;
use crate::error::{Error, escape};
use crate::json::{plain_file_size, read_text};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where the tensors of a model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// Everything in this file.
    Single(PathBuf),
    /// Shards; this is the index that names them.
    Sharded(PathBuf),
}

impl WeightFiles {
    /// The file to name in messages: the tensor file or the index.
    pub fn path(&self) -> &Path {
        match self {
            Self::Single(path) | Self::Sharded(path) => path,
        }
    }
}

/// The files of one model. `config.json` and the weights exist; the rest may be absent.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The folder that holds all of them.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// The tensors.
    pub weights: WeightFiles,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<PathBuf>,
    /// `chat_template.jinja`.
    pub chat_template: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
}

impl ModelFiles {
    /// Finds the model that `text` means: a file, a folder, or a name in the user's cache.
    ///
    /// Errors say what was found instead of a model and what to give.
    pub fn resolve(text: &str) -> Result<Self, Error> {
        Self::resolve_with_cache(text, cache_folder().as_deref())
    }

    /// Like [`resolve`](Self::resolve) with the Hugging Face cache (its `hub` folder) given.
    pub fn resolve_with_cache(text: &str, cache: Option<&Path>) -> Result<Self, Error> {
        let path = Path::new(text);
        if path.is_dir() {
            Self::in_folder(path)
        } else if path.exists() {
            Self::of_file(path)
        } else if path.is_symlink() {
            Err(Error::input(path, "is a link to a file that does not exist: finish the download"))
        } else {
            Self::in_folder(&find_in_cache(text, cache)?)
        }
    }

    /// The path of `tokenizer.json`; the error says how to get one.
    pub fn tokenizer(&self) -> Result<PathBuf, Error> {
        if let Some(path) = self.beside("tokenizer.json") {
            return Ok(path);
        }
        let convert = "tokenizer.json is missing";
        let what = if self.beside("tokenizer.model").is_some() {
            format!(
                "{convert}, there is only SentencePiece's tokenizer.model: convert it once with \
                 transformers, `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`, or \
                 take tokenizer.json from the model's page"
            )
        } else if self.beside("vocab.json").is_some() {
            format!(
                "{convert}, there is only vocab.json: convert it once with transformers, \
                 `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`, or take \
                 tokenizer.json from the model's page"
            )
        } else {
            format!("{convert}: put the model's tokenizer.json into the folder")
        };
        Err(Error::input(&self.folder, what))
    }

    /// The file `name` of the model folder, if it is there.
    pub fn beside(&self, name: &str) -> Option<PathBuf> {
        present(&self.folder, name)
    }

    fn in_folder(folder: &Path) -> Result<Self, Error> {
        let weights = if let Some(path) = present(folder, SINGLE) {
            WeightFiles::Single(path)
        } else if let Some(path) = present(folder, INDEX) {
            WeightFiles::Sharded(path)
        } else {
            return Err(Error::input(folder, why_no_weights(folder)?));
        };
        refuse_links_out(folder, None)?;
        Self::around(folder, weights)
    }

    fn of_file(path: &Path) -> Result<Self, Error> {
        plain_file_size(path)?;
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        refuse_links_out(folder, Some(name))?;
        if name == INDEX {
            return Self::around(folder, WeightFiles::Sharded(path.to_owned()));
        }
        if let Some(what) = why_not_tensors(path)? {
            return Err(Error::input(path, what));
        }
        if name.contains("-of-") && present(folder, INDEX).is_some() {
            return Err(Error::input(
                path,
                format!("is one shard of a model: give the folder {} instead", folder.display()),
            ));
        }
        Self::around(folder, WeightFiles::Single(path.to_owned()))
    }

    /// The model whose weights are known, with the files beside them.
    fn around(folder: &Path, weights: WeightFiles) -> Result<Self, Error> {
        let config = present(folder, "config.json").ok_or_else(|| {
            let what = if present(folder, "adapter_config.json").is_some() {
                ADAPTER
            } else {
                "config.json is missing: it must lie beside the weights"
            };
            Error::input(folder, what)
        })?;
        Ok(Self {
            config,
            weights,
            tokenizer_config: present(folder, "tokenizer_config.json"),
            special_tokens_map: present(folder, "special_tokens_map.json"),
            chat_template: present(folder, "chat_template.jinja"),
            generation_config: present(folder, "generation_config.json"),
            folder: folder.to_owned(),
        })
    }
}

const ADAPTER: &str = "is a PEFT adapter, not a model: give its base model as MODEL and this \
                       folder as the adapter";

/// How a model writes text: what a tokenizer needs, and the chat template.
pub const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// Whether `name` is that of a file which is read of a model.
fn is_of_a_model(name: &str) -> bool {
    let others = ["config.json", "generation_config.json", INDEX];
    name.ends_with(".safetensors") || others.contains(&name) || TOKENIZER_FILES.contains(&name)
}

/// Refuses files of a model that are links to somewhere else: what somebody packed must not decide what is
/// read here. Links within the folder are fine, those of a download cache from a snapshot to its blobs, and
/// the file `named`, which the user has typed.
fn refuse_links_out(folder: &Path, named: Option<&str>) -> Result<(), Error> {
    let home = folder.canonicalize().map_err(Error::io(folder))?;
    let blobs = home.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = blobs.and_then(Path::parent).map(|repository| repository.join("blobs"));
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if !path.is_symlink() || !name.is_some_and(is_of_a_model) || name == named {
            continue;
        }
        // A broken link leads nowhere; whoever opens it says so.
        let Ok(target) = path.canonicalize() else { continue };
        let within =
            target.starts_with(&home) || blobs.as_ref().is_some_and(|b| target.starts_with(b));
        if !within {
            let what = format!(
                "is a link out of the model's folder, to {}: give the folder with the files themselves, or \
                 copy them here",
                escape(&target.display().to_string())
            );
            return Err(Error::input(&path, what));
        }
    }
    Ok(())
}

/// The path of `name` in `folder` if something is there. A broken link counts, so that opening it
/// fails by name instead of the file being taken for absent.
fn present(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    (path.exists() || path.is_symlink()).then_some(path)
}

/// Why a file given as MODEL is not a tensor file, judged by its name and its first bytes.
fn why_not_tensors(path: &Path) -> Result<Option<String>, Error> {
    use std::io::Read;
    let mut head = Vec::new();
    let file = fs::File::open(path).map_err(Error::io(path))?;
    file.take(64).read_to_end(&mut head).map_err(Error::io(path))?;
    let is_named_so = path.extension().is_some_and(|e| e == "safetensors");
    Ok(match Kind::of(&head).or_else(|| Kind::of_name(path)) {
        Some(kind) => Some(kind.advice().to_owned()),
        None if is_named_so => None,
        None => Some(
            "is not a .safetensors file: give the model's folder or its .safetensors file".into(),
        ),
    })
}

/// Why a folder has no usable weights, from the names in it.
fn why_no_weights(folder: &Path) -> Result<String, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let kind = |name: &&String| Kind::of_name(Path::new(name));
    let tensors: Vec<_> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
    let stranger = names.iter().find(|n| kind(n).is_some());
    Ok(if names.is_empty() {
        "the folder is empty: download the model into it".into()
    } else if names.iter().any(|n| n == "adapter_config.json") {
        ADAPTER.into()
    } else if let [only] = tensors[..] {
        format!("holds {} but no {SINGLE}: give that file as MODEL", escape(only))
    } else if !tensors.is_empty() {
        format!("holds {} tensor files but no {INDEX}: download the index too", tensors.len())
    } else if let Some((name, kind)) = stranger.and_then(|n| Some((n, kind(&n)?))) {
        format!("holds no {SINGLE}, and {} {}", escape(name), kind.advice())
    } else {
        format!(
            "holds neither {SINGLE} nor {INDEX}, only {}",
            quote(names.iter().map(String::as_str), 4)
        )
    })
}

/// The `hub` folder of the user's Hugging Face cache, by the variables that its own tools read.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// The snapshot folder of `org/name` in the cache that the reference `main` points to.
fn find_in_cache(text: &str, cache: Option<&Path>) -> Result<PathBuf, Error> {
    let given = Path::new(text);
    let Some((org, name)) = repository(text) else {
        return Err(Error::input(given, "no such file or folder"));
    };
    let fetch = format!("nothing is downloaded here: fetch it with `hf download {org}/{name}`");
    let Some(cache) = cache else {
        let what = format!("no such file or folder, and no Hugging Face cache was found; {fetch}");
        return Err(Error::input(given, what));
    };
    let model = cache.join(format!("models--{org}--{name}"));
    if !model.is_dir() {
        let what = format!(
            "no such file or folder, and not in the Hugging Face cache {}; {fetch}",
            cache.display()
        );
        return Err(Error::input(given, what));
    }
    snapshot(&model).map_err(|what| Error::input(&model, format!("{what}; {fetch}")))
}

fn snapshot(model: &Path) -> Result<PathBuf, String> {
    let reference = model.join("refs/main");
    let text = read_text(&reference, 1024)
        .map_err(|_| "the cached model has no readable refs/main".to_owned())?;
    let revision = text.trim();
    let plain = !revision.is_empty() && revision.chars().all(|c| c.is_ascii_alphanumeric());
    if !plain {
        return Err(format!("refs/main holds no revision: {}", escape(revision)));
    }
    let folder = model.join("snapshots").join(revision);
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(format!("the snapshot {revision} named by refs/main is missing"))
    }
}

/// Splits `org/name` if `text` has that form; both parts are plain names.
fn repository(text: &str) -> Option<(&str, &str)> {
    let (org, name) = text.split_once('/')?;
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    (plain(org) && plain(name)).then_some((org, name))
}
