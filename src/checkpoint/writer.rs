//! Writes a tensor file piece by piece: the header first, each tensor when it is ready.
//!
//! Names, types and shapes must be known before the first number; the data may then come in any
//! order, and never more than one tensor of it needs to be in memory. The file appears under its
//! name only when every tensor was written and all of it was read back and found the same (see
//! [`super::atomic`] for the rest of the way). Where tensors go is decided in `layout`.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::atomic::Pending;
pub use super::layout::{Align, TensorSpec};
use super::layout::{arrange, header};
use super::tensors::TensorFile;
use crate::error::Error;

/// A tensor file being written; dropped before [`finish`](Self::finish), it leaves nothing.
#[derive(Debug)]
pub struct TensorWriter {
    pending: Pending,
    slots: BTreeMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    spec: TensorSpec,
    /// First byte in the file.
    begin: u64,
    /// Digest of the bytes written.
    digest: Option<u64>,
}

impl TensorWriter {
    /// Plans the file `path` and writes its header. Groups matter for [`Align::Cache`] only: one
    /// group is what stands together, such as the tensors of one layer.
    ///
    /// Panics if a name stands twice.
    pub fn create(path: &Path, groups: Vec<Vec<TensorSpec>>, align: Align) -> Result<Self, Error> {
        Self::create_with(path, groups, align, &BTreeMap::new())
    }

    /// As [`create`](Self::create), with texts of its own in the file's free metadata.
    pub fn create_with(
        path: &Path,
        groups: Vec<Vec<TensorSpec>>,
        align: Align,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let tensors = arrange(groups, align);
        let head = header(&tensors, metadata, align);
        let mut begin = head.len() as u64;
        let mut slots = BTreeMap::new();
        for spec in tensors {
            let size = spec.bytes() as u64;
            let name = spec.name.clone();
            let slot = Slot { spec, begin, digest: None };
            let twice = slots.insert(name, slot);
            assert!(twice.is_none(), "two tensors of one name: {twice:?}");
            begin += size;
        }
        let pending = Pending::create(path)?;
        let writer = Self { pending, slots };
        writer.write_at(&head, 0)?;
        Ok(writer)
    }

    /// Writes all bytes (little endian) of one tensor.
    ///
    /// Panics if the tensor was not announced, was written before, or has another size.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let slot = self.slot(name);
        assert_eq!(data.len(), slot.spec.bytes(), "bytes of {name}");
        assert_eq!(slot.digest, None, "{name} is written twice");
        slot.digest = Some(digest(data));
        let begin = slot.begin;
        self.write_at(data, begin)
    }

    /// Writes f32 numbers as an F32 tensor.
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        if cfg!(target_endian = "little") {
            return self.write(name, bytemuck::cast_slice(values));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write(name, &bytes)
    }

    /// Writes a text, with spaces behind it up to the room it has.
    pub fn write_text(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let slot = self.slot(name);
        let room = slot.spec.bytes();
        assert!(slot.spec.is_text(), "{name} was not announced as a text");
        assert!(text.len() <= room, "{} bytes of text in {room}", text.len());
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(room, b' ');
        self.write(name, &bytes)
    }

    /// Forces the file to the disk, reads it back, and gives it its name.
    ///
    /// Panics if a tensor was announced and not written.
    pub fn finish(self) -> Result<(), Error> {
        let missing = self.slots.values().find(|slot| slot.digest.is_none());
        assert!(missing.is_none(), "never written: {missing:?}");
        let sync = self.pending.file().sync_all();
        sync.map_err(Error::io(self.pending.target()))?;
        self.verify()?;
        self.pending.commit()
    }

    fn slot(&mut self, name: &str) -> &mut Slot {
        match self.slots.get_mut(name) {
            Some(slot) => slot,
            None => panic!("{name} was not announced"),
        }
    }

    fn write_at(&self, data: &[u8], begin: u64) -> Result<(), Error> {
        let file: &File = self.pending.file();
        file.write_all_at(data, begin).map_err(Error::io(self.pending.target()))
    }

    fn verify(&self) -> Result<(), Error> {
        let file = TensorFile::open(self.pending.temporary())?;
        let same = file.names().len() == self.slots.len()
            && self.slots.iter().all(|(name, slot)| {
                file.find(name).is_some_and(|tensor| {
                    tensor.dtype == slot.spec.dtype
                        && tensor.shape == slot.spec.shape
                        && Some(digest(tensor.data)) == slot.digest
                })
            });
        if same {
            return Ok(());
        }
        let fault = io::Error::other("what was written reads back differently: check the disk");
        Err(Error::io(self.pending.target())(fault))
    }
}

/// A digest that tells a lost or swapped block; no defence against intent.
fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tensors::DType;

    fn specs() -> Vec<TensorSpec> {
        vec![
            TensorSpec::new("w", DType::U8, &[64, 1]),
            TensorSpec::new("norm\"\u{e9}", DType::F32, &[2]),
            TensorSpec::text("info", 5),
        ]
    }

    #[test]
    fn what_was_written_is_read_back_by_us_and_by_the_crate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let mut writer = TensorWriter::create(&path, vec![specs()], Align::Cache).unwrap();
        writer.write_text("info", "{}").unwrap();
        writer.write_f32("norm\"\u{e9}", &[1.5, -2.0]).unwrap();
        writer.write("w", &[7; 64]).unwrap();
        assert!(!path.exists(), "visible before it is whole");
        writer.finish().unwrap();
        let file = TensorFile::open(&path).unwrap();
        let norm = file.find("norm\"\u{e9}").unwrap();
        assert_eq!(norm.finite_f32().unwrap(), [1.5, -2.0]);
        assert_eq!(norm.data.as_ptr() as usize % 64, 0);
        let info = file.find("info").unwrap().text().unwrap();
        assert_eq!((info.trim_end(), info.len()), ("{}", 56));
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        let crate_view = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(crate_view.tensor("w").unwrap().data(), [7; 64]);
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let mut writer = TensorWriter::create(&path, vec![specs()], Align::Packed).unwrap();
        writer.write("w", &[7; 64]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn bytes_lost_on_the_way_to_the_disk_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let specs = vec![TensorSpec::new("w", DType::U8, &[64])];
        let mut writer = TensorWriter::create(&path, vec![specs], Align::Packed).unwrap();
        writer.write("w", &[7; 64]).unwrap();
        let end = writer.slots["w"].begin + 63;
        writer.write_at(&[0], end).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert!(message.contains("reads back differently"), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_without_tensors_is_valid() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let writer = TensorWriter::create(&path, Vec::new(), Align::Cache).unwrap();
        writer.finish().unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().names().len(), 0);
    }
}
