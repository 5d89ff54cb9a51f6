//! Writes a tensor file piece by piece: the header first, each tensor when it is ready.
//!
//! Names, types and shapes must be known before the first number; the data may then come in any
//! order, and never more than a part of one tensor needs to be in memory. The file appears under its
//! name only when every tensor was written and all of it was read back and found the same (see
//! [`super::atomic`] for the rest of the way). Where tensors go is decided in `layout`.

use std::borrow::Cow;
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

/// Bytes that are read back at a time.
const PIECE: usize = 1 << 16;

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
    /// Bytes that have been written.
    written: usize,
    /// Digest of those bytes.
    digest: DefaultHasher,
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
            let slot = Slot { spec, begin, written: 0, digest: DefaultHasher::new() };
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
        assert_eq!(slot.written, 0, "{name} is written twice");
        self.append(name, data)
    }

    /// Writes the next bytes (little endian) of a tensor.
    ///
    /// Panics if the tensor was not announced, or has no room for them.
    pub fn append(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let slot = self.slot(name);
        let (at, room) = (slot.begin + slot.written as u64, slot.spec.bytes());
        slot.written += data.len();
        assert!(slot.written <= room, "{} bytes of {name}, which has {room}", slot.written);
        slot.digest.write(data);
        self.write_at(data, at)
    }

    /// Writes f32 numbers as an F32 tensor.
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        self.write(name, &little_endian(values))
    }

    /// Writes f32 numbers as the next ones of an F32 tensor.
    pub fn append_f32(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        self.append(name, &little_endian(values))
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
        let missing = self.slots.values().find(|slot| slot.written < slot.spec.bytes());
        assert!(missing.is_none(), "never written whole: {missing:?}");
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

    /// A map of the file would count as memory of this process, so its numbers are read.
    fn verify(&self) -> Result<(), Error> {
        let file = TensorFile::open(self.pending.temporary())?;
        let announced = |(name, slot): (&String, &Slot)| {
            file.find(name).is_some_and(|tensor| {
                tensor.dtype == slot.spec.dtype && tensor.shape == slot.spec.shape
            })
        };
        let mut same = file.names().len() == self.slots.len() && self.slots.iter().all(announced);
        for slot in self.slots.values() {
            same &= self.digest(slot)? == slot.digest.finish();
        }
        if same {
            return Ok(());
        }
        let fault = io::Error::other("what was written reads back differently: check the disk");
        Err(Error::io(self.pending.target())(fault))
    }

    /// The digest of a tensor as it lies in the file: it tells a lost or swapped block, and is no defence
    /// against intent.
    fn digest(&self, slot: &Slot) -> Result<u64, Error> {
        let (mut hasher, mut piece) = (DefaultHasher::new(), vec![0; PIECE.min(slot.written)]);
        for start in (0..slot.written).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(slot.written - start)];
            let read = self.pending.file().read_exact_at(piece, slot.begin + start as u64);
            read.map_err(Error::io(self.pending.target()))?;
            hasher.write(piece);
        }
        Ok(hasher.finish())
    }
}

/// Numbers as the bytes of a file.
fn little_endian(values: &[f32]) -> Cow<'_, [u8]> {
    match cfg!(target_endian = "little") {
        true => Cow::Borrowed(bytemuck::cast_slice(values)),
        false => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
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
