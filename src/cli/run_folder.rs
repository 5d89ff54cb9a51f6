//! The output folder of a training run: taken before anything is loaded, held against a second
//! run, and gone again if nothing came of it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use qlora_train::checkpoint::folder::OutputFolder;
use qlora_train::error::{Error, Place};
use qlora_train::train::checkpoints::{Resume, State};

use super::output;
use super::values::{Date, date};

/// All resolved settings of the run.
pub const SETTINGS_FILE: &str = "train_config.toml";

/// An output folder that this run alone writes to.
pub struct RunFolder {
    path: PathBuf,
    /// Removes what was made, while nothing has come of it; absent where an earlier run goes on.
    fresh: Option<OutputFolder>,
    _lock: File,
}

impl RunFolder {
    /// Takes `path`: absent or empty, unless an earlier run goes on in it.
    ///
    /// # Errors
    /// A folder that holds something, or that another run writes to.
    pub fn take(path: &Path, resume: Option<&Resume>) -> Result<Self, Error> {
        let goes_on = resume.is_some() && path.is_dir();
        let fresh = match goes_on {
            true => None,
            false => Some(OutputFolder::create(path)?),
        };
        Ok(Self { _lock: lock(path)?, path: path.to_owned(), fresh })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file `name` in it, which goes with the folder if nothing comes of it.
    pub fn file(&mut self, name: &str) -> PathBuf {
        match &mut self.fresh {
            Some(fresh) => fresh.file(name),
            None => self.path.join(name),
        }
    }

    /// From now on what is there stays.
    pub fn keep(&mut self) {
        if let Some(fresh) = &mut self.fresh {
            fresh.commit();
        }
    }

    /// Whether a checkpoint has been written.
    pub fn has_checkpoint(&self) -> bool {
        checkpoints(&self.path).next().is_some()
    }

    /// The day that the earlier run's chat templates were told.
    pub fn date(&self) -> Option<Date> {
        date(self.settings()?.get("date")?.as_str()?).ok()
    }

    /// Sequences of the earlier run's micro-batches, and micro-batches of a step.
    pub fn batch(&self) -> Option<[usize; 2]> {
        let settings = self.settings()?;
        let count = |key: &str| usize::try_from(settings.get(key)?.as_integer()?).ok();
        Some([count("batch_size")?, count("grad_accum")?])
    }

    fn settings(&self) -> Option<toml::Table> {
        std::fs::read_to_string(self.path.join(SETTINGS_FILE)).ok()?.parse().ok()
    }

    /// Refuses to start anew over the checkpoints of another run, which `auto` has passed over.
    ///
    /// # Errors
    /// There is such a checkpoint.
    pub fn refuse_other_runs(&self, identity: &str) -> Result<(), Error> {
        for folder in checkpoints(&self.path) {
            let path = folder.join("trainer_state.json");
            let state = std::fs::read_to_string(&path).ok();
            let state = state.and_then(|text| serde_json::from_str::<State>(&text).ok());
            if state.is_some_and(|state| state.identity != identity) {
                let what = "belongs to a run with other settings, data or model: repeat those of \
                            train_config.toml to go on, or choose another --output-dir";
                return Err(Error::input(Place::file(&folder), what));
            }
        }
        Ok(())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.has_checkpoint() {
            self.keep();
        }
    }
}

fn checkpoints(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("checkpoint-").is_some_and(|step| step.parse::<u64>().is_ok())
    })
}

fn lock(path: &Path) -> Result<File, Error> {
    let folder = File::open(path).map_err(Error::io(path))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => {
            let what = "another run writes to this folder: wait for it, or choose another";
            Err(Error::input(path, what))
        }
        Err(TryLockError::Error(error)) => {
            // Some network disks know no locks.
            output::warn(format_args!("{}: cannot be locked: {error}", path.display()));
            Ok(folder)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_kept_out_and_a_refused_one_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let mut first = RunFolder::take(&path, None).unwrap();
        std::fs::write(first.file("metrics.jsonl"), "").unwrap();
        let message = |resume| RunFolder::take(&path, resume).err().unwrap().to_string();
        assert!(message(None).contains("already holds metrics.jsonl"));
        assert!(message(Some(&Resume::Auto)).contains("another run writes"));
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn checkpoints_keep_the_folder_of_a_run_that_failed_later() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("out");
        let mut run = RunFolder::take(&path, None).unwrap();
        std::fs::write(run.file("metrics.jsonl"), "").unwrap();
        std::fs::create_dir(path.join("checkpoint-5")).unwrap();
        drop(run);
        assert!(path.join("metrics.jsonl").exists());
    }
}
