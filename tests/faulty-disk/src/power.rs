//! What a disk holds after the power has gone: only what was forced to it.
//!
//! The content of a file stands once the file was synced, a name once its folder was. Of the rest a disk may
//! hold anything in between two extremes, and both are made here: nothing of it, or every name and removal
//! but no content, as where a file system writes its journal ahead of the data.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Which of the extremes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// New names, new contents and removals are gone.
    Forgotten,
    /// Names are as they were last; contents that were not synced are zeros.
    NamesOnly,
}

/// One file or folder, whatever it is called.
type Id = usize;

/// What has been forced to the disk.
#[derive(Default)]
pub struct Synced {
    /// Who has an inode now; a number is used again after its file is gone.
    ids: HashMap<u64, Id>,
    next: Id,
    contents: HashMap<Id, Vec<u8>>,
    /// All that were ever made; the names in one are empty until it is synced.
    folders: HashMap<Id, BTreeMap<OsString, Id>>,
}

impl Synced {
    /// Everything below `folder` has been there for long.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let mut synced = Self::default();
        synced.all(folder)?;
        Ok(synced)
    }

    fn all(&mut self, folder: &Path) -> io::Result<()> {
        self.force(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            match path.is_dir() {
                true => self.all(&path)?,
                false => self.force(&path)?,
            }
        }
        Ok(())
    }

    /// A new file or folder has been made at `path`.
    pub fn made(&mut self, path: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        self.ids.remove(&metadata.ino());
        let id = self.id(metadata.ino());
        if metadata.is_dir() {
            self.folders.insert(id, BTreeMap::new());
        }
        Ok(())
    }

    /// `path` was synced.
    pub fn force(&mut self, path: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let id = self.id(metadata.ino());
        if metadata.is_dir() {
            let names = self.names(path)?;
            self.folders.insert(id, names);
        } else {
            self.contents.insert(id, fs::read(path)?);
        }
        Ok(())
    }

    /// Leaves in `root` what the disk holds.
    pub fn power_goes(&mut self, root: &Path, unsynced: Unsynced) -> io::Result<()> {
        match unsynced {
            Unsynced::Forgotten => {
                let id = self.id(fs::symlink_metadata(root)?.ino());
                for entry in fs::read_dir(root)? {
                    remove(&entry?.path())?;
                }
                self.fill(root, id)
            }
            Unsynced::NamesOnly => self.zero(root),
        }
    }

    /// The names that were forced to the disk, with the contents that were.
    fn fill(&self, folder: &Path, id: Id) -> io::Result<()> {
        for (name, id) in self.folders.get(&id).into_iter().flatten() {
            let path = folder.join(name);
            if self.folders.contains_key(id) {
                fs::create_dir(&path)?;
                self.fill(&path, *id)?;
            } else {
                fs::write(&path, self.contents.get(id).map_or(&[][..], Vec::as_slice))?;
            }
        }
        Ok(())
    }

    /// Contents that were not forced to the disk become zeros.
    fn zero(&mut self, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                self.zero(&path)?;
                continue;
            }
            let id = self.id(metadata.ino());
            let zeros = || vec![0; metadata.len() as usize];
            fs::write(&path, self.contents.get(&id).cloned().unwrap_or_else(zeros))?;
        }
        Ok(())
    }

    fn names(&mut self, folder: &Path) -> io::Result<BTreeMap<OsString, Id>> {
        let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        let of = |entry: &fs::DirEntry| entry.metadata().as_ref().map(Metadata::ino).ok();
        let named = entries.iter().filter_map(|entry| Some((entry.file_name(), of(entry)?)));
        Ok(named.map(|(name, inode)| (name, self.id(inode))).collect())
    }

    fn id(&mut self, inode: u64) -> Id {
        let next = &mut self.next;
        *self.ids.entry(inode).or_insert_with(|| {
            *next += 1;
            *next
        })
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}
