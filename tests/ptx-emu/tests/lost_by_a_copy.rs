//! Pinned memory belongs to a copy until the copy is done.
#![cfg(target_os = "linux")]

mod common;

use common::{CONTEXT, DIM};
use cudarc::driver::sys;

#[test]
fn a_staging_buffer_that_is_used_again_too_early_is_found() {
    let stream = CONTEXT.new_stream().unwrap();
    // SAFETY: it is filled before it is read.
    let mut staging = unsafe { CONTEXT.alloc_pinned_with_flags::<u16>(DIM, 0) }.unwrap();
    let mut x = stream.alloc_zeros::<u16>(DIM).unwrap();
    for round in 1..=3 {
        staging.as_mut_slice().unwrap().fill(round);
        stream.memcpy_htod(&staging, &mut x).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [round; DIM]);
    }
    // The buffer's own book makes it wait for its copy, so it is written behind its back.
    let address = staging.as_mut_ptr().unwrap();
    stream.memcpy_htod(&staging, &mut x).unwrap();
    // SAFETY: the buffer has that many numbers.
    unsafe { std::slice::from_raw_parts_mut(address, DIM) }.fill(9);
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
}
