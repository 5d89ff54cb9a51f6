//! The CUDA kernels, executed by an emulator: against the CPU or f64 on both sides of every edge, in three
//! orders of warps and blocks, checked. Files: one for each operation; here is how a kernel is run.

mod adamw;
mod adamw_8bit;
mod attention;
mod attention_backward;
mod cast;
mod cross_entropy;
mod dequantize;
mod dropout;
mod embedding;
mod far;
mod faults;
mod glu;
mod matmul;
mod matmul_4bit;
mod rmsnorm;
mod rope;
mod rows;
mod sum_squares;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::LazyLock;

use faults::PLANTED;
use half::bf16;
use ptx_emu::ptx::Module;
use ptx_emu::{Counters, DeviceMemory, Finding, Launch, Order};
use qlora_train::device::{Act, Device, Dtype};
use qlora_train::ffi::IMAGES;

/// The orders that a kernel must not depend on.
const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Random(7)];

/// The images, parsed once.
static MODULES: LazyLock<BTreeMap<&str, Module>> = LazyLock::new(|| {
    IMAGES.iter().map(|image| (image.name, Module::parse(image.ptx).unwrap())).collect()
});

/// A kernel of an image, and the shape of its grid.
struct Grid {
    image: &'static str,
    kernel: &'static str,
    blocks: [u32; 3],
    threads: u32,
    shared_bytes: usize,
}

/// Memory of an emulated card, and what the last launch did.
struct Card {
    memory: DeviceMemory,
    counters: Counters,
    /// The first block that runs.
    first: [u32; 3],
}

impl Card {
    fn new() -> Self {
        Self { memory: DeviceMemory::new(64 << 20), counters: Counters::default(), first: [0; 3] }
    }

    /// The address of a copy of `bytes`.
    fn upload(&mut self, bytes: &[u8]) -> u64 {
        let address = self.memory.alloc(bytes.len()).unwrap();
        self.memory.write(address, bytes);
        address
    }

    /// The address of `len` bytes that nobody wrote.
    fn alloc(&mut self, len: usize) -> u64 {
        self.memory.alloc(len).unwrap()
    }

    fn f32(&self, address: u64, len: usize) -> Vec<f32> {
        let bytes = self.memory.read(address, 4 * len);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn bf16(&self, address: u64, len: usize) -> Vec<f32> {
        let bytes = self.memory.read(address, 2 * len);
        bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    }

    /// Runs a kernel with nothing to find; or the one with a fault in its place, whatever is found.
    fn run<P: Copy + Debug>(&mut self, grid: &Grid, params: &P, order: Order) {
        let is_planted = PLANTED.with_borrow_mut(|planted| {
            let planted = planted.as_mut().filter(|planted| planted.image == grid.image);
            planted.map(|planted| {
                let findings = self.launch(&planted.module, grid, params, order);
                planted.found.extend(findings.iter().map(|finding| finding.kind));
            })
        });
        if is_planted.is_none() {
            let before = self.memory.digest();
            let findings = self.launch(&MODULES[grid.image], grid, params, order);
            assert_eq!(findings, [], "{} in {order:?}", grid.kernel);
            self.check_bits(grid, params, order, before);
        }
    }

    /// The same kernel on the same memory leaves the same bits in every order.
    fn check_bits<P: Debug>(&self, grid: &Grid, params: &P, order: Order, before: u64) {
        let key = format!("{} {params:?} {before}", grid.kernel);
        let after = self.memory.digest();
        let earlier = LEFT.with_borrow_mut(|left| *left.entry(key).or_insert(after));
        assert_eq!(after, earlier, "{} in {order:?} leaves other bits", grid.kernel);
    }

    fn launch<P: Copy>(
        &mut self,
        module: &Module,
        grid: &Grid,
        params: &P,
        order: Order,
    ) -> Vec<Finding> {
        // SAFETY: a struct of the boundary has no padding but at its end, and any byte may be read of it
        // after the copy below has written all of them.
        let params = unsafe {
            let mut bytes = vec![0_u8; size_of::<P>()];
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(params).cast(),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
            bytes
        };
        let launch = Launch {
            module,
            kernel: module.kernel(grid.kernel).unwrap(),
            blocks: grid.blocks,
            first: self.first,
            threads: [grid.threads, 1, 1],
            shared_bytes: grid.shared_bytes,
            params: &params,
            order,
            workers: 2,
            checked: true,
        };
        let report = launch.run(&mut self.memory);
        self.counters = report.counters;
        report.findings
    }
}

thread_local! {
    /// What kernels have left: by name, arguments, and what was there before.
    static LEFT: RefCell<HashMap<String, u64>> = RefCell::default();
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
fn numbers(seed: u64, len: usize) -> Vec<f32> {
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

/// Whether bf16 numbers are the exact ones within `roundings` roundings to bf16 of numbers as large as
/// the largest of the row.
#[track_caller]
fn assert_near(found: &[f32], exact: &[f64], roundings: f64, what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    // bf16 has eight bits: half of the last one is 1/256 of a power of two.
    let bound = roundings * largest / 256.0;
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        let error = (f64::from(*found) - exact).abs();
        assert!(error <= bound, "{what}: number {i} is {found}, not {exact}");
    }
}
