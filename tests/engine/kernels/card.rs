//! A card and how a kernel runs on it: the emulator, or a driver through the product's own loading and
//! launching.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::LazyLock;

use half::bf16;
use ptx_emu::ptx::Module;
use ptx_emu::{Counters, DeviceMemory, Finding, Launch, Order};
use qlora_train::device::{self, Buf, Cpu, Device, Kernel, Queue, ScratchMemory};
use qlora_train::error::Error;
use qlora_train::ffi::IMAGES;

use super::dump::{Copied, Ran};
use super::faults::PLANTED;
use super::near::assert_same;
use crate::common;

/// The images, parsed once.
static MODULES: LazyLock<BTreeMap<&str, Module>> = LazyLock::new(|| {
    IMAGES.iter().map(|image| (image.name, Module::parse(image.ptx).unwrap())).collect()
});

/// The orders that a kernel must not depend on; a driver has its own.
pub(super) fn orders() -> impl Iterator<Item = Order> {
    let count = if common::is_on_a_driver() { 1 } else { 3 };
    [Order::Forward, Order::Reverse, Order::Random(7)].into_iter().take(count)
}

/// Whether a test that only an emulator can do has to be left out.
pub(super) fn is_left_out(why: &str) -> bool {
    let left_out = common::is_on_a_driver();
    if left_out {
        println!("left out: {why}");
    }
    left_out
}

/// A kernel of an image, and the shape of its grid.
pub(super) struct Grid {
    pub(super) image: &'static str,
    pub(super) kernel: &'static str,
    pub(super) blocks: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: usize,
}

/// Memory of a card, and what the last launch did.
pub(super) struct Card {
    memory: Memory,
    /// What an emulator counts.
    pub(super) counters: Counters,
    /// The first block that runs, on an emulator.
    pub(super) first: [u32; 3],
    /// Where what it was given and what it left goes if a number is wrong.
    pub(super) dump: Option<PathBuf>,
    /// What ran last.
    ran: Option<Ran>,
}

enum Memory {
    /// And where its buffers are, with their lengths.
    Emulated(Box<DeviceMemory>, Vec<(u64, usize)>),
    Driver {
        device: Device,
        buffers: Vec<(u64, Buf<u8>)>,
    },
}

impl Card {
    pub(super) fn new() -> Self {
        let memory = match common::is_on_a_driver() {
            true => Memory::Driver { device: DEVICE.clone(), buffers: Vec::new() },
            false => Memory::Emulated(Box::new(DeviceMemory::new(64 << 20)), Vec::new()),
        };
        let dump = std::env::var_os("TEST_DUMP").map(PathBuf::from);
        Self { memory, counters: Counters::default(), first: [0; 3], dump, ran: None }
    }

    /// The address of a copy of `bytes`.
    pub(super) fn upload(&mut self, bytes: &[u8]) -> u64 {
        let address = self.alloc(bytes.len());
        self.write(address, bytes);
        address
    }

