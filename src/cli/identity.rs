//! What the numbers of a run depend on, as a short text that a checkpoint carries.
//!
//! Three digests: the model (names, sizes and samples of its files, its configuration), the data (tokens
//! and targets, so tokenizer and template count too), the settings. They tell another run from this
//! one; they are no defence against intent.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use qlora_train::checkpoint::adapter::Provenance;
use qlora_train::checkpoint::digest::Digest;
use qlora_train::data::{Example, Tokenizer};
use qlora_train::error::Error;
use qlora_train::model::fingerprint::Fingerprint;
use qlora_train::train::checkpoints::PROGRAM;

use super::opened::Opened;

/// The identity of a run, in digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    model: u64,
    data: u64,
    settings: u64,
}

impl Identity {
    /// Of a run on `examples`.
    ///
    /// # Errors
    /// A file of the model cannot be read.
    pub fn of(opened: &Opened, examples: &[Example], settings: &str) -> Result<Self, Error> {
        let settings = of_text(settings);
        Ok(Self { model: model(opened)?, data: data(examples), settings })
    }

    /// What the adapter of the run says of where it comes from.
    ///
    /// # Errors
    /// A model without dense embeddings.
    pub fn provenance(
        &self,
        opened: &Opened,
        tokenizer: Option<&Tokenizer>,
        settings: String,
    ) -> Result<Provenance, Error> {
        let hex = |digest: u64| Some(format!("{digest:016x}"));
        let template = tokenizer.and_then(Tokenizer::chat_template);
        Ok(Provenance {
            base: Some(Fingerprint::of(&opened.config, &opened.weights)?.to_string()),
            data: hex(self.data),
            template: template.and_then(|template| hex(of_text(template.source()))),
            settings: Some(settings),
            program: Some(PROGRAM.to_owned()),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, data, settings } = self;
        write!(f, "model {model:016x}, data {data:016x}, settings {settings:016x}")
    }
}

/// The digest of a text.
fn of_text(text: &str) -> u64 {
    let mut digest = Digest::default();
    digest.part(text.as_bytes());
    digest.value()
}

fn model(opened: &Opened) -> Result<u64, Error> {
    let mut digest = Digest::default();
    let config = &opened.files.config;
    digest.part(&std::fs::read(config).map_err(Error::io(config))?);
    for path in opened.weights.files().iter().map(|file| file.path()) {
        let file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        digest.part(name(path).as_bytes());
        digest.add(&size.to_le_bytes());
        let mut sample = [0; SAMPLE];
        for i in 0..SAMPLES {
            let at = size.saturating_sub(SAMPLE as u64) / (SAMPLES - 1) * i;
            let read = file.read_at(&mut sample, at).map_err(Error::io(path))?;
            digest.part(&sample[..read]);
        }
    }
    Ok(digest.value())
}

/// Pieces of each file that count, from its start to its end.
const SAMPLES: u64 = 256;

/// Bytes of a piece.
const SAMPLE: usize = 1024;

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn data(examples: &[Example]) -> u64 {
    let mut digest = Digest::default();
    for example in examples {
        digest.part(bytemuck::cast_slice(&example.tokens));
        let targets: Vec<u8> = example.supervised.iter().map(|target| u8::from(*target)).collect();
        digest.part(&targets);
    }
    digest.value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_train::data::Origin;

    #[test]
    fn another_mask_or_another_border_is_other_data() {
        let example = |tokens: &[u32], supervised: &[bool]| Example {
            tokens: tokens.to_vec(),
            supervised: supervised.to_vec(),
            origin: Origin { file: 0, line: 1, record: 0 },
        };
        let one = data(&[example(&[1, 2], &[false, true]), example(&[3], &[false])]);
        let mask = data(&[example(&[1, 2], &[false, false]), example(&[3], &[false])]);
        let border = data(&[example(&[1], &[false]), example(&[2, 3], &[true, false])]);
        assert!(one != mask && one != border && mask != border);
    }
}
