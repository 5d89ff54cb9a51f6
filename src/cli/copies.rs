//! Files of a model folder that go along unchanged with what is made from it.

use std::path::{Path, PathBuf};

use qlora_train::checkpoint::atomic;
use qlora_train::checkpoint::folder::OutputFolder;
use qlora_train::checkpoint::location::{ModelFiles, TOKENIZER_FILES};
use qlora_train::error::Error;

/// Copies the tokenizer files that are there; `place` gives the path of a name.
///
/// # Errors
/// A file cannot be read or written.
pub fn tokenizer(model: &ModelFiles, mut place: impl FnMut(&str) -> PathBuf) -> Result<(), Error> {
    TOKENIZER_FILES.iter().try_for_each(|name| copy(model, name, &mut place))
}

/// Copies everything around the weights but `config.json`: a whole model folder results.
///
/// # Errors
/// As [`tokenizer`].
pub fn around_weights(model: &ModelFiles, folder: &mut OutputFolder) -> Result<(), Error> {
    tokenizer(model, |name| folder.file(name))?;
    copy(model, "generation_config.json", &mut |name| folder.file(name))
}

fn copy(
    model: &ModelFiles,
    name: &str,
    place: &mut impl FnMut(&str) -> PathBuf,
) -> Result<(), Error> {
    match model.beside(name) {
        Some(from) => write(&from, &place(name)),
        None => Ok(()),
    }
}

fn write(from: &Path, to: &Path) -> Result<(), Error> {
    let bytes = std::fs::read(from).map_err(Error::io(from))?;
    atomic::write_bytes(to, bytes)
}
