//! Opening a GPU: its context, its streams, the kernels and the book of its memory.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{self, CUdevice_attribute};
use cudarc::driver::{CudaContext, DriverError};

use super::gather::Computing;
use super::kernels::Kernels;
use super::look::{device_name, look, told, unusable};
use super::staging::Staging;
use super::timing::Timing;
use super::{Cuda, Ledger};
use crate::device::memory::{DRIVER, DRIVER_BYTES};
use crate::device::peak;
use crate::error::Error;

impl Cuda {
    /// Floating-point operations a second that its matrix units could do, where that is known.
    pub(in crate::device) fn matrix_peak(&self) -> Option<f64> {
        peak::of_gpu(&self.card)
    }

    /// Opens GPU `ordinal` with at most `limit` bytes of its memory, or nearly all that is
    /// free.
    ///
    /// # Errors
    /// As [`look`]; and kernels that the driver does not take.
    pub fn open(ordinal: usize, limit: Option<u64>) -> Result<Self, Error> {
        let card = look(ordinal)?;
        let failed = |error| unusable(ordinal, told(error));
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: this module orders its streams itself; no buffer is used on any other one.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context).map_err(failed)?;
        let stream = || context.new_stream().map_err(failed);
        let (compute, copies) = (Arc::new(Computing::new(stream()?, stream()?)), stream()?);
        let staging = Mutex::new(Staging::new(&context).map_err(failed)?);
        let (free, _) = context.mem_get_info().map_err(failed)?;
        let free = free as u64;
        let kernels = Kernels::load(&context, &card)?;
        let ledger = Ledger::new(device_name(ordinal), limit.unwrap_or(usable(free)));
        let driver = ledger.book(DRIVER, DRIVER_BYTES)?;
        Ok(Self {
            ledger,
            card,
            context,
            compute,
            copies,
            kernels,
            staging,
            scratch: Mutex::default(),
            timing: Timing::default(),
            free,
            _driver: driver,
        })
    }

    /// Bytes that the driver has taken since the card was opened beside what the book says: for the kernels,
    /// graphs, and whole pages.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(in crate::device) fn taken_by_driver(&self) -> Result<u64, Error> {
        let info = self.context.bind_to_thread().and_then(|()| self.context.mem_get_info());
        let (free, _) = info.map_err(|error| self.failed("asking for free memory", error))?;
        let booked = self.ledger.report().total.current - DRIVER_BYTES;
        Ok(self.free.saturating_sub(free as u64).saturating_sub(booked))
    }
}

/// Of what is free: the driver allocates whole pages of 2 MiB, and keeps some memory for itself.
fn usable(free: u64) -> u64 {
    free - free / 32
}

/// What is freed stays with this process, so that no later allocation has to ask the system for it. A card
/// without pools, as a part of one may be, frees at once.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    let pools = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    if context.attribute(pools)? == 0 {
        return Ok(());
    }
    context.bind_to_thread()?;
    let mut pool = MaybeUninit::uninit();
    let mut threshold = u64::MAX;
    // SAFETY: the driver writes a pool into `pool`, and reads a u64 for this attribute.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(pool.as_mut_ptr(), context.cu_device()).result()?;
        sys::cuMemPoolSetAttribute(
            pool.assume_init(),
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
        .result()
    }
}
