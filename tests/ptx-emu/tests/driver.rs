//! A program over cudarc on the stand-in driver.
#![cfg(target_os = "linux")]

mod common;

use common::{CONTEXT, DIM, PTX, function, launch};
use cudarc::driver::sys;
use cudarc::nvrtc::Ptx;

/// bf16 of 1 and −2.
const ONE: u16 = 0x3f80;
const MINUS_TWO: u16 = 0xc000;

#[test]
fn a_kernel_runs_under_an_unchanged_program() {
    let stream = CONTEXT.new_stream().unwrap();
    let x = stream.clone_htod(&[[ONE; DIM], [MINUS_TWO; DIM]].concat()).unwrap();
    let w = stream.clone_htod(&[1.0_f32; DIM]).unwrap();
    let y = stream.alloc_zeros::<u16>(2 * DIM).unwrap();
    launch(&stream, &x, &w, &y).unwrap();
    let y = stream.clone_dtoh(&y).unwrap();
    assert_eq!(y, [[ONE; DIM], [0xbf80; DIM]].concat());
    assert_eq!(CONTEXT.compute_capability().unwrap(), (8, 6));
    assert_eq!(CONTEXT.total_mem().unwrap(), 1 << 30);
}

#[test]
fn more_memory_than_the_card_has_is_out_of_memory() {
    let stream = CONTEXT.new_stream().unwrap();
    let error = stream.alloc_zeros::<u8>((1 << 30) + 1).unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // The card is as good as before.
    assert!(stream.alloc_zeros::<u8>(1 << 20).is_ok());
}

#[test]
fn a_text_that_is_no_kernel_and_a_kernel_that_is_not_there_are_errors() {
    let error = CONTEXT.load_module(Ptx::from_src("what is this;")).err().unwrap();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_INVALID_IMAGE);
    let module = CONTEXT.load_module(Ptx::from_src(PTX)).unwrap();
    let error = module.load_function("softmax").err().unwrap();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_NOT_FOUND);
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert!(function().set_attribute(attribute, 99 << 10).is_ok());
    assert!(function().set_attribute(attribute, 100 << 10).is_err());
}

#[test]
fn streams_that_an_event_orders_work_in_that_order() {
    // SAFETY: this test orders its streams by itself.
    unsafe { CONTEXT.disable_event_tracking() };
    for _ in 0..20 {
        let (compute, copy) = (CONTEXT.new_stream().unwrap(), CONTEXT.new_stream().unwrap());
        let w = compute.clone_htod(&[1.0_f32; DIM]).unwrap();
        let (mut x, y) =
            (compute.clone_htod(&[ONE; DIM]).unwrap(), compute.alloc_zeros::<u16>(DIM).unwrap());
        compute.synchronize().unwrap();
        copy.memcpy_htod(&[MINUS_TWO; DIM], &mut x).unwrap();
        let arrived = copy.record_event(None).unwrap();
        compute.wait(&arrived).unwrap();
        // What waits goes on waiting for an event that is destroyed.
        drop(arrived);
        launch(&compute, &x, &w, &y).unwrap();
        assert_eq!(compute.clone_dtoh(&y).unwrap(), [0xbf80; DIM]);
    }
}

#[test]
fn without_the_event_some_order_gives_the_old_numbers() {
    // SAFETY: that nobody orders the streams is the point.
    unsafe { CONTEXT.disable_event_tracking() };
    let mut seen = Vec::new();
    for _ in 0..40 {
        let (compute, copy) = (CONTEXT.new_stream().unwrap(), CONTEXT.new_stream().unwrap());
        let w = compute.clone_htod(&[1.0_f32; DIM]).unwrap();
        let (mut x, y) =
            (compute.clone_htod(&[ONE; DIM]).unwrap(), compute.alloc_zeros::<u16>(DIM).unwrap());
        compute.synchronize().unwrap();
        copy.memcpy_htod(&[MINUS_TWO; DIM], &mut x).unwrap();
        launch(&compute, &x, &w, &y).unwrap();
        seen.push(compute.clone_dtoh(&y).unwrap()[0]);
        copy.synchronize().unwrap();
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [ONE, 0xbf80], "both orders happen");
}