    /// The address of `len` bytes that nobody wrote; on a driver, of bytes that are no numbers.
    pub(super) fn alloc(&mut self, len: usize) -> u64 {
        match &mut self.memory {
            Memory::Emulated(memory, buffers) => {
                let address = memory.alloc(len).unwrap();
                buffers.push((address, len));
                address
            }
            Memory::Driver { device, buffers } => {
                let mut buffer = device.alloc("test", len).unwrap();
                device.upload(&vec![0xff_u8; len], &mut buffer);
                let address = buffer.address().number();
                buffers.push((address, buffer));
                address
            }
        }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        match &mut self.memory {
            Memory::Emulated(memory, _) => memory.write(address, bytes),
            Memory::Driver { device, buffers } => {
                let found = buffers.iter_mut().find(|(start, _)| *start == address);
                device.upload(bytes, &mut found.expect("a buffer begins there").1);
            }
        }
    }

    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        match &self.memory {
            Memory::Emulated(memory, _) => memory.read(address, len),
            Memory::Driver { device, buffers } => {
                let holds = |(start, buffer): &&(u64, Buf<u8>)| {
                    (*start..start + buffer.len() as u64).contains(&address)
                };
                let (start, buffer) = buffers.iter().find(holds).expect("a buffer holds it");
                let bytes = all(device, buffer).unwrap();
                let from = (address - start) as usize;
                bytes[from..from + len].to_vec()
            }
        }
    }

    pub(super) fn f32(&self, address: u64, len: usize) -> Vec<f32> {
        let bytes = self.read(address, 4 * len);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub(super) fn bf16(&self, address: u64, len: usize) -> Vec<f32> {
        let bytes = self.read(address, 2 * len);
        bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    }

    /// Runs a kernel with nothing to find; or the one with a fault in its place, whatever is found.
    pub(super) fn run<P: Copy + PartialEq + Debug>(
        &mut self,
        grid: &Grid,
        params: &P,
        order: Order,
    ) {
        if common::is_on_a_driver() {
            return self.run_twice(grid, params);
        }
        let is_planted = PLANTED.with_borrow_mut(|planted| {
            let planted = planted.as_mut().filter(|planted| planted.image == grid.image);
            planted.map(|planted| {
                let findings = self.emulate(&planted.module, grid, params, order);
                planted.found.extend(findings.iter().map(|finding| finding.kind));
            })
        });
        if is_planted.is_none() {
            if self.dump.is_some() {
                self.keep(grid, params);
            }
            let before = self.emulated().digest();
            let findings = self.emulate(&MODULES[grid.image], grid, params, order);
            assert_eq!(findings, [], "{} in {order:?}", grid.kernel);
            self.check_bits(grid, params, order, before);
        }
    }

    fn emulated(&mut self) -> &mut DeviceMemory {
        match &mut self.memory {
            Memory::Emulated(memory, _) => memory,
            Memory::Driver { .. } => panic!("a driver's memory is not emulated"),
        }
    }

    /// The same kernel on the same memory leaves the same bits in every order.
    fn check_bits<P: Debug>(&mut self, grid: &Grid, params: &P, order: Order, before: u64) {
        let key = format!("{} {params:?} {before}", grid.kernel);
        let after = self.emulated().digest();
        let earlier = LEFT.with_borrow_mut(|left| *left.entry(key).or_insert(after));
        assert_eq!(after, earlier, "{} in {order:?} leaves other bits", grid.kernel);
    }

    fn emulate<P: Copy>(
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
        let report = launch.run(self.emulated());
        self.counters = report.counters;
        report.findings
    }

    /// Runs a kernel on the driver, once more on the same memory, and compares the bits.
    fn run_twice<P: Copy + PartialEq + Debug>(&mut self, grid: &Grid, params: &P) {
        let before = self.keep(grid, params);
        let [once, again] = [(); 2].map(|()| {
            for Copied { address, bytes } in &before {
                self.write(*address, bytes);
            }
            self.launch(grid, params);
            self.contents().unwrap()
        });
        for (once, again) in once.iter().zip(&again) {
            let what = format!("{} again, the buffer at {:#x}", grid.kernel, once.address);
            assert_same(&again.bytes, &once.bytes, BYTES_OF_A_LINE, &what);
        }
    }

    /// Remembers what a kernel is given, which is returned.
    fn keep<P: Debug>(&mut self, grid: &Grid, params: &P) -> Vec<Copied> {
        let before = self.contents().unwrap();
        let Grid { kernel, blocks, .. } = grid;
        let what = format!("{kernel} over {blocks:?} blocks, {params:x?}");
        self.ran = Some(Ran { what, before: before.clone() });
        before
    }

    fn launch<P: Copy + PartialEq + Debug>(&self, grid: &Grid, params: &P) {
        let Memory::Driver { device, .. } = &self.memory else { panic!("no driver") };
        let kernels = IMAGES.iter().flat_map(|image| image.kernels);
        let known = kernels.clone().find(|kernel| kernel.name == grid.kernel).unwrap();
        assert_eq!((known.threads, known.shared), (grid.threads, grid.shared_bytes), "{known:?}");
        let alone = Alone { name: known.name, blocks: grid.blocks, params: *params };
        // SAFETY: the addresses are those of buffers of this card, as long as the case makes them.
        unsafe { device.launch(alone) };
        device.synchronize().unwrap_or_else(|error| panic!("{}: {error}", grid.kernel));
    }

    /// All memory, unless the device is lost.
    fn contents(&self) -> Result<Vec<Copied>, Error> {
        match &self.memory {
            Memory::Emulated(memory, buffers) => {
                let copied = |&(address, len)| Copied { address, bytes: memory.read(address, len) };
                Ok(buffers.iter().map(copied).collect())
            }
            Memory::Driver { device, buffers } => {
                let copied = |(address, buffer): &(u64, Buf<u8>)| {
                    Ok(Copied { address: *address, bytes: all(device, buffer)? })
                };
                buffers.iter().map(copied).collect()
            }
        }
    }
}

/// A test that fails leaves what the kernel was given and what it made of it, where somebody wants to see it.
impl Drop for Card {
    fn drop(&mut self) {
        if let (true, Some(folder), Some(ran)) = (std::thread::panicking(), &self.dump, &self.ran) {
            // The failure itself is told anyway.
            let _ = ran.dump(folder, &self.contents().unwrap_or_default());
        }
    }
}

/// Bytes are told as rows of so many.
const BYTES_OF_A_LINE: usize = 16;

fn all(device: &Device, buffer: &Buf<u8>) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; buffer.len()];
    device.download(buffer, &mut bytes);
    device.synchronize()?;
    Ok(bytes)
}

/// The driver's card, opened once.
static DEVICE: LazyLock<Device> = LazyLock::new(common::gpu);

/// One launch as an operation.
#[derive(Clone, Copy)]
struct Alone<P> {
    name: &'static str,
    blocks: [u32; 3],
    params: P,
}

// SAFETY: it touches what the kernel touches.
unsafe impl<P: Copy + PartialEq + Debug> Kernel for Alone<P> {
    const NAME: &'static str = "test";

    unsafe fn run_on_cpu(&self, _: &Cpu, _: ScratchMemory) {
        unreachable!("only a driver is asked");
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        let blocks = device::Grid(self.blocks.map(|blocks| blocks as usize));
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(self.name, blocks, &self.params) }
    }
}

thread_local! {
    /// What kernels have left: by name, arguments, and what was there before.
    static LEFT: RefCell<HashMap<String, u64>> = RefCell::default();
}
