//! A stand-in for `libcuda.so`, so that a program with a driver API under it runs on the emulator
//! unchanged.
//!
//! This crate is also a shared library with that name inside; a process that opened it before its first
//! call finds no other driver. `exports.rs` and `graphs.rs` have the functions, `streams.rs` what they
//! queue: nothing runs before somebody must wait for it, and then the streams go on in an order of chance,
//! in which any of them may stand still while another does much. A program that forgot to wait, or an
//! event between two streams, gets wrong numbers or a finding here instead of on some machine some day.
//!
//! What the card is like is said by the environment, read at the first call:
//!
//! | variable | meaning | else |
//! | --- | --- | --- |
//! | `PTX_EMU_MEMORY` | bytes of device memory | 1 GiB |
//! | `PTX_EMU_CAPABILITY` | compute capability, as `86` | 86 |
//! | `PTX_EMU_DRIVER` | version of the driver, as `12080` | 13000 |
//! | `PTX_EMU_DEVICES` | number of cards | 1 |
//! | `PTX_EMU_SEED` | for the order of streams, warps and blocks | 1 |
//! | `PTX_EMU_CHECKED` | whether launches are checked | 1 |
//! | `PTX_EMU_WORKERS` | threads that run the blocks of a launch | those of the machine |
//! | `PTX_EMU_IMAGES` | whether any image is taken: 0 is a driver that finds all damaged | 1 |
//! | `PTX_EMU_MACHINE_CODE` | whether machine code is taken, too | 1 |
//! | `PTX_EMU_POOLS` | whether there are pools of memory | 1 |
//! | `PTX_EMU_GRAPHS` | how many graphs there is room for | 1 million |
//! | `PTX_EMU_GRAPH_UPDATES` | how many nodes of graphs can be changed, all in all | 1 million |
//! | `PTX_EMU_GRAPH_BYTES` | bytes of device memory that a graph takes | 64 KiB |
//! | `PTX_EMU_HANGS` | a kernel whose launch never ends: only a signal ends the program | none |
//! | `PTX_EMU_SPOILS` | a kernel whose launch loses the device | none |
//!
//! A graph is a chain of kernels: one that is launched after the other. `ptx_emu_counts` tells how often a
//! program launched kernels and graphs, how often it let the card stand still, and what it loaded. Machine
//! code stands for the PTX that it was assembled from, which `images.rs` finds.
//!
//! A finding is written to the standard error output, and every later call fails, as on a device that
//! is lost.

mod exports;
mod graphs;
mod images;
mod streams;

use std::cell::Cell;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

use crate::DeviceMemory;
use crate::ptx::Module;
use graphs::Graphs;
use streams::Streams;

/// A `CUresult`.
type Code = i32;

const SUCCESS: Code = 0;
const INVALID_VALUE: Code = 1;
const OUT_OF_MEMORY: Code = 2;
const INVALID_DEVICE: Code = 101;
const INVALID_IMAGE: Code = 200;
const NO_BINARY_FOR_GPU: Code = 209;
const UNSUPPORTED_PTX_VERSION: Code = 222;
const INVALID_HANDLE: Code = 400;
const NOT_FOUND: Code = 500;
const NOT_READY: Code = 600;
const LAUNCH_FAILED: Code = 719;
const NOT_SUPPORTED: Code = 801;

/// What the environment says of the card.
struct Card {
    memory: usize,
    capability: i32,
    driver: i32,
    devices: i32,
    seed: u64,
    checked: bool,
    workers: usize,
    takes_images: bool,
    takes_machine_code: bool,
    has_pools: bool,
    graphs: usize,
    graph_updates: usize,
    graph_bytes: usize,
    hangs: Option<String>,
    spoils: Option<String>,
}

impl Card {
    fn from_environment() -> Self {
        Self {
            memory: variable("PTX_EMU_MEMORY", 1 << 30),
            capability: variable("PTX_EMU_CAPABILITY", 86),
            driver: variable("PTX_EMU_DRIVER", 13_000),
            devices: variable("PTX_EMU_DEVICES", 1),
            seed: variable("PTX_EMU_SEED", 1),
            checked: variable("PTX_EMU_CHECKED", 1) == 1,
            workers: variable("PTX_EMU_WORKERS", available_parallelism().map_or(1, Into::into)),
            takes_images: variable("PTX_EMU_IMAGES", 1) == 1,
            takes_machine_code: variable("PTX_EMU_MACHINE_CODE", 1) == 1,
            has_pools: variable("PTX_EMU_POOLS", 1) == 1,
            graphs: variable("PTX_EMU_GRAPHS", 1_000_000),
            graph_updates: variable("PTX_EMU_GRAPH_UPDATES", 1_000_000),
            graph_bytes: variable("PTX_EMU_GRAPH_BYTES", 64 << 10),
            hangs: std::env::var("PTX_EMU_HANGS").ok(),
            spoils: std::env::var("PTX_EMU_SPOILS").ok(),
        }
    }

