//! Looking for a GPU without opening it: each way in which there is none to work with is one line.

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{DriverError, result};

use crate::error::Error;
use crate::ffi::MADE;

/// The oldest driver that has every call of this program, as it numbers itself: CUDA 12.0, the first with
/// kernel nodes of graphs as they are described here.
const DRIVER: i32 = 12_000;

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
            "the driver knows CUDA {major}.{minor}, and this program needs 12.0: install driver R525 or newer"
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

pub(super) fn device_name(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

pub(super) fn unusable(ordinal: usize, what: String) -> Error {
    Error::Device { device: device_name(ordinal), what }
}

/// What a driver's error means, and its name.
pub(super) fn told(error: DriverError) -> String {
    if error.0 == CUresult::CUDA_ERROR_STUB_LIBRARY {
        return "libcuda is the stub that comes with the CUDA toolkit, not the driver's: take its folder off \
                LD_LIBRARY_PATH (CUDA_ERROR_STUB_LIBRARY)"
            .to_owned();
    }
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}
