//! A kernel that does what no kernel may loses the device, as a real one would be lost.
#![cfg(target_os = "linux")]

mod common;

use common::{CONTEXT, DIM, launch};
use cudarc::driver::sys;

#[test]
fn a_kernel_that_reads_what_nobody_wrote_loses_the_device() {
    let stream = CONTEXT.new_stream().unwrap();
    let w = stream.clone_htod(&[1.0_f32; DIM]).unwrap();
    // SAFETY: that its memory is not initialized is the point.
    let x = unsafe { stream.alloc::<u16>(DIM) }.unwrap();
    let y = stream.alloc_zeros::<u16>(DIM).unwrap();
    // Nothing runs before somebody waits.
    launch(&stream, &x, &w, &y).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
    for error in [stream.synchronize().unwrap_err(), stream.alloc_zeros::<u16>(1).unwrap_err()] {
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED, "every call fails since then");
    }
}
