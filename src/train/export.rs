//! The adapter in a folder, in PEFT's form; and the proof that what lies there is what was trained.

use std::path::Path;

use crate::checkpoint::adapter::{self, Adapter, AdapterConfig, AdapterTensor, Provenance};
use crate::data::MicroBatch;
use crate::device::Device;
use crate::error::Error;
use crate::methods::lora;
use crate::params::Params;

use super::session::Session;

/// An adapter as its files describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// What its numbers depend on.
    pub config: AdapterConfig,
    /// What it was made from.
    pub provenance: Provenance,
}

/// Writes the adapter into `folder`, tensors first, each file whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write_adapter(
    folder: &Path,
    device: &Device,
    params: &Params,
    form: &Form,
) -> Result<(), Error> {
    let entries = params.index().entries();
    let tensors: Vec<AdapterTensor<'_>> =
        entries.iter().map(|entry| (&*entry.name, entry.shape)).collect();
    adapter::write(folder, (&form.config, &form.provenance), &tensors, |number, values| {
        device.download_at(&params.values, entries[number].range.start, values);
    })
}

/// What an adapter that was read back does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effect {
    /// Mean loss of the supervised tokens without it.
    pub without: f64,
    /// And with it.
    pub with: f64,
    /// Whether any of the losses is another one.
    pub changes: bool,
    /// Whether all of its updates are zero.
    pub is_zero: bool,
}

/// Reads the adapter in `folder` as everybody does, and compares it with `session`: its tensors, and the
/// losses of `micro`, which fits into the session. Gives what it does to these losses.
///
/// # Errors
/// Anything that is not as it was trained.
pub fn verify(folder: &Path, session: &mut Session, micro: &MicroBatch) -> Result<Effect, Error> {
    let adapter = Adapter::read(folder)?;
    let wrong = |what: String| Error::input(folder, format!("read back after writing: {what}"));
    let device = session.device.clone();
    lora::compare(&device, &session.params, &adapter).map_err(wrong)?;
    let trained = session.evaluate(micro)?;
    device.zero(&mut session.params.values);
    let without = session.evaluate(micro)?;
    lora::restore(&device, &mut session.params, &adapter);
    let read = session.evaluate(micro)?;
    if read.iter().zip(&trained).any(|(read, trained)| read.to_bits() != trained.to_bits()) {
        return Err(wrong("the losses are not those of the adapter in memory".to_owned()));
    }
    let mean = |losses: &[f32]| {
        losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64
    };
    let is_zero = adapter.modules.values().all(|pair| pair.b.iter().all(|b| *b == 0.0));
    Ok(Effect { without: mean(&without), with: mean(&read), changes: without != read, is_zero })
}
