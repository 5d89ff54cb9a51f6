//! `checkpoint-N/`: everything a run needs to go on after step N as if it had never stopped.
//!
//! A folder holds the adapter in PEFT's form, the optimizer's moments in their own precision, and
//! `trainer_state.json` with the step and what the run was started with. Data order, dropout and
//! learning rate are functions of seed and step, so there is nothing else to keep. A folder is
//! written under another name and renamed when it is whole; `digests.json` finds bytes that have
//! changed since. One that cannot be read whole is passed over by `auto`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::adapter::{self, Adapter};
use crate::checkpoint::atomic;
use crate::checkpoint::digest::Digest;
use crate::checkpoint::tensors::{DType, TensorFile};
use crate::checkpoint::writer::{Align, TensorSpec, TensorWriter};
use crate::device::Device;
use crate::error::{Error, Place};
use crate::json;
use crate::methods::lora;
use crate::optim::adamw::AdamW;
use crate::optim::shelf::Shelf;
use crate::params::Params;

use super::export::{Form, write_adapter};
use super::guard::Seen;

/// How the files of a checkpoint are laid out: another number is another way.
pub const FORMAT: u32 = 1;

/// This program.
pub const PROGRAM: &str = concat!("qlora-train ", env!("CARGO_PKG_VERSION"));

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const DIGESTS_FILE: &str = "digests.json";
/// Largest file of digests, in bytes.
const LARGEST_DIGESTS: u64 = 1 << 16;
/// Largest state, in bytes.
const LARGEST_STATE: u64 = 1 << 20;
const PREFIX: &str = "checkpoint-";
/// What the name of a checkpoint begins with until it is whole.
const UNFINISHED: &str = ".tmp-";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub global_step: u64,
    /// Optimizer steps that the run was to have.
    pub total_steps: u64,
    /// In how many of them the learning rate rises.
    pub warmup_steps: u64,
    /// Tokens that went in.
    pub num_input_tokens_seen: u64,
    /// Supervised ones among them.
    pub num_supervised_tokens_seen: u64,
    /// Loss of the first step.
    pub first_loss: f64,
    /// What decides whether a step may be applied.
    pub seen: Seen,
    /// How the files of a checkpoint are laid out.
    pub format: u32,
    /// The program that wrote it.
    pub program: String,
    /// What the numbers of the run depend on; another value means another run.
    pub identity: String,
}

/// What `--resume` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest whole checkpoint of the output folder, if there is one.
    Auto,
    /// That folder.
    From(PathBuf),
}

/// A checkpoint that has been read whole.
pub struct Found {
    /// Its folder.
    pub folder: PathBuf,
    /// Where the run stood.
    pub state: State,
    adapter: Adapter,
    optimizer: TensorFile,
}

/// Writes `output/checkpoint-N`, reads it back, and then removes the oldest beyond `keep`. One that stands
/// there whole, with the same adapter, stays; another one of the same step goes once this one is whole.
///
/// # Errors
/// [`Error::Io`], or numbers that are not finite; older checkpoints are untouched then.
pub fn save(
    output: &Path,
    device: &Device,
    params: &Params,
    optimizer: &AdamW,
    form: &Form,
    state: &State,
    keep: usize,
) -> Result<(), Error> {
    let name = format!("{PREFIX}{}", state.global_step);
    let (unfinished, folder) = (output.join(format!("{UNFINISHED}{name}")), output.join(name));
    let is_whole = |folder: &Path| Found::read(folder, &state.identity)?.holds(device, params);
    if folder.exists() && is_whole(&folder).is_ok() {
        return Ok(());
    }
    remove(&unfinished)?;
    let written = write_files(&unfinished, device, params, optimizer, form, state)
        .and_then(|()| is_whole(&unfinished));
    if let Err(error) = written {
        // What failed is told; that its rest could not be removed either would add nothing.
        let _ = remove(&unfinished);
        return Err(error);
    }
    remove(&folder)?;
    std::fs::rename(&unfinished, &folder).map_err(Error::io(&folder))?;
    atomic::sync_folder(output)?;
    rotate(output, state.global_step, keep)
}

