//! Pinned host memory where numbers of the GPU wait, in the order of what is computed.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DriverError, PinnedHostSlice, result};

use super::Cuda;
use crate::device::Address;
use crate::device::profile::Lane;
use crate::error::Error;

/// Host memory that the GPU copies to and from by itself.
pub struct Pinned {
    bytes: PinnedHostSlice<u8>,
    /// Where the copies are queued.
    stream: Arc<CudaStream>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What fails here has failed before, and was told to whoever waited for it.
        let _ = self.stream.synchronize();
    }
}

impl Cuda {
    /// `bytes` bytes of it.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, Error> {
        // SAFETY: nothing is read of it before it is written.
        let taken = unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) };
        let stream = self.compute.clone();
        taken
            .map(|bytes| Pinned { bytes, stream })
            .map_err(|error| self.failed(&format!("pinning {bytes} bytes"), error))
    }

    /// Queues a copy of `bytes` bytes at `from`.
    ///
    /// # Safety
    /// They are valid for reads, and `to` is as long, until the copy is done.
    pub unsafe fn park(&self, from: Address, bytes: usize, to: &mut Pinned) -> Result<(), Error> {
        let copy = || -> Result<(), DriverError> {
            self.context.bind_to_thread()?;
            let to = &mut to.bytes.as_mut_slice()?[..bytes];
            // SAFETY: passed on from the caller.
            unsafe { result::memcpy_dtoh_async(to, from.number(), self.compute.cu_stream()) }
        };
        let copied = self.timing.around(&self.compute, (Lane::Copies, "park", bytes as u64), copy);
        copied.map_err(|error| self.failed("a copy to host memory", error))
    }

    /// Queues a copy of `bytes` bytes to `to`.
    ///
    /// # Safety
    /// `to` is valid for writes of as many, and `from` is as long, until the copy is done.
    pub unsafe fn unpark(&self, from: &Pinned, bytes: usize, to: Address) -> Result<(), Error> {
        let copy = || -> Result<(), DriverError> {
            self.context.bind_to_thread()?;
            let from = &from.bytes.as_slice()?[..bytes];
            // SAFETY: passed on from the caller.
            unsafe { result::memcpy_htod_async(to.number(), from, self.compute.cu_stream()) }
        };
        let what = (Lane::Copies, "unpark", bytes as u64);
        let copied = self.timing.around(&self.compute, what, copy);
        copied.map_err(|error| self.failed("a copy from host memory", error))
    }
}
