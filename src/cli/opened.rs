//! MODEL: its files found, its configuration read, its tensors mapped, its tokenizer loaded.

use std::path::{Path, PathBuf};

use qlora_train::checkpoint::adapter::Adapter;
use qlora_train::checkpoint::bitsandbytes::{self, CodeBook};
use qlora_train::checkpoint::location::ModelFiles;
use qlora_train::checkpoint::tensors::TensorFile;
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::Moment;
use qlora_train::data::Tokenizer;
use qlora_train::data::TokenizerFiles;
use qlora_train::error::{Error, Place, escape};
use qlora_train::model::config::Config;
use qlora_train::model::fingerprint::Fingerprint;
use qlora_train::model::load::Residence;

use super::flags::{BaseFlags, ForeignFlags, QuantizationName, WeightsName};
use super::job::tell_unknown;
use super::output;

/// A model whose header and configuration have been read; no number of it has.
pub struct Opened {
    /// MODEL as it was typed.
    pub name: String,
    /// Its files.
    pub files: ModelFiles,
    /// What it computes.
    pub config: Config,
    /// Its tensors.
    pub weights: Weights,
}

/// Opens the model that `name` means.
///
/// # Errors
/// What was found instead of a model, or a field or tensor that cannot be used.
pub fn open(name: &str) -> Result<Opened, Error> {
    let files = ModelFiles::resolve(name)?;
    let config = read_config(&files.config)?;
    let weights = Weights::open(&files.weights)?;
    Ok(Opened { name: name.to_owned(), files, config, weights })
}

/// Reads the `config.json` at `path`.
///
/// # Errors
/// A field that cannot be used; weights quantized in a way that cannot be read.
pub fn read_config(path: &Path) -> Result<Config, Error> {
    let config = Config::read(path)?;
    if let Some(quantization) = &config.quantization {
        let place = Place::file(path).field("quantization_config");
        bitsandbytes::check_quantization_config(quantization, &place)?;
    }
    Ok(config)
}

impl Opened {
    /// The model's tokenizer, where it has one; `now` is what a chat template is told.
    ///
    /// # Errors
    /// A file that is damaged, or that does not fit the model.
    pub fn tokenizer(&self, now: Moment) -> Result<Option<Tokenizer>, Error> {
        let files = self.tokenizer_files();
        files.map(|files| Tokenizer::load(&files, self.config.vocab, now)).transpose()
    }

    fn tokenizer_files(&self) -> Option<TokenizerFiles> {
        Some(TokenizerFiles {
            tokenizer_json: self.files.tokenizer().ok()?,
            tokenizer_config: self.files.tokenizer_config.clone(),
            special_tokens_map: self.files.special_tokens_map.clone(),
            generation_config: self.files.generation_config.clone(),
            chat_template: self.files.chat_template.clone(),
        })
    }

    /// The adapter in `folder`, which must have been trained on this model if it says on which.
    ///
    /// # Errors
    /// An adapter that cannot be read, or that is another model's, unless `foreign` takes those too.
    pub fn adapter(&self, folder: &Path, foreign: ForeignFlags) -> Result<Adapter, Error> {
        let adapter = Adapter::read(folder)?;
        tell_unknown(&adapter, folder);
        self.check_base(&adapter, folder, foreign)?;
        Ok(adapter)
    }

    /// Refuses an adapter of another model.
    ///
    /// # Errors
    /// As [`adapter`](Self::adapter).
    pub fn check_base(
        &self,
        adapter: &Adapter,
        folder: &Path,
        ForeignFlags { any_base }: ForeignFlags,
    ) -> Result<(), Error> {
        let Some(theirs) = &adapter.provenance.base else { return Ok(()) };
        let ours = Fingerprint::of(&self.config, &self.weights)?;
        if ours.may_be(&Fingerprint::read(theirs)) {
            return Ok(());
        }
        let name = adapter.config.base_model.as_deref().unwrap_or("another model");
        let what = format!("was trained on {} and not on {}", escape(name), escape(&self.name));
        match any_base {
            true => output::warn(format_args!("{}: {what}", folder.display())),
            false => {
                let what = format!("{what}: give that model, or take it as it is with --any-base");
                return Err(Error::input(folder, what));
            }
        }
        Ok(())
    }