/// Removes what a process that died left half-written in `output`, which nobody else writes to.
///
/// # Errors
/// [`Error::Io`].
pub fn clear_unfinished(output: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(output).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with(UNFINISHED) && path.is_dir() {
            remove(&path)?;
        } else if atomic::is_temporary(&name) && path.is_file() {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

fn write_files(
    folder: &Path,
    device: &Device,
    params: &Params,
    optimizer: &AdamW,
    form: &Form,
    state: &State,
) -> Result<(), Error> {
    std::fs::create_dir(folder).map_err(Error::io(folder))?;
    write_adapter(folder, device, params, form)?;
    write_moments(&folder.join(OPTIMIZER_FILE), device, optimizer)?;
    let text = serde_json::to_string_pretty(state).expect("a state is plain data");
    atomic::write_bytes(&folder.join(STATE_FILE), text + "\n")?;
    let digests = digests(folder)?;
    let text = serde_json::to_string_pretty(&digests).expect("digests are plain data");
    atomic::write_bytes(&folder.join(DIGESTS_FILE), text + "\n")
}

/// The digest of every file of `folder` by name, but of the file of digests.
fn digests(folder: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut digests = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != DIGESTS_FILE {
            digests.insert(name, format!("{:016x}", Digest::of_file(&path)?.value()));
        }
    }
    Ok(digests)
}

/// Refuses files that are not as they were written.
fn check_digests(folder: &Path) -> Result<(), Error> {
    let path = folder.join(DIGESTS_FILE);
    let text = json::read_text(&path, LARGEST_DIGESTS)?;
    let damaged = |error| Error::input(&path, format!("damaged: {error}"));
    let expected: BTreeMap<String, String> = serde_json::from_str(&text).map_err(damaged)?;
    for name in [STATE_FILE, OPTIMIZER_FILE].into_iter().chain(adapter::FILES) {
        if !expected.contains_key(name) {
            let what = format!("damaged: nothing about {name}");
            return Err(Error::input(&path, what));
        }
    }
    for (name, expected) in expected {
        let path = folder.join(&name);
        if format!("{:016x}", Digest::of_file(&path)?.value()) != expected {
            let what = "damaged since it was written: resume from another checkpoint";
            return Err(Error::input(path.as_path(), what));
        }
    }
    Ok(())
}

/// The checkpoint to go on from, and a line for each one that was passed over.
///
/// # Errors
/// A named folder that is damaged, or that belongs to another run.
pub fn find(
    output: &Path,
    resume: &Resume,
    identity: &str,
) -> Result<(Option<Found>, Vec<String>), Error> {
    let folder = match resume {
        Resume::From(folder) => folder,
        Resume::Auto => return Ok(newest_whole(output, identity)),
    };
    Ok((Some(Found::read(folder, identity)?), Vec::new()))
}

fn newest_whole(output: &Path, identity: &str) -> (Option<Found>, Vec<String>) {
    let mut passed_over = Vec::new();
    for (_, folder) in checkpoints(output).into_iter().rev() {
        match Found::read(&folder, identity) {
            Ok(found) => return (Some(found), passed_over),
            Err(error) => passed_over.push(format!("passed over: {error}")),
        }
    }
    (None, passed_over)
}

impl Found {
    fn read(folder: &Path, identity: &str) -> Result<Self, Error> {
        let path = folder.join(STATE_FILE);
        let text = json::read_text(&path, LARGEST_STATE)?;
        let damaged = |error| Error::input(&path, format!("damaged: {error}"));
        let state: State = serde_json::from_str(&text).map_err(damaged)?;
        if state.format != FORMAT {
            let what = format!(
                "{}, this program writes {FORMAT}: made by {}",
                state.format, state.program
            );
            return Err(Error::input(Place::file(&path).field("format"), what));
        }
        if state.identity != identity {
            let what = format!(
                "made with {}: resume with the settings of train_config.toml on the same files, or start \
                 anew in another folder",
                changed(&state.identity, identity)
            );
            return Err(Error::input(Place::file(&path).field("identity"), what));
        }
        let adapter = Adapter::read(folder)?;
        let optimizer = TensorFile::open(folder.join(OPTIMIZER_FILE))?;
        check_digests(folder)?;
        Ok(Self { folder: folder.to_owned(), state, adapter, optimizer })
    }

    /// Refuses if the adapter is another one than that of `params`.
    fn holds(&self, device: &Device, params: &Params) -> Result<(), Error> {
        lora::compare(device, params, &self.adapter)
            .map_err(|what| Error::input(self.folder.as_path(), what))
    }

    /// Puts values and moments back.
    ///
    /// # Errors
    /// Moments of another shape or kind.
    pub fn restore(
        &self,
        device: &Device,
        params: &mut Params,
        optimizer: &mut AdamW,
    ) -> Result<(), Error> {
        lora::restore(device, params, &self.adapter);
        let read_f32 = |name: &str, buf: &mut Shelf<f32>| {
            let tensor = self.tensor(name, DType::F32, buf.len())?;
            buf.upload(device, |first, values| tensor.to_f32_at(first, values))
        };
        for (buf, name) in optimizer.plain.iter_mut().zip(PLAIN) {
            read_f32(name, buf)?;
        }
        let Some(eight_bit) = &mut optimizer.eight_bit else { return Ok(()) };
        for (buf, name) in eight_bit.scales.iter_mut().zip(SCALES) {
            read_f32(name, buf)?;
        }
        for (buf, name) in eight_bit.codes.iter_mut().zip(CODES) {
            let codes = self.tensor(name, DType::U8, buf.len())?.data;
            buf.upload(device, |first, piece| {
                piece.copy_from_slice(&codes[first..first + piece.len()]);
                Ok::<_, Error>(())
            })?;
        }
        Ok(())
    }

    fn tensor(
        &self,
        name: &str,
        dtype: DType,
        len: usize,
    ) -> Result<crate::checkpoint::tensors::Tensor<'_>, Error> {
        let Some(tensor) = self.optimizer.find(name) else {
            let place = Place::file(self.optimizer.path()).tensor(name);
            return Err(Error::input(place, "missing: made with another --optimizer"));
        };
        tensor.expect_dtype(dtype)?;
        tensor.expect_shape(&[len])?;
        Ok(tensor)
    }
}

