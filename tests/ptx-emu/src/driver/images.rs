//! Images: PTX, which is compiled, and machine code, which stands for the PTX that it was assembled from.

use std::ffi::{CStr, c_char, c_int};
use std::path::Path;

use super::{
    Code, Driver, Function, INVALID_HANDLE, INVALID_IMAGE, NO_BINARY_FOR_GPU, NOT_FOUND,
    SHARED_BYTES, UNSUPPORTED_PTX_VERSION, complain, count,
};
use crate::ptx::Module;

/// The kernels that machine code is assembled from, all of them into one module.
const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/prebuilt");

impl Driver {
    /// Loads an image and gives its handle.
    ///
    /// # Safety
    /// `image` is an ELF file, or a text that ends with a zero.
    pub(super) unsafe fn load(&mut self, image: *const c_char) -> Result<usize, Code> {
        if !self.card.takes_images {
            return Err(INVALID_IMAGE);
        }
        let first = self.modules.len();
        // SAFETY: passed on from the caller; an ELF file has a header, a text at least its zero.
        if unsafe { machine_code_at(image) } {
            // SAFETY: as above.
            self.require_target(unsafe { target_of(image) })?;
            self.modules.extend(kernels_of_machine_code());
            count(|counts| counts.loaded += 1);
        } else {
            // SAFETY: passed on from the caller.
            let text = unsafe { CStr::from_ptr(image) }.to_str().map_err(|_| INVALID_IMAGE)?;
            self.require_version(text)?;
            let module = Module::parse(text).map_err(|error| {
                complain(&error.to_string());
                INVALID_IMAGE
            })?;
            self.modules.push(module);
            count(|counts| counts.compiled += 1);
        }
        self.images.push(first..self.modules.len());
        Ok(self.images.len())
    }

    /// Machine code runs on cards of its major number and of no smaller minor number.
    fn require_target(&self, target: c_int) -> Result<(), Code> {
        let card = self.card.capability;
        let runs = self.card.takes_machine_code && target / 10 == card / 10 && target <= card;
        if runs { Ok(()) } else { Err(NO_BINARY_FOR_GPU) }
    }

    /// A driver compiles PTX of its own version and of older ones: CUDA 12.0 came with 8.0, 13.0 with 9.0.
    fn require_version(&self, text: &str) -> Result<(), Code> {
        let version = text.lines().find_map(|line| line.strip_prefix(".version "));
        let newest =
            f64::from(self.card.driver / 1000 - 4) + f64::from(self.card.driver % 1000 / 10) / 10.0;
        match version.map(str::parse::<f64>) {
            Some(Ok(version)) if version > newest => Err(UNSUPPORTED_PTX_VERSION),
            _ => Ok(()),
        }
    }

    /// The kernel `name` of an image, by its handle.
    pub(super) fn function(&mut self, image: usize, name: &str) -> Result<usize, Code> {
        let modules = self.images.get(image.wrapping_sub(1)).ok_or(INVALID_HANDLE)?.clone();
        let found = modules.into_iter().find_map(|module| {
            let kernels = &self.modules[module].kernels;
            Some((module, kernels.iter().position(|kernel| kernel.name == name)?))
        });
        let (module, kernel) = found.ok_or(NOT_FOUND)?;
        self.functions.push(Function { module, kernel, shared_bytes: SHARED_BYTES });
        Ok(self.functions.len())
    }

    /// Blocks of `threads` threads and `dynamic` bytes of shared memory that a multiprocessor has room for, as
    /// far as an emulator can tell: it has any number of registers.
    pub(super) fn blocks_at_once(
        &mut self,
        function: usize,
        threads: c_int,
        dynamic: usize,
    ) -> Result<c_int, Code> {
        let most = self.card.shared_bytes_on_request();
        let Function { module, kernel, .. } = *self.function_of(function)?;
        let declared = self.modules[module].kernels[kernel].shared_bytes;
        let by_threads = 1536 / threads.max(1);
        let by_shared = (most + 1024) / (declared + dynamic + 1024);
        Ok(by_threads.min(by_shared as c_int).min(16))
    }
}

/// # Safety
/// As for [`Driver::load`].
unsafe fn machine_code_at(image: *const c_char) -> bool {
    // SAFETY: bytes are read up to the first that differs; a zero does.
    b"\x7fELF".iter().enumerate().all(|(i, byte)| unsafe { image.add(i).read() } as u8 == *byte)
}

/// The target that a cubin was assembled for: 90 is sm_90. Files of sm_100 and later have it one byte further on.
///
/// # Safety
/// `image` is an ELF file.
unsafe fn target_of(image: *const c_char) -> c_int {
    const ABI: usize = 7;
    const FLAGS: usize = 48;
    const NEWER: u8 = 0x41;
    // SAFETY: the header of an ELF file has 64 bytes.
    let byte = |at: usize| unsafe { image.add(at).read() } as u8;
    c_int::from(byte(FLAGS + usize::from(byte(ABI) == NEWER)))
}

/// The PTX beside which machine code is kept.
fn kernels_of_machine_code() -> Vec<Module> {
    let entries = std::fs::read_dir(Path::new(KERNELS));
    let entries = entries.unwrap_or_else(|error| panic!("{KERNELS}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ptx"));
    paths.sort();
    let parsed = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("PTX");
        Module::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    paths.iter().map(parsed).collect()
}
