//! A program over cudarc, as tests of the driver share it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError,
    LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;

/// Normalizes rows.
pub const PTX: &str = include_str!("../kernels/rmsnorm.ptx");

/// Opens the stand-in, which the build has put beside this program, before anything asks for a driver.
pub static CONTEXT: LazyLock<Arc<CudaContext>> = LazyLock::new(|| {
    let program = std::env::current_exe().unwrap();
    let library: PathBuf = program.with_file_name("libptx_emu.so");
    let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL;
    // SAFETY: it has no constructors, and its functions are those of a driver.
    let opened = unsafe { libloading::os::unix::Library::open(Some(&library), flags) };
    std::mem::forget(opened.unwrap_or_else(|error| panic!("{}: {error}", library.display())));
    // SAFETY: only looks for the library.
    assert!(unsafe { sys::is_culib_present() }, "the stand-in is not found by its name");
    CudaContext::new(0).unwrap()
});

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: u64,
    w: u64,
    y: u64,
    dim: u32,
    eps: f32,
}

// SAFETY: `repr(C)` without padding, as the kernel declares it.
unsafe impl DeviceRepr for Params {}

/// Numbers of a row.
pub const DIM: usize = 64;

/// The kernel.
pub fn function() -> CudaFunction {
    CONTEXT.load_module(Ptx::from_src(PTX)).unwrap().load_function("rmsnorm").unwrap()
}

/// Normalizes the rows of `x` on `stream`.
pub fn launch(
    stream: &Arc<CudaStream>,
    x: &CudaSlice<u16>,
    w: &CudaSlice<f32>,
    y: &CudaSlice<u16>,
) -> Result<(), DriverError> {
    let function = function();
    let params = Params {
        x: x.device_ptr(stream).0,
        w: w.device_ptr(stream).0,
        y: y.device_ptr(stream).0,
        dim: DIM as u32,
        eps: 1e-6,
    };
    let grid = LaunchConfig {
        grid_dim: ((x.len() / DIM) as u32, 1, 1),
        block_dim: (128, 1, 1),
        shared_mem_bytes: 16,
    };
    // SAFETY: the buffers are as long as the kernel wants them.
    unsafe { stream.launch_builder(&function).arg(&params).launch(grid) }.map(drop)
}