const PLAIN: [&str; 2] = ["exp_avg", "exp_avg_sq"];
const CODES: [&str; 2] = ["state1", "state2"];
const SCALES: [&str; 2] = ["absmax1", "absmax2"];

fn write_moments(path: &Path, device: &Device, optimizer: &AdamW) -> Result<(), Error> {
    let spec =
        |names: [&str; 2], dtype, len| names.map(|name| TensorSpec::new(name, dtype, &[len]));
    let mut specs = spec(PLAIN, DType::F32, optimizer.plain[0].len()).to_vec();
    if let Some(eight_bit) = &optimizer.eight_bit {
        specs.extend(spec(SCALES, DType::F32, eight_bit.scales[0].len()));
        specs.extend(spec(CODES, DType::U8, eight_bit.codes[0].len()));
    }
    let mut writer = TensorWriter::create(path, vec![specs], Align::Packed)?;
    for (buf, name) in optimizer.plain.iter().zip(PLAIN) {
        buf.download(device, |values| writer.append_f32(name, values))?;
    }
    if let Some(eight_bit) = &optimizer.eight_bit {
        for (buf, name) in eight_bit.scales.iter().zip(SCALES) {
            buf.download(device, |values| writer.append_f32(name, values))?;
        }
        for (buf, name) in eight_bit.codes.iter().zip(CODES) {
            buf.download(device, |codes| writer.append(name, codes))?;
        }
    }
    writer.finish()
}

/// What differs between the identities of two runs: each names its parts before their digests.
fn changed(then: &str, now: &str) -> String {
    let now: Vec<&str> = now.split(", ").collect();
    let others = then.split(", ").filter(|part| !now.contains(part));
    let names = others.map(|part| format!("other {}", part.split(' ').next().unwrap_or("parts")));
    names.collect::<Vec<_>>().join(" and ")
}

/// All `checkpoint-N` of `output`, by step.
fn checkpoints(output: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(output).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let step = name.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Removes the oldest checkpoints of this run beyond `keep`; the newest always stays.
fn rotate(output: &Path, newest: u64, keep: usize) -> Result<(), Error> {
    let of_run: Vec<_> =
        checkpoints(output).into_iter().filter(|(step, _)| *step <= newest).collect();
    let surplus = of_run.len().saturating_sub(keep.max(1));
    of_run.iter().take(surplus).try_for_each(|(_, folder)| remove(folder))
}

fn remove(folder: &Path) -> Result<(), Error> {
    match folder.exists() {
        true => std::fs::remove_dir_all(folder).map_err(Error::io(folder)),
        false => Ok(()),
    }
}
