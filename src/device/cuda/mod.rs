//! An NVIDIA GPU as a device: the driver is loaded at run time where there is one, and nothing else of
//! CUDA is needed.
//!
//! One stream computes, one copies to the GPU, one to and from host memory beside what is computed. Everything is queued and nothing is waited for, but where the
//! host wants to see a number. A copy to the GPU passes through a ring of pinned buffers
//! (`staging.rs`); it waits for what was queued before it, which may still read what it overwrites, and
//! what is queued after it waits for it. Memory is allocated in the order of the computing stream, from
//! the one pool of the device.
//!
//! Kernels of a block that come again are started by one call (`gather.rs`).
//!
//! `look.rs` finds the card, `open.rs` opens it, `kernels.rs` loads the kernels that are part of this program.

mod feed;
mod gather;
mod kernels;
mod look;
mod open;
mod pinned;
mod staging;
mod timing;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError};

pub use feed::{Arrival, Feed};
pub use kernels::{Loaded, Resources, unpack};
pub use look::{Card, look};
pub use pinned::Pinned;

use super::cpu::SCRATCH;
use super::memory::{Booking, Ledger};
use super::profile::{Lane, Profile};
use super::{Address, Grid, Pass};
use crate::error::Error;
use gather::Computing;
use kernels::Kernels;
use staging::Staging;
use timing::Timing;

/// A GPU with its kernels loaded.
pub struct Cuda {
    pub(super) ledger: Arc<Ledger>,
    card: Card,
    context: Arc<CudaContext>,
    compute: Arc<Computing>,
    copies: Arc<CudaStream>,
    kernels: Kernels,
    staging: Mutex<Staging>,
    scratch: Mutex<Option<Scratch>>,
    timing: Timing,
    /// Bytes that were free before the kernels were loaded.
    free: u64,
    _driver: Booking,
}

/// Memory on the GPU.
pub(super) struct Region {
    slice: Box<CudaSlice<u8>>,
    computing: Arc<Computing>,
}

struct Scratch {
    region: Region,
    bytes: usize,
    _booking: Booking,
}

impl Drop for Region {
    fn drop(&mut self) {
        // It is freed in the order of the computing stream. What fails here fails for whoever computes next.
        let _ = self.computing.join();
    }
}

impl Region {
    pub(super) fn address(&self) -> Address {
        let (address, _sync) = self.slice.device_ptr(self.slice.stream());
        Address::of_device(address)
    }
}

impl Cuda {
    /// The card as it was found.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// How the kernels were loaded.
    pub fn loaded(&self) -> &Loaded {
        &self.kernels.loaded
    }

