//! Memory of a GPU: copies through pinned buffers and two streams, beside kernels that use what is copied.
#![cfg(target_os = "linux")]

use bytemuck::Pod;
use qlora_train::device::memory::DRIVER_BYTES;
use qlora_train::device::parking::When;
use qlora_train::device::{Buf, Device, Dtype, Pass};
use qlora_train::error::Error;
use qlora_train::ops::copy;
use qlora_train::ops::sum_squares::sum_squares;

fn uploaded<T: Pod>(device: &Device, numbers: &[T]) -> Buf<T> {
    let mut buf = device.alloc("test", numbers.len()).unwrap();
    device.upload(numbers, &mut buf);
    buf
}

fn downloaded<T: Pod>(device: &Device, buf: &Buf<T>) -> Vec<T> {
    let mut numbers = vec![T::zeroed(); buf.len()];
    device.download(buf, &mut numbers);
    device.synchronize().unwrap();
    numbers
}

#[test]
fn copies_longer_than_all_pinned_buffers_together_arrive() {
    let device = crate::common::gpu();
    let bytes: Vec<u8> =
        (0..(21 << 20) + 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let buf = uploaded(&device, &bytes);
    assert!(downloaded(&device, &buf) == bytes);
    let shared: qlora_train::device::HostBytes = std::sync::Arc::new(bytes.clone());
    let adopted = device.adopt::<u8>("test", shared).unwrap();
    assert!(downloaded(&device, &adopted) == bytes);
}

#[test]
fn a_copy_waits_for_kernels_before_it_and_kernels_wait_for_it() {
    let device = crate::common::gpu();
    let mut x = device.alloc::<f32>("test", 4096).unwrap();
    let sums: Vec<Buf<f64>> = (1..=20)
        .map(|step| {
            device.upload(&vec![step as f32; 4096], &mut x);
            let mut sum = device.alloc("test", 1).unwrap();
            sum_squares(&device, &x, &mut sum);
            sum
        })
        .collect();
    for (sum, step) in sums.iter().zip(1..=20) {
        assert_eq!(downloaded(&device, sum), [f64::from(step * step) * 4096.0], "step {step}");
    }
}

#[test]
fn memory_is_freed_behind_what_was_gathered_and_what_is_copied_beside() {
    let device = crate::common::gpu();
    let mut sums = Vec::new();
    for step in 1..=20 {
        let x = uploaded(&device, &vec![step as f32; 4096]);
        let mut sum = device.alloc("test", 1).unwrap();
        device.gather(Pass { name: "test", block: 0, lane: 0 }, || {
            sum_squares(&device, &x, &mut sum);
            drop(x);
        });
        let y = uploaded(&device, &[step; 4096]);
        let mut parked = device.alloc_parked("test", 4 * 4096).unwrap();
        device.park(&y, 4096, &mut parked, When::Beside);
        drop(y);
        let z = uploaded(&device, &[0; 4096]);
        sums.push((step, sum, parked, z));
    }
    for (step, sum, parked, _) in &sums {
        assert_eq!(downloaded(&device, sum), [f64::from(step * step) * 4096.0], "step {step}");
        let mut numbers = [0; 4096];
        device.read_parked(parked, &mut numbers);
        assert_eq!(numbers, [*step; 4096], "step {step}");
    }
}

#[test]
fn fresh_memory_is_zero_and_so_is_what_was_zeroed() {
    let device = crate::common::gpu();
    let mut buf = device.alloc::<u32>("test", 1000).unwrap();
    assert_eq!(downloaded(&device, &buf), [0; 1000]);
    device.upload(&[7; 1000], &mut buf);
    device.zero(&mut buf);
    assert_eq!(downloaded(&device, &buf), [0; 1000]);
    assert!(downloaded(&device, &device.alloc::<u32>("test", 0).unwrap()).is_empty());
}

#[test]
fn what_no_kernel_takes_is_an_error_that_names_it() {
    let device = crate::common::gpu();
    let x = device.alloc_dense("test", 16, Dtype::F64).unwrap();
    let mut y = device.alloc_dense("test", 16, Dtype::F64).unwrap();
    copy::copy(&device, x.view(4, 4), y.view_mut(4, 4));
    let Err(Error::Device { device: name, what }) = device.synchronize() else {
        panic!("f64 on a GPU");
    };
    assert_eq!(name, "cuda:0");
    assert!(what.contains("copy cannot run on a GPU: its numbers are F64"), "{what}");
    // The device is as good as before.
    device.synchronize().unwrap();
}

#[test]
fn the_limit_holds_and_says_what_was_left() {
    // Opened first: this process finds its driver by it.
    drop(crate::common::gpu());
    let device = Device::cuda(0, Some(DRIVER_BYTES + (1 << 20))).unwrap();
    let most = device.alloc::<u8>("most", 1_000_000).unwrap();
    let Err(Error::OutOfMemory { label, bytes, available, .. }) =
        device.alloc::<u8>("more", 100_000)
    else {
        panic!("more than the limit");
    };
    assert_eq!((label, bytes, available), ("more", 100_000, (1 << 20) - 1_000_000));
    drop(most);
    assert!(device.alloc::<u8>("more", 100_000).is_ok());
}
