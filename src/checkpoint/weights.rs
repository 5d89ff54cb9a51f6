//! The tensors of a model: one file, or shards behind an index, under one list of names.
//!
//! Each tensor must be where the index says (see `index`). A tensor in a shard that the index does
//! not mention is ignored, as transformers does: shards left over from another save are common, and
//! the index is the list of what counts.

use std::collections::BTreeMap;
use std::path::Path;

use super::index::ShardIndex;
use super::location::WeightFiles;
use super::tensors::{Tensor, TensorFile, quote};
use crate::error::{Error, Place, escape};

/// All tensors of a model by name.
#[derive(Debug)]
pub struct Weights {
    files: Vec<TensorFile>,
    /// For each name the file that holds it.
    index: BTreeMap<String, usize>,
}

impl Weights {
    /// Opens and checks all files. No tensor data is read.
    pub fn open(files: &WeightFiles) -> Result<Self, Error> {
        match files {
            WeightFiles::Single(path) => Self::single(path),
            WeightFiles::Sharded(index) => Self::sharded(index),
        }
    }

    /// Opens one file that holds everything.
    pub fn single(path: &Path) -> Result<Self, Error> {
        let file = TensorFile::open(path)?;
        let index = file.names().map(|name| (name.to_owned(), 0)).collect();
        Ok(Self { files: vec![file], index })
    }

    /// Opens the shards that the index file names.
    pub fn sharded(index_path: &Path) -> Result<Self, Error> {
        let ShardIndex { shards, tensors } = ShardIndex::read(index_path)?;
        let folder = index_path.parent().unwrap_or(Path::new(""));
        let files = shards
            .iter()
            .map(|shard| open_shard(folder, shard, index_path))
            .collect::<Result<Vec<_>, Error>>()?;
        let weights = Self { files, index: tensors };
        weights.check_present(index_path)?;
        Ok(weights)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The mapped files, in the order of their names.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// The tensor `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<Tensor<'_>> {
        self.files[*self.index.get(name)?].find(name)
    }

    /// The tensor `name`; the error lists names that resemble it.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.find(name).ok_or_else(|| {
            let place = Place::file(self.files[0].path()).tensor(name);
            Error::input(place, self.missing(name))
        })
    }

    /// The tensor `name`, which must have this shape.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, Error> {
        let tensor = self.tensor(name)?;
        tensor.expect_shape(shape)?;
        Ok(tensor)
    }

    fn missing(&self, name: &str) -> String {
        let last = name.rsplit('.').nth(1).unwrap_or(name);
        let similar = quote(self.names().filter(|n| n.contains(last)), 3);
        if similar.is_empty() {
            format!(
                "missing; the model holds {} tensors: {}",
                self.names().len(),
                quote(self.names(), 3)
            )
        } else {
            format!("missing; the model holds {similar}")
        }
    }

    fn check_present(&self, index_path: &Path) -> Result<(), Error> {
        match self.names().find(|name| self.find(name).is_none()) {
            None => Ok(()),
            Some(name) => Err(Error::input(
                Place::file(index_path).tensor(name),
                format!(
                    "is not in {}, where the index puts it: download the model again",
                    self.files[self.index[name]].path().display()
                ),
            )),
        }
    }
}

fn open_shard(folder: &Path, name: &str, index_path: &Path) -> Result<TensorFile, Error> {
    let path = folder.join(name);
    if !path.exists() {
        let what =
            format!("names the shard {}, which is missing: finish the download", escape(name));
        return Err(Error::input(index_path, what));
    }
    TensorFile::open(path)
}
