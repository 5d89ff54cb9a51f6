//! The adapter in the output folder, in PEFT's form.

use std::path::Path;

use crate::checkpoint::adapter::{self, AdapterConfig, AdapterTensor};
use crate::device::Device;
use crate::error::Error;
use crate::params::Params;

/// Writes the adapter into `folder`, tensors first, each file whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write_adapter(
    folder: &Path,
    device: &Device,
    params: &Params,
    config: &AdapterConfig,
) -> Result<(), Error> {
    let mut values = vec![0.0; params.index().len()];
    device.download(&params.values, &mut values);
    let entries = params.index().entries();
    let tensors: Vec<_> = entries
        .iter()
        .map(|entry| AdapterTensor {
            name: &entry.name,
            shape: &entry.shape,
            values: &values[entry.range.clone()],
        })
        .collect();
    adapter::write(folder, config, &tensors)
}