    /// Dynamic shared memory that a kernel gets if it asks: less than what a multiprocessor has by
    /// 1 KiB for every block.
    fn shared_bytes_on_request(&self) -> usize {
        let kib = match self.capability {
            80 | 87 => 163,
            90..=109 => 227,
            _ => 99,
        };
        kib << 10
    }
}

fn variable<T: FromStr>(name: &str, otherwise: T) -> T {
    let Ok(text) = std::env::var(name) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

/// Dynamic shared memory that a kernel gets without asking.
const SHARED_BYTES: usize = 48 << 10;

/// A kernel of a module, and the dynamic shared memory that it may have.
struct Function {
    module: usize,
    kernel: usize,
    shared_bytes: usize,
}

/// What the thread that asks has asked for so far; `ptx_emu_counts` tells.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Counts {
    /// Kernels that were launched one by one.
    pub launches: u64,
    /// Graphs that were launched.
    pub graphs: u64,
    /// Waits of the host at whose end nothing was left to do: a card would stand still.
    pub idle: u64,
    /// Modules of machine code that were loaded.
    pub loaded: u64,
    /// Images of PTX that were compiled.
    pub compiled: u64,
}

impl Counts {
    /// What was asked for since it stood at `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            launches: self.launches - before.launches,
            graphs: self.graphs - before.graphs,
            idle: self.idle - before.idle,
            loaded: self.loaded - before.loaded,
            compiled: self.compiled - before.compiled,
        }
    }
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { launches: 0, graphs: 0, idle: 0, loaded: 0, compiled: 0 }) };
}

fn count(one_more: impl FnOnce(&mut Counts)) {
    let mut counts = COUNTS.get();
    one_more(&mut counts);
    COUNTS.set(counts);
}

/// The driver and its card.
struct Driver {
    card: Card,
    memory: DeviceMemory,
    /// Host memory that is pinned.
    pinned: Vec<Range<usize>>,
    /// What a program has loaded: a range of modules each.
    images: Vec<Range<usize>>,
    modules: Vec<Module>,
    functions: Vec<Function>,
    streams: Streams,
    graphs: Graphs,
    /// The error that every call gives since it happened.
    lost: Code,
}

impl Driver {
    fn new() -> Self {
        let card = Card::from_environment();
        Self {
            memory: DeviceMemory::new(card.memory),
            streams: Streams::new(card.seed),
            graphs: Graphs::default(),
            card,
            pinned: Vec::new(),
            images: Vec::new(),
            modules: Vec::new(),
            functions: Vec::new(),
            lost: SUCCESS,
        }
    }

    /// Bytes that are free: graphs take some, too.
    fn free_bytes(&self) -> usize {
        self.memory.room().saturating_sub(self.graphs.bytes(self.card.graph_bytes))
    }

    fn alloc(&mut self, len: usize) -> Result<u64, Code> {
        if len == 0 {
            return Err(INVALID_VALUE);
        }
        self.memory.alloc(len).ok_or(OUT_OF_MEMORY)
    }

    fn free(&mut self, address: u64) -> Result<(), Code> {
        self.memory.free(address).ok_or(INVALID_VALUE)
    }

    fn is_pinned(&self, address: usize, len: usize) -> bool {
        self.pinned.iter().any(|range| range.start <= address && address + len <= range.end)
    }

    fn function_of(&mut self, handle: usize) -> Result<&mut Function, Code> {
        self.functions.get_mut(handle.wrapping_sub(1)).ok_or(INVALID_HANDLE)
    }
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// Asks the driver; once the device is lost, only that is the answer.
fn ask(question: impl FnOnce(&mut Driver) -> Result<(), Code>) -> Code {
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    let driver = driver.get_or_insert_with(Driver::new);
    if driver.lost != SUCCESS {
        return driver.lost;
    }
    question(driver).err().unwrap_or(SUCCESS)
}

fn complain(what: &str) {
    use std::io::Write as _;
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr(), "ptx-emu: {what}");
}
