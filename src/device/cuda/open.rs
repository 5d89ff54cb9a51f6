//! Finding a GPU and loading the kernels: each way in which that can fail is one line.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute_enum, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::gather::Computing;
use super::staging::Staging;
use super::timing::Timing;
use super::{Cuda, Ledger};
use crate::device::peak;
use crate::error::Error;
use crate::ffi::{IMAGES, Image, MADE};

/// The oldest driver that takes the images, as the driver numbers itself: CUDA 12.8.
const DRIVER: i32 = 12_080;

/// The lowest compute capability that the kernels are written for.
const CAPABILITY: (i32, i32) = (8, 0);

/// A GPU as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number.
    pub ordinal: usize,
    /// What its maker calls it.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// The newest CUDA that the driver knows: 12080 is 12.8.
    pub driver: i32,
    /// Bytes of memory.
    pub memory: u64,
    /// Its multiprocessors.
    pub multiprocessors: i32,
    /// Their clock at most, in kHz.
    pub clock_khz: i32,
    /// How the kernels for it were made: `prebuilt`, `nvrtc` or `nvcc`.
    pub kernels: &'static str,
}

/// Looks for GPU `ordinal` without opening it.
///
/// # Errors
/// [`Error::Device`]: no driver, no such GPU, or one that the kernels cannot run on.
pub fn look(ordinal: usize) -> Result<Card, Error> {
    // SAFETY: opens the library and asks for nothing; every other call needs it to be there.
    if !unsafe { sys::is_culib_present() } {
        let what = "no NVIDIA driver is installed: libcuda was not found";
        return Err(unusable(ordinal, what.to_owned()));
    }
    let asked = ask(ordinal).map_err(|error| unusable(ordinal, told(error)))?;
    let card = match asked {
        Asked::Card(card) => card,
        Asked::TooFew(0) => return Err(unusable(ordinal, "the driver finds no GPU".to_owned())),
        Asked::TooFew(count) => {
            let last = count - 1;
            let what = format!("there is no such GPU: the last one is cuda:{last}");
            return Err(unusable(ordinal, what));
        }
    };
    refuse_old(&card)?;
    Ok(card)
}

enum Asked {
    Card(Card),
    TooFew(usize),
}

fn ask(ordinal: usize) -> Result<Asked, DriverError> {
    match result::init() {
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Asked::TooFew(0)),
        started => started?,
    }
    let count = result::device::get_count()? as usize;
    if ordinal >= count {
        return Ok(Asked::TooFew(count));
    }
    let device = result::device::get(ordinal as i32)?;
    let mut driver = 0;
    // SAFETY: the device is one that the driver gave, and `driver` a place for its answer.
    let (memory, [major, minor, multiprocessors, clock_khz]) = unsafe {
        use CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_CLOCK_RATE as CLOCK,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT,
        };
        let attribute = |of| result::device::get_attribute(device, of);
        sys::cuDriverGetVersion(&raw mut driver).result()?;
        (
            result::device::total_mem(device)?,
            [attribute(MAJOR)?, attribute(MINOR)?, attribute(COUNT)?, attribute(CLOCK)?],
        )
    };
    let name = result::device::get_name(device)?;
    let memory = memory as u64;
    Ok(Asked::Card(Card {
        ordinal,
        name,
        capability: (major, minor),
        driver,
        memory,
        multiprocessors,
        clock_khz,
        kernels: MADE,
    }))
}

fn refuse_old(card: &Card) -> Result<(), Error> {
    if card.driver < DRIVER {
        let (major, minor) = (card.driver / 1000, card.driver % 1000 / 10);
        let what = format!(
            "the driver knows CUDA {major}.{minor}, and the kernels need 12.8: install driver R570 or newer"
        );
        return Err(unusable(card.ordinal, what));
    }
    if card.capability < CAPABILITY {
        let (major, minor) = card.capability;
        let what = format!(
            "{} has compute capability {major}.{minor}, and the kernels need 8.0 (Ampere) or more",
            card.name
        );
        return Err(unusable(card.ordinal, what));
    }
    Ok(())
}

impl Cuda {
    /// Floating-point operations a second that its matrix units could do, where that is known.
    pub(in crate::device) fn matrix_peak(&self) -> Option<f64> {
        peak::of_gpu(&look(self.context.ordinal()).ok()?)
    }

    /// Opens GPU `ordinal` with at most `limit` bytes of its memory, or nearly all that is
    /// free.
    ///
    /// # Errors
    /// As [`look`]; and an image that the driver does not take.
    pub fn open(ordinal: usize, limit: Option<u64>) -> Result<Self, Error> {
        look(ordinal)?;
        let failed = |error| unusable(ordinal, told(error));
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: this module orders its streams itself; no buffer is used on any other one.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context).map_err(failed)?;
        let stream = || context.new_stream().map_err(failed);
        let (compute, copies) = (Arc::new(Computing::new(stream()?, stream()?)), stream()?);
        let staging = Mutex::new(Staging::new(&context).map_err(failed)?);
        let functions = load_all(&context, ordinal)?;
        let (free, _) = context.mem_get_info().map_err(failed)?;
        let ledger = Ledger::new(device_name(ordinal), limit.unwrap_or(usable(free as u64)));
        let scratch = Mutex::default();
        let timing = Timing::default();
        Ok(Self { ledger, context, compute, copies, functions, staging, scratch, timing })
    }
}

/// Of what is free: the driver allocates whole pages of 2 MiB, and keeps some memory for itself.
fn usable(free: u64) -> u64 {
    free - free / 32
}

/// What is freed stays with this process, so that no later allocation has to ask the system for it.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
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

type Functions = HashMap<&'static str, CudaFunction>;

fn load_all(context: &Arc<CudaContext>, ordinal: usize) -> Result<Functions, Error> {
    let optin = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let shared = context.attribute(optin).map_err(|error| unusable(ordinal, told(error)))?;
    let mut functions = Functions::new();
    for image in IMAGES {
        functions.extend(load(context, image, shared).map_err(|error| {
            let what =
                format!("the driver does not take the kernels of {}: {}", image.name, told(error));
            unusable(ordinal, what)
        })?);
    }
    Ok(functions)
}

/// The kernels of an image, each allowed `shared` bytes of shared memory.
fn load(context: &Arc<CudaContext>, image: &Image, shared: i32) -> Result<Functions, DriverError> {
    let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let module = context.load_module(Ptx::from_src(image.ptx))?;
    let functions = image.kernels.iter().map(|name| {
        let function = module.load_function(name)?;
        function.set_attribute(most, shared)?;
        Ok((*name, function))
    });
    functions.collect()
}

pub(super) fn device_name(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

fn unusable(ordinal: usize, what: String) -> Error {
    Error::Device { device: device_name(ordinal), what }
}

/// What a driver's error means, and its name.
pub(super) fn told(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}