    /// The tokenizer with the chat template that an adapter was trained with, where it brings its own;
    /// says so if it is another one than the model's.
    ///
    /// # Errors
    /// As [`tokenizer`](Self::tokenizer).
    pub fn tokenizer_of(
        &self,
        adapter: Option<&Path>,
        now: Moment,
    ) -> Result<Option<Tokenizer>, Error> {
        let own = |name: &str| adapter.map(|folder| folder.join(name)).filter(|p| p.is_file());
        let (template, config) = (own("chat_template.jinja"), own("tokenizer_config.json"));
        let differs = |theirs: &Option<PathBuf>, ours: &Option<PathBuf>| {
            let read =
                |path: &Option<PathBuf>| path.as_ref().and_then(|path| std::fs::read(path).ok());
            theirs.is_some() && read(theirs) != read(ours)
        };
        let ours = &self.files;
        if !differs(&template, &ours.chat_template) && !differs(&config, &ours.tokenizer_config) {
            return self.tokenizer(now);
        }
        let Some(files) = self.tokenizer_files() else { return Ok(None) };
        let with = TokenizerFiles {
            chat_template: template.or(files.chat_template),
            tokenizer_config: config.or(files.tokenizer_config),
            ..files
        };
        let theirs = Tokenizer::load(&with, self.config.vocab, now)?;
        let source =
            |tokenizer: &Tokenizer| tokenizer.chat_template().map(|t| t.source().to_owned());
        if let (Some(adapter), Some(model)) = (adapter, self.tokenizer(now)?)
            && source(&model) != source(&theirs)
        {
            output::warn(format_args!(
                "{}: brings a chat template of its own, which is used: the model has another one",
                adapter.display()
            ));
        }
        Ok(Some(theirs))
    }

    /// Whether linear weights are in four bits already.
    pub fn is_four_bit(&self) -> bool {
        self.book().is_some()
    }

    /// How linear weights are kept where `flags` ask for something: in four bits already, they stay as they are.
    pub fn base(&self, flags: &BaseFlags) -> BaseFlags {
        let quantization = match self.book() {
            Some(CodeBook::Nf4) => QuantizationName::Nf4,
            Some(CodeBook::Fp4) => QuantizationName::Fp4,
            None => return flags.clone(),
        };
        let is_nested = self.weights.names().any(|name| name.ends_with(".nested_absmax"));
        BaseFlags { quantization, no_double_quant: !is_nested }
    }

    /// The code book of linear weights that are in four bits already.
    fn book(&self) -> Option<CodeBook> {
        self.weights.names().find_map(bitsandbytes::book)
    }

    /// Where the weights of the layers are in a pass with `budget` bytes, unless `wanted` says it: in
    /// files if those are in four bits and do not fit.
    pub fn residence(&self, wanted: Option<WeightsName>, budget: u64) -> Residence {
        let bytes: u64 = self.weights.files().iter().map(TensorFile::bytes).sum();
        match wanted {
            Some(wanted) => wanted.residence(),
            None if self.is_four_bit() && bytes > budget => Residence::Streamed,
            None => Residence::Resident,
        }
    }

    /// Tokens of the longest sequence that training takes if nothing is said.
    pub fn usual_length(&self) -> usize {
        usual_length(&self.config)
    }
}

/// Longest sequence if `--seq-len` is not given.
const USUAL_LENGTH: usize = 2048;

/// As [`Opened::usual_length`], from the configuration alone.
pub fn usual_length(config: &Config) -> usize {
    config.max_positions.clamp(2, USUAL_LENGTH)
}
