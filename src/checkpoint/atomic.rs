//! Files that appear whole or not at all.
//!
//! A file is written under another name in the same folder (`.NAME.tmp-PID`), forced to the disk,
//! renamed, and the folder is forced to the disk as well, so that neither a crash nor a power cut
//! leaves half a file under the real name. When anything fails, the temporary file is removed and
//! what stood under the name before is still there.
//!
//! Modes are those of any new file (0666 less the umask): a service under another user must be able
//! to read what was trained.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;

use crate::error::Error;

/// Writes `path` with what `body` puts into the writer.
///
/// Errors name `path`: `body` failed, or the system refused any of the steps.
pub fn write(
    path: &Path,
    body: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), Error> {
    let pending = Pending::create(path)?;
    let mut writer = BufWriter::new(pending.file());
    body(&mut writer).and_then(|()| writer.flush()).map_err(Error::io(path))?;
    drop(writer);
    pending.commit()
}

/// Writes `path` with exactly these bytes.
pub fn write_bytes(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
    write(path, |w| w.write_all(bytes.as_ref()))
}

/// A file being written under its temporary name; dropped without [`commit`](Self::commit), it is
/// removed.
#[derive(Debug)]
pub struct Pending {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Pending {
    /// Creates the temporary file beside `target`, whose folder must exist.
    pub fn create(target: &Path) -> Result<Self, Error> {
        let Some(name) = target.file_name() else {
            return Err(Error::input(target, "is not the name of a file"));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!("{TEMPORARY}{}", process::id()));
        let temporary = target.with_file_name(hidden);
        // Only a process that died could have left a file with this process's number.
        if temporary.is_file() {
            fs::remove_file(&temporary).map_err(Error::io(&temporary))?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(Error::io(target))?;
        Ok(Self { target: target.to_owned(), temporary, file })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name in the end.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The name until then.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Forces the bytes to the disk and gives the file its name.
    pub fn commit(self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io(&self.target))?;
        fs::rename(&self.temporary, &self.target).map_err(Error::io(&self.target))?;
        sync_folder(parent(&self.target))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // After a commit the name is gone and there is nothing to remove; after a failure, a second
        // failure has nobody to report to.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Whether `name` is one that a file has until it is whole.
pub fn is_temporary(name: &str) -> bool {
    let number = name.strip_prefix('.').and_then(|name| name.rsplit_once(TEMPORARY));
    number.is_some_and(|(_, process)| process.parse::<u32>().is_ok())
}

/// Between the name that a file will have and the number of the process that writes it.
const TEMPORARY: &str = ".tmp-";

/// Forces the names in `folder` to the disk.
pub fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder))
}

/// The folder of `path`; that of a bare name is the current one.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_bytes(&path, "old").unwrap();
        let error = write(&path, |w| {
            w.write_all(&[0; 100_000])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(error.unwrap_err().to_string().contains("a.json: "));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_name_taken_by_a_folder_fails_without_leftovers() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        assert!(write_bytes(&folder.path().join("a"), "x").is_err());
        assert!(write_bytes(&folder.path().join("none/x"), "x").is_err());
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn others_may_read_the_file_as_the_umask_allows() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("a"), folder.path().join("b"));
        write_bytes(&ours, "x").unwrap();
        fs::write(&plain, "x").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn a_leftover_of_a_dead_process_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let stale = format!(".a.tmp-{}", process::id());
        fs::write(folder.path().join(stale), "half").unwrap();
        write_bytes(&folder.path().join("a"), "whole").unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["a"]);
    }
}
