//! The device that flags mean, and what this machine has.

use std::thread::available_parallelism;

use qlora_train::device::{Device, Dtype};
use qlora_train::error::{Error, Place};
use sysinfo::System;

use super::flags::DeviceFlags;
use super::output;
use super::values::DeviceName;

/// The machine as far as a run may use it.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Threads of the CPU.
    pub threads: usize,
    /// Element of activations.
    pub dtype: Dtype,
    /// Bytes that may be taken.
    pub budget: u64,
}

impl DeviceFlags {
    /// The machine that these flags mean; starts the threads that work on files.
    ///
    /// # Errors
    /// A device that this program or this machine does not have.
    pub fn machine(&self) -> anyhow::Result<Machine> {
        if let DeviceName::Cuda(_) = self.device {
            let what = "this build has no GPU kernels: use --device cpu";
            return Err(Error::input(Place::flag("--device"), what).into());
        }
        let threads = self.threads.unwrap_or_else(cores);
        // Only the first call of a process sets the pool; `demo` makes several with equal flags.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        Ok(Machine {
            threads,
            dtype: self.dtype.dtype(),
            budget: self.memory_budget.map_or_else(available_memory, |bytes| bytes.0),
        })
    }
}

impl Machine {
    /// Opens the device.
    pub fn open(&self) -> Device {
        Device::cpu(self.threads, self.dtype, self.budget)
    }

    /// Says what was chosen.
    pub fn tell(&self, asked: DeviceName) {
        let why = match asked {
            DeviceName::Auto => " (auto: this build has no GPU kernels)",
            _ => "",
        };
        let dtype = match self.dtype {
            Dtype::Bf16 => "bf16",
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
        };
        let threads = self.threads;
        output::note(format_args!("device: cpu{why}, {threads} threads, {dtype} activations"));
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Bytes that can be taken before the system has to page, within the limits of a container.
pub fn available_memory() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let free = system.available_memory();
    system.cgroup_limits().map_or(free, |limits| free.min(limits.free_memory))
}

/// Bytes of memory that this machine has.
pub fn total_memory() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    system.total_memory()
}
