//! Pinned host memory where numbers of the GPU wait, in the order of what is computed.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};

use super::Cuda;
use crate::device::Address;
use crate::device::profile::Lane;
use crate::error::Error;

/// Host memory that the GPU copies to and from by itself.
pub struct Pinned {
    bytes: PinnedHostSlice<u8>,
    /// The last copy to it is done.
    parked: CudaEvent,
    /// Who copies.
    cuda: Arc<Cuda>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What fails here has failed before, and was told to whoever waited for it.
        let _ = self.cuda.compute.stream().and_then(|stream| stream.synchronize());
    }
}

impl Pinned {
    /// Copies the start of it, once the last copy to it is done.
    pub fn read(&self, to: &mut [u8]) -> Result<(), Error> {
        let mut copy = || {
            self.parked.synchronize()?;
            to.copy_from_slice(&self.bytes.as_slice()?[..to.len()]);
            Ok(())
        };
        copy().map_err(|error| self.cuda.failed("reading pinned memory", error))
    }

    /// Writes the start of it, once all that is queued is done.
    pub fn write(&mut self, from: &[u8]) -> Result<(), Error> {
        let Self { bytes, cuda, .. } = self;
        let mut copy = || {
            cuda.compute.stream()?.synchronize()?;
            bytes.as_mut_slice()?[..from.len()].copy_from_slice(from);
            Ok(())
        };
        copy().map_err(|error| cuda.failed("writing pinned memory", error))
    }
}

impl Cuda {
    /// `bytes` bytes of it.
    pub fn pinned(self: &Arc<Self>, bytes: usize) -> Result<Pinned, Error> {
        // SAFETY: it is written below before anything is read of it.
        let taken = unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) };
        let zeros = |mut bytes: PinnedHostSlice<u8>| {
            bytes.as_mut_slice()?.fill(0);
            Ok(Pinned { bytes, parked: self.context.new_event(None)?, cuda: self.clone() })
        };
        taken.and_then(zeros).map_err(|error| self.failed(&format!("pinning {bytes} bytes"), error))
    }

    /// Queues a copy of `bytes` bytes at `from`.
    ///
    /// # Safety
    /// They are valid for reads, and `to` is as long, until the copy is done.
    pub unsafe fn park(&self, from: Address, bytes: usize, to: &mut Pinned) -> Result<(), Error> {
        let mut copy = |stream: &CudaStream| -> Result<(), DriverError> {
            self.context.bind_to_thread()?;
            let Pinned { bytes: to, parked, .. } = to;
            let to = &mut to.as_mut_slice()?[..bytes];
            // SAFETY: passed on from the caller.
            unsafe { result::memcpy_dtoh_async(to, from.number(), stream.cu_stream())? };
            parked.record(stream)
        };
        let what = (Lane::Copies, "park", bytes as u64);
        let copied = self.compute.stream();
        let copied = copied.and_then(|stream| self.timing.around(stream, what, || copy(stream)));
        copied.map_err(|error| self.failed("a copy to host memory", error))
    }

    /// Queues a copy of `bytes` bytes to `to`.
    ///
    /// # Safety
    /// `to` is valid for writes of as many, and `from` is as long, until the copy is done.
    pub unsafe fn unpark(&self, from: &Pinned, bytes: usize, to: Address) -> Result<(), Error> {
        let copy = |stream: &CudaStream| -> Result<(), DriverError> {
            self.context.bind_to_thread()?;
            let from = &from.bytes.as_slice()?[..bytes];
            // SAFETY: passed on from the caller.
            unsafe { result::memcpy_htod_async(to.number(), from, stream.cu_stream()) }
        };
        let what = (Lane::Copies, "unpark", bytes as u64);
        let copied = self.compute.stream();
        let copied = copied.and_then(|stream| self.timing.around(stream, what, || copy(stream)));
        copied.map_err(|error| self.failed("a copy from host memory", error))
    }
}
