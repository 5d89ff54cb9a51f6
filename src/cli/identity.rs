//! What the numbers of a run depend on, as a short text that a checkpoint carries.
//!
//! Three digests: the model (names and sizes of its files, its configuration), the data (tokens and
//! targets, so tokenizer and template count too), the settings. They tell another run from this
//! one; they are no defence against intent.

use std::path::Path;

use qlora_train::data::Example;
use qlora_train::error::Error;

use super::opened::Opened;

/// FNV-1a, 64 bits.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds a part whose length counts, so that parts cannot flow into each other.
    fn part(&mut self, bytes: &[u8]) {
        self.add(&(bytes.len() as u64).to_le_bytes());
        self.add(bytes);
    }
}

/// The identity of a run.
///
/// # Errors
/// A file of the model cannot be read.
pub fn identity(opened: &Opened, examples: &[Example], settings: &str) -> Result<String, Error> {
    let (model, data) = (model(opened)?, data(examples));
    let mut of_settings = Digest::new();
    of_settings.part(settings.as_bytes());
    Ok(format!("model {model:016x}, data {data:016x}, settings {:016x}", of_settings.0))
}

fn model(opened: &Opened) -> Result<u64, Error> {
    let mut digest = Digest::new();
    let config = &opened.files.config;
    digest.part(&std::fs::read(config).map_err(Error::io(config))?);
    for path in opened.weights.files().iter().map(|file| file.path()) {
        let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
        digest.part(name(path).as_bytes());
        digest.add(&size.to_le_bytes());
    }
    Ok(digest.0)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn data(examples: &[Example]) -> u64 {
    let mut digest = Digest::new();
    for example in examples {
        digest.part(bytemuck::cast_slice(&example.tokens));
        let targets: Vec<u8> = example.supervised.iter().map(|target| u8::from(*target)).collect();
        digest.part(&targets);
    }
    digest.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_train::data::Origin;

    #[test]
    fn the_digest_is_fnv_1a() {
        let mut digest = Digest::new();
        digest.add(b"foobar");
        assert_eq!(digest.0, 0x8594_4171_f739_67e8);
    }

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
