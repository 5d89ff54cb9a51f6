//! How the tests of operations bring numbers to a device and back.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use crate::device::{Act, Buf, Device, Dtype, Simd};

/// Lengths on both sides of every vector width, and of a block of 4096.
pub const LENGTHS: [usize; 11] = [0, 1, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097];

/// A device for every instruction set of this machine, with 1 and with 3 threads.
pub fn devices(dtype: Dtype) -> impl Iterator<Item = Device> {
    Simd::available().flat_map(move |simd| {
        [1, 3].map(|threads| Device::cpu_with(threads, simd, dtype, u64::MAX))
    })
}

/// What `run` gives with 1, 2, 3 and 8 threads must be the same.
pub fn assert_same_for_any_thread_count<T: PartialEq>(
    dtype: Dtype,
    run: impl Fn(&Device) -> Vec<T>,
) {
    let expected = run(&Device::cpu(1, dtype, u64::MAX));
    for threads in [2, 3, 8] {
        let found = run(&Device::cpu(threads, dtype, u64::MAX));
        assert!(found == expected, "{threads} threads change the result");
    }
}

/// `numbers` on the device.
pub fn buf<T: Pod>(device: &Device, numbers: &[T]) -> Buf<T> {
    let mut buf = device.alloc("test", numbers.len()).expect("no limit");
    device.upload(numbers, &mut buf);
    buf
}

/// The numbers of `buf`.
pub fn numbers<T: Pod>(device: &Device, buf: &Buf<T>) -> Vec<T> {
    let mut numbers = vec![T::zeroed(); buf.len()];
    device.download(buf, &mut numbers);
    numbers
}

/// `values`, rounded to `dtype`, on the device.
pub fn act(device: &Device, dtype: Dtype, values: &[f64]) -> Act {
    let mut act = device.alloc_dense("test", values.len(), dtype).expect("no limit");
    let bytes: Vec<u8> = match dtype {
        Dtype::Bf16 => bytes_of(values.iter().map(|x| bf16::from_f64(*x))),
        Dtype::F32 => bytes_of(values.iter().map(|x| *x as f32)),
        Dtype::F64 => bytes_of(values.iter().copied()),
    };
    device.upload(&bytes, act.bytes_mut());
    act
}

/// The values of `act`.
pub fn values(device: &Device, act: &Act) -> Vec<f64> {
    let bytes = numbers(device, act.bytes());
    match act.dtype() {
        Dtype::Bf16 => numbers_of::<bf16>(&bytes).map(f64::from).collect(),
        Dtype::F32 => numbers_of::<f32>(&bytes).map(f64::from).collect(),
        Dtype::F64 => numbers_of::<f64>(&bytes).collect(),
    }
}

fn bytes_of<T: Pod>(numbers: impl Iterator<Item = T>) -> Vec<u8> {
    numbers.flat_map(|x| bytemuck::bytes_of(&x).to_vec()).collect()
}

fn numbers_of<T: Pod + Zeroable>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
}
