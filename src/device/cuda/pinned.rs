//! Pinned host memory where numbers of the GPU wait: copies in the order of what is computed, or beside it.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};

use super::Cuda;
use crate::device::Address;
use crate::device::parking::When;
use crate::device::profile::Lane;
use crate::error::Error;

/// Host memory that the GPU copies to and from by itself.
pub struct Pinned {
    bytes: PinnedHostSlice<u8>,
    /// The last copy to it, or beside what is computed from it, is done.
    copied: CudaEvent,
    /// Who copies.
    cuda: Arc<Cuda>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What fails here has failed before, and was told to whoever waited for it.
        let _ = self.copied.synchronize();
        let _ = self.cuda.compute.stream().and_then(|stream| stream.synchronize());
    }
}

impl Pinned {
    /// Copies the start of it, once the last copy to it is done.
    pub fn read(&self, to: &mut [u8]) -> Result<(), Error> {
        let mut copy = || {
            self.copied.synchronize()?;
            to.copy_from_slice(&self.bytes.as_slice()?[..to.len()]);
            Ok(())
        };
        copy().map_err(|error| self.cuda.failed("reading pinned memory", error))
    }

    /// Writes the start of it, once all that is queued is done.
    pub fn write(&mut self, from: &[u8]) -> Result<(), Error> {
        let Self { bytes, copied, cuda } = self;
        let mut copy = || {
            copied.synchronize()?;
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
            Ok(Pinned { bytes, copied: self.context.new_event(None)?, cuda: self.clone() })
        };
        taken.and_then(zeros).map_err(|error| self.failed(&format!("pinning {bytes} bytes"), error))
    }

    /// Queues a copy of `bytes` bytes at `from`.
    ///
    /// # Safety
    /// They are valid for reads, and `to` is as long, until the copy is done.
    pub unsafe fn park(
        &self,
        from: Address,
        bytes: usize,
        to: &mut Pinned,
        when: When,
    ) -> Result<(), Error> {
        let Pinned { bytes: to, copied, .. } = to;
        let copy = |stream: &CudaStream| -> Result<(), DriverError> {
            let to = &mut to.as_mut_slice()?[..bytes];
            // SAFETY: passed on from the caller.
            unsafe { result::memcpy_dtoh_async(to, from.number(), stream.cu_stream()) }
        };
        self.copy_pinned(when, ("park", bytes), copied, copy)
    }

    /// Queues a copy of `bytes` bytes to `to`.
    ///
    /// # Safety
    /// `to` is valid for writes of as many, and `from` is as long, until the copy is done.
    pub unsafe fn unpark(
        &self,
        from: &Pinned,
        bytes: usize,
        to: Address,
        when: When,
    ) -> Result<(), Error> {
        let copy = |stream: &CudaStream| -> Result<(), DriverError> {
            let from = &from.bytes.as_slice()?[..bytes];
            // SAFETY: passed on from the caller.
            unsafe { result::memcpy_htod_async(to.number(), from, stream.cu_stream()) }
        };
        self.copy_pinned(when, ("unpark", bytes), &from.copied, copy)
    }

    /// What is queued from now on comes after the last copy that `copied` stands for.
    pub fn settle(&self, pinned: &Pinned) -> Result<(), Error> {
        let waited = self.compute.stream().and_then(|stream| stream.wait(&pinned.copied));
        waited.map_err(|error| self.failed("a wait for pinned memory", error))
    }

    /// Queues a copy behind all that is queued; `copied` is recorded after it.
    fn copy_pinned(
        &self,
        when: When,
        (name, bytes): (&'static str, usize),
        copied: &CudaEvent,
        copy: impl FnOnce(&CudaStream) -> Result<(), DriverError>,
    ) -> Result<(), Error> {
        let stream = match when {
            When::InOrder => self.compute.stream(),
            When::Beside => self.compute.beside(),
        };
        let queued = stream.and_then(|stream| {
            self.context.bind_to_thread()?;
            let what = (Lane::Copies, name, bytes as u64);
            self.timing.around(stream, what, || copy(stream))?;
            copied.record(stream)
        });
        queued.map_err(|error| self.failed("a copy between the GPU and host memory", error))
    }
}
