//! The kernels on a card: machine code for its target where this program has it, else PTX that the driver
//! compiles; and what each of them takes of a multiprocessor.
//!
//! Machine code is one module that is loaded by one call. PTX takes the driver seconds, each time the program
//! is new to it; what its compiler says is part of the error.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::io::Read;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute, CUjit_option};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::look::{Card, told, unusable};
use crate::error::Error;
use crate::ffi::{IMAGES, Image, Kernel, MODULES, Module};

/// Shared memory of a block from which on the driver is asked to give all it can to shared memory rather
/// than to the first-level cache: with less, every block that the registers allow has room anyway.
const MUCH_SHARED: usize = 16 << 10;

/// All kernels, loaded.
pub(super) struct Kernels {
    functions: Functions,
    /// The way in which they were loaded.
    pub(super) loaded: Loaded,
}

/// A kernel that can be launched.
pub(super) struct Function {
    pub(super) function: CudaFunction,
    pub(super) kernel: &'static Kernel,
}

/// The way in which the kernels came to a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The target of the machine code, as `sm_90`; none of PTX that the driver compiled.
    pub target: Option<&'static str>,
    /// Why machine code for this card was not taken, where there is some.
    pub refused: Option<String>,
    /// Until they were ready.
    pub time: Duration,
}

/// What a kernel takes of a multiprocessor, as the driver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Its name.
    pub name: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: i32,
    /// Bytes of a thread that did not fit into registers; the fast kernels have none.
    pub local_bytes: i32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: usize,
    /// Blocks that a multiprocessor runs at once.
    pub blocks: u32,
    /// The compute capability that the machine code is for: 90 is 9.0.
    pub binary_version: i32,
}

type Functions = HashMap<&'static str, Function>;

impl Kernels {
    /// Loads them all.
    ///
    /// # Errors
    /// [`Error::Device`]: the driver takes neither machine code nor PTX.
    pub(super) fn load(context: &Arc<CudaContext>, card: &Card) -> Result<Self, Error> {
        let begun = Instant::now();
        let machine_code = module_for(card.capability)
            .map(|module| (module.target, functions_of_module(context, module)));
        let compiled = || functions_of_images(context).map_err(|why| unusable(card.ordinal, why));
        let (functions, target, refused) = match machine_code {
            Some((target, Ok(functions))) => (functions, Some(target), None),
            Some((target, Err(why))) => (compiled()?, None, Some(format!("{target}: {why}"))),
            None => (compiled()?, None, None),
        };
        Ok(Self { functions, loaded: Loaded { target, refused, time: begun.elapsed() } })
    }

    /// The kernel `name`, which is one of those in [`IMAGES`].
    pub(super) fn function(&self, name: &str) -> &Function {
        self.functions.get(name).unwrap_or_else(|| panic!("no kernel {name}"))
    }

    /// What each kernel takes, in the order of [`IMAGES`].
    pub(super) fn resources(&self) -> Result<Vec<Resources>, DriverError> {
        let kernels = IMAGES.iter().flat_map(|image| image.kernels);
        kernels.map(|kernel| self.function(kernel.name).resources()).collect()
    }
}

/// The module whose machine code a card of `capability` runs: that of the same major number with the highest
/// minor number that is not above its own. The parts of a system on a chip (8.7) are none of them.
fn module_for(capability: (i32, i32)) -> Option<&'static Module> {
    let (major, minor) = capability;
    let fits = |module: &&Module| {
        module.capability.0 == major && module.capability.1 <= minor && !module.packed.is_empty()
    };
    MODULES.iter().rev().find(fits).filter(|_| capability != (8, 7))
}

/// All kernels, from machine code.
fn functions_of_module(context: &Arc<CudaContext>, module: &Module) -> Result<Functions, String> {
    let loaded = context.load_module(Ptx::from_binary(unpack(module))).map_err(told)?;
    let kernels = IMAGES.iter().flat_map(|image| image.kernels);
    kernels.map(|kernel| Ok((kernel.name, Function::of(&loaded, kernel).map_err(told)?))).collect()
}

/// All kernels, from PTX.
fn functions_of_images(context: &Arc<CudaContext>) -> Result<Functions, String> {
    let mut functions = Functions::new();
    for image in IMAGES {
        let why = |why| format!("the driver does not take the kernels of {}: {why}", image.name);
        let module = compile(context, image).map_err(why)?;
        for kernel in image.kernels {
            let function = Function::of(&module, kernel).map_err(|error| why(told(error)))?;
            functions.insert(kernel.name, function);
        }
    }
    Ok(functions)
}

/// The machine code of a module, as a driver takes it.
///
/// # Panics
/// If it was not packed by this program's build.
pub fn unpack(module: &Module) -> Vec<u8> {
    let mut code = Vec::new();
    let read = lzma_rust2::XzReader::new(module.packed, false).read_to_end(&mut code);
    read.unwrap_or_else(|error| panic!("{} is not what was built: {error}", module.target));
    code
}

/// Has the driver compile an image.
fn compile(context: &Arc<CudaContext>, image: &Image) -> Result<Arc<CudaModule>, String> {
    let compiled = context.load_module(Ptx::from_src(image.ptx));
    compiled.map_err(|error| match log_of(image) {
        Some(log) => format!("{}: {log}", told(error)),
        None => told(error),
    })
}

/// What the driver's compiler says of an image that it has just refused.
fn log_of(image: &Image) -> Option<String> {
    const BYTES: usize = 8 << 10;
    let text = CString::new(image.ptx).ok()?;
    let mut log = vec![0_u8; BYTES];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // A number is handed over in the place of a pointer.
    let mut values: [*mut c_void; 2] =
        [log.as_mut_ptr().cast(), ptr::without_provenance_mut(BYTES)];
    let mut module = ptr::null_mut();
    // SAFETY: the context is current since the call that failed; the log has as many bytes as are said.
    unsafe {
        let options = options.as_mut_ptr();
        let values = values.as_mut_ptr();
        let loaded =
            sys::cuModuleLoadDataEx(&raw mut module, text.as_ptr().cast(), 2, options, values);
        if loaded.result().is_ok() {
            let _ = result::module::unload(module);
        }
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(BYTES);
    let log = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Some(lines.join("; ")).filter(|log| !log.is_empty())
}

impl Function {
    /// A kernel of a module, allowed the shared memory that its blocks have.
    fn of(module: &Arc<CudaModule>, kernel: &'static Kernel) -> Result<Self, DriverError> {
        let function = module.load_function(kernel.name)?;
        let shared = kernel.shared as i32;
        function
            .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)?;
        if kernel.shared >= MUCH_SHARED {
            let carveout = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // A hint, in percent.
            function.set_attribute(carveout, 100)?;
        }
        Ok(Self { function, kernel })
    }

    fn resources(&self) -> Result<Resources, DriverError> {
        let Self { function, kernel } = self;
        let Kernel { name, threads, shared } = **kernel;
        let attribute = |of| function.get_attribute(of);
        Ok(Resources {
            name,
            threads,
            registers: attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? as usize
                + shared,
            blocks: function
                .occupancy_max_active_blocks_per_multiprocessor(threads, shared, None)?,
            binary_version: attribute(Attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)?,
        })
    }
}
