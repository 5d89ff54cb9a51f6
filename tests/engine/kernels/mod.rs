//! The CUDA kernels, against the CPU or f64 on both sides of every edge: executed by an emulator in three
//! orders of warps and blocks, checked, or by a driver, twice each. Files: one for each operation; `card.rs` has
//! how a kernel is run, `near.rs` how numbers are compared, `dump.rs` what is written of a failure.

/// A test for each kernel of an image, so that each can be a process of its own.
macro_rules! for_each_kernel {
    ($name:ident: $check:ident($($kernel:ident),+ $(,)?)) => {
        mod $name {
            $(
                #[test]
                fn $kernel() {
                    super::$check(stringify!($kernel));
                }
            )+
        }
    };
}

mod adamw;
mod adamw_8bit;
mod attention;
mod attention_backward;
mod card;
mod cast;
mod cross_entropy;
mod dequantize;
mod dropout;
mod dump;
mod embedding;
mod far;
mod faults;
mod glu;
mod matmul;
mod matmul_4bit;
mod near;
mod rmsnorm;
mod rope;
mod rows;
mod sum_squares;

use std::collections::BTreeSet;
use std::env;
use std::process::Command;

use card::{Card, Grid, orders};
use half::bf16;
use near::assert_near;
use qlora_train::device::{Act, Device, Dtype};
use qlora_train::ffi::IMAGES;

/// A kernel of an image that no test is named after would never run alone.
#[test]
fn every_kernel_has_tests_that_can_be_called_by_its_name() {
    let list = ["kernels::", "--list", "--format", "terse"];
    let listed = Command::new(env::current_exe().unwrap()).args(list).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let parts: BTreeSet<&str> = tests.flat_map(|test| test.split("::")).collect();
    let kernels = IMAGES.iter().flat_map(|image| image.kernels).map(|kernel| kernel.name);
    let missing: Vec<&str> = kernels.filter(|kernel| !parts.contains(kernel)).collect();
    assert!(missing.is_empty(), "no tests of {missing:?}");
}

/// The CPU in f64, where it is what a kernel is held against.
struct Exact(Device);

impl Exact {
    fn new() -> Self {
        Self(Device::cpu(1, Dtype::F64, u64::MAX))
    }

    fn act(&self, numbers: &[f32]) -> Act {
        let numbers: Vec<f64> = numbers.iter().map(|x| f64::from(*x)).collect();
        let mut act = self.0.alloc_act("test", numbers.len()).unwrap();
        self.0.upload(bytemuck::cast_slice(&numbers), act.bytes_mut());
        act
    }

    fn numbers(&self, act: &Act) -> Vec<f64> {
        let mut numbers = vec![0.0_f64; act.len()];
        self.0.download(act.bytes(), bytemuck::cast_slice_mut(&mut numbers));
        numbers
    }
}

/// bf16 numbers in ±2, the same for the same seed.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32((state >> 40) as f32 / 4_194_304.0 - 2.0).to_f32()
    };
    (0..len).map(|_| next()).collect()
}

fn bf16_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
}

fn f32_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}
