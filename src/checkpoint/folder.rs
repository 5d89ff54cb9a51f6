//! The folder a command writes its results to: new or empty, and gone again if nothing came of it.
//!
//! A run that is refused after it made the folder must leave no trace, and a run must never remove
//! what it did not make. So the guard remembers the folders it created and the files it was asked
//! for, and removes exactly those: files by name, folders only when empty.

use std::fs;
use std::path::{Path, PathBuf};

use super::atomic;
use super::tensors::quote;
use crate::error::Error;

/// An output folder; until [`commit`](Self::commit) its disappearance is only a drop away.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    /// Folders made by this run, outermost first.
    created: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl OutputFolder {
    /// Takes `path` for output: it must be absent, then it is created with its parents, or empty. What is
    /// saved in it survives a loss of power only if the names of the new folders do.
    pub fn create(path: &Path) -> Result<Self, Error> {
        check_empty(path)?;
        let mut folder = Self { path: path.to_owned(), created: Vec::new(), files: Vec::new() };
        for missing in missing_folders(path) {
            fs::create_dir(&missing).map_err(Error::io(&missing))?;
            folder.created.push(missing.clone());
            atomic::sync_folder(atomic::parent(&missing))?;
        }
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file `name` in it, which goes with the folder if nothing is committed.
    pub fn file(&mut self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        self.files.push(path.clone());
        path
    }

    /// From now on the folder and its files stay, whatever happens later.
    pub fn commit(&mut self) {
        self.created.clear();
        self.files.clear();
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        // A failure here has nobody to report to, and folders that others filled must stay.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for folder in self.created.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn check_empty(path: &Path) -> Result<(), Error> {
    if !path.is_dir() {
        return if path.exists() || path.is_symlink() {
            let what = "is not a folder: choose another name for the output folder";
            Err(Error::input(path, what))
        } else {
            Ok(())
        };
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if names.is_empty() {
        return Ok(());
    }
    let list = quote(names.iter().map(String::as_str), 3);
    Err(Error::input(
        path,
        format!("already holds {list}: choose a new or an empty folder for the output"),
    ))
}

/// The folders that must be made so that `path` exists, outermost first.
fn missing_folders(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<_> = path
        .ancestors()
        .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_run_leaves_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/out");
        let mut folder = OutputFolder::create(&path).unwrap();
        fs::write(folder.file("config.json"), "{}").unwrap();
        drop(folder);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_refused_run_keeps_what_others_put_there() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let mut folder = OutputFolder::create(&path).unwrap();
        fs::write(folder.file("ours"), "").unwrap();
        fs::write(path.join("theirs"), "").unwrap();
        drop(folder);
        assert!(path.join("theirs").exists() && !path.join("ours").exists());
    }

    #[test]
    fn an_empty_folder_is_taken_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = OutputFolder::create(root.path()).unwrap();
        fs::write(folder.file("x"), "").unwrap();
        drop(folder);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn committed_results_stay() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let mut folder = OutputFolder::create(&path).unwrap();
        fs::write(folder.file("x"), "").unwrap();
        folder.commit();
        drop(folder);
        assert!(path.join("x").exists());
    }

    #[test]
    fn a_folder_in_use_is_refused_by_what_it_holds() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("thesis.tex");
        fs::write(&file, "").unwrap();
        let message = |path: &Path| OutputFolder::create(path).unwrap_err().to_string();
        assert!(message(root.path()).contains("already holds thesis.tex"));
        assert!(message(&file).contains("is not a folder"));
        assert!(file.exists());
    }
}