    /// What each kernel takes of a multiprocessor.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn resources(&self) -> Result<Vec<Resources>, Error> {
        self.kernels.resources().map_err(|error| self.failed("asking what kernels take", error))
    }

    /// `bytes` zeros, which the ledger has booked under `label`.
    pub(super) fn alloc(&self, label: &'static str, bytes: usize) -> Result<Region, Error> {
        // The driver has no allocation of no bytes.
        let stream = self.compute.stream();
        let allocated = stream.and_then(|stream| stream.alloc_zeros::<u8>(bytes.max(1)));
        let region = |slice| Region { slice: Box::new(slice), computing: self.compute.clone() };
        allocated.map(region).map_err(|error| match error {
            DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => Error::OutOfMemory {
                device: self.ledger.device().to_owned(),
                label,
                bytes: bytes as u64,
                available: self.context.mem_get_info().map_or(0, |(free, _)| free as u64),
            },
            error => self.failed(&format!("allocating {bytes} bytes for {label}"), error),
        })
    }

    /// Copies `from` to `to`, behind all that is queued and before all that will be.
    ///
    /// # Safety
    /// `to` is valid for writes of as many bytes.
    pub(super) unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), Error> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: passed on from the caller.
        let queued = self.compute.stream().and_then(|compute| unsafe {
            self.copies.wait(&compute.record_event(None)?)?;
            let what = (Lane::Copies, "upload", from.len() as u64);
            self.timing.around(&self.copies, what, || staging.upload(&self.copies, from, to))?;
            compute.wait(&self.copies.record_event(None)?)
        });
        queued.map_err(|error| self.failed("a copy to the GPU", error))
    }

    /// Waits for all that is queued and copies `from` to `to`.
    ///
    /// # Safety
    /// `from` is valid for reads of as many bytes.
    pub(super) unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Error> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let what = (Lane::Copies, "download", to.len() as u64);
        let copied = self.compute.stream().and_then(|stream| {
            // SAFETY: passed on from the caller.
            self.timing.around(stream, what, || unsafe { staging.download(stream, from, to) })
        });
        copied.map_err(|error| self.failed("a copy from the GPU", error))
    }

    /// From now on, what is queued is timed.
    pub(super) fn start_timing(&self, profile: &Profile) -> Result<(), Error> {
        let begun = self.compute.stream().and_then(|stream| self.timing.begin(stream, profile));
        begun.map_err(|error| self.failed("an event", error))
    }

    /// Waits for all that is queued, and enters its times.
    pub(super) fn synchronize(&self, profile: Option<&Profile>) -> Result<(), Error> {
        let waited = self.compute.stream().and_then(|stream| stream.synchronize());
        let waited = waited.and_then(|()| self.context.check_err());
        let settle = |()| profile.map_or(Ok(()), |profile| self.timing.settle(profile));
        let waited = waited.and_then(settle);
        waited.map_err(|error| self.failed("the kernels queued so far", error))
    }

    /// Scratch of at least `bytes` bytes; it grows where no launch before needed as many.
    pub(super) fn scratch(&self, bytes: usize) -> Result<Address, Error> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scratch) = scratch.as_ref().filter(|scratch| scratch.bytes >= bytes) {
            return Ok(scratch.region.address());
        }
        *scratch = None;
        let booking = self.ledger.book(SCRATCH, bytes as u64)?;
        let region = self.alloc(SCRATCH, bytes)?;
        let address = region.address();
        *scratch = Some(Scratch { region, bytes, _booking: booking });
        Ok(address)
    }

    /// # Safety
    /// As for [`Queue::launch`](super::Queue::launch).
    pub(super) unsafe fn launch<P: Copy + PartialEq + Debug>(
        &self,
        name: &'static str,
        grid: Grid,
        params: &P,
    ) -> Result<(), Error> {
        let function = self.kernels.function(name);
        // SAFETY: passed on from the caller.
        let launch = || unsafe { self.compute.launch(function, grid, params) };
        let launched = match self.timing.is_on() {
            true => self
                .compute
                .stream()
                .and_then(|stream| self.timing.around(stream, (Lane::Compute, name, 0), launch)),
            false => launch(),
        };
        let what = |error| self.failed(&format!("kernel {name}, {grid:?}, {params:?}"), error);
        launched.map_err(what)
    }

    /// Gathers what `work` launches, unless each launch is timed.
    pub(super) fn gather<R>(&self, pass: Pass, work: impl FnOnce() -> R) -> (R, Result<(), Error>) {
        if self.timing.is_on() {
            return (work(), Ok(()));
        }
        let (result, started) = self.compute.gather(pass, work);
        let what = |error| self.failed(&format!("the kernels of {pass:?}"), error);
        (result, started.map_err(what))
    }

    /// # Safety
    /// The bytes are valid for writes.
    pub(super) unsafe fn zero(&self, address: Address, bytes: usize) -> Result<(), Error> {
        let queued = self.compute.stream().and_then(|stream| {
            self.context.bind_to_thread()?;
            // SAFETY: passed on from the caller; the context is current.
            unsafe { result::memset_d8_async(address.number(), 0, bytes, stream.cu_stream()) }
        });
        queued.map_err(|error| self.failed("zeros on the GPU", error))
    }

    fn failed(&self, what: &str, error: DriverError) -> Error {
        Error::Device {
            device: self.ledger.device().to_owned(),
            what: format!("{what}: {}", look::told(error)),
        }
    }
}
