//! MODEL: its files found, its configuration read, its tensors mapped, its tokenizer loaded.

use std::path::Path;

use qlora_train::checkpoint::bitsandbytes;
use qlora_train::checkpoint::location::ModelFiles;
use qlora_train::checkpoint::tensors::TensorFile;
use qlora_train::checkpoint::weights::Weights;
use qlora_train::data::Moment;
use qlora_train::data::Tokenizer;
use qlora_train::data::TokenizerFiles;
use qlora_train::error::{Error, Place};
use qlora_train::model::config::Config;
use qlora_train::model::load::Residence;

use super::flags::WeightsName;

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
        let Ok(tokenizer_json) = self.files.tokenizer() else {
            return Ok(None);
        };
        let files = TokenizerFiles {
            tokenizer_json,
            tokenizer_config: self.files.tokenizer_config.clone(),
            special_tokens_map: self.files.special_tokens_map.clone(),
            generation_config: self.files.generation_config.clone(),
            chat_template: self.files.chat_template.clone(),
        };
        Tokenizer::load(&files, self.config.vocab, now).map(Some)
    }

    /// Whether linear weights are in four bits already.
    pub fn is_four_bit(&self) -> bool {
        self.weights.names().any(|name| name.contains(".quant_state.bitsandbytes__"))
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
