//! The device that flags mean, and what this machine has.

use std::thread::available_parallelism;

use qlora_train::device::cuda::{self, Card};
use qlora_train::device::{Device, Dtype, Hardware};
use qlora_train::error::{Error, Place};
use sysinfo::System;

use super::flags::DeviceFlags;
use super::output;
use super::values::DeviceName;

/// The machine as far as a run may use it.
pub struct Machine {
    /// What computes.
    pub hardware: Hardware,
    /// Element of activations.
    pub dtype: Dtype,
    /// Bytes that may be taken.
    pub budget: u64,
    /// What was chosen and why, for people.
    told: String,
    /// The GPU, where it had to be opened to see how much of it is free.
    gpu: Option<Device>,
}

impl DeviceFlags {
    /// The machine that these flags mean; starts the threads that work on files.
    ///
    /// # Errors
    /// A device that this machine does not have.
    pub fn machine(&self) -> Result<Machine, Error> {
        let threads = self.start_pool();
        match (self.device, self.dtype.dtype()) {
            (DeviceName::Cpu, _) => Ok(self.cpu(threads, "")),
            (DeviceName::Cuda(_), Dtype::F32) => {
                let what = "f32 is for the CPU: a GPU computes in bf16";
                Err(Error::input(Place::flag("--dtype"), what))
            }
            (DeviceName::Cuda(ordinal), _) => self.cuda(ordinal as usize),
            (DeviceName::Auto, Dtype::F32) => Ok(self.cpu(threads, " (auto: --dtype f32)")),
            (DeviceName::Auto, _) => match cuda::look(0) {
                Ok(_) => self.cuda(0),
                Err(error) => Ok(self.cpu(threads, &format!(" (auto: {})", reason(&error)))),
            },
        }
    }

    /// Starts the threads that work on files for `command`, which computes on the CPU.
    ///
    /// # Errors
    /// Another device was asked for.
    pub fn start_threads(&self, command: &str) -> Result<(), Error> {
        self.start_pool();
        match self.device {
            DeviceName::Auto | DeviceName::Cpu => Ok(()),
            DeviceName::Cuda(_) => {
                let what = format!("{command} works on the CPU: leave the flag out");
                Err(Error::input(Place::flag("--device"), what))
            }
        }
    }

    fn start_pool(&self) -> usize {
        let threads = self.threads.unwrap_or_else(cores);
        // Only the first call of a process sets the pool; `demo` makes several with equal flags.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        threads
    }

    fn cpu(&self, threads: usize, why: &str) -> Machine {
        let dtype = self.dtype.dtype();
        let element = if dtype == Dtype::Bf16 { "bf16" } else { "f32" };
        Machine {
            hardware: Hardware::Cpu { threads },
            dtype,
            budget: self.memory_budget.map_or_else(available_memory, |bytes| bytes.0),
            told: format!("cpu{why}, {threads} threads, {element} activations"),
            gpu: None,
        }
    }

    /// With a budget, a plan can be made for a GPU that is not here.
    fn cuda(&self, ordinal: usize) -> Result<Machine, Error> {
        let machine = |capability, budget, told, gpu| {
            let hardware = Hardware::Cuda { ordinal, capability };
            Machine { hardware, dtype: Dtype::Bf16, budget, told, gpu }
        };
        let card = cuda::look(ordinal);
        if let Some(budget) = self.memory_budget {
            let capability = card.ok().map(|card| card.capability);
            let told = format!("cuda:{ordinal}, bf16 activations");
            return Ok(machine(capability, budget.0, told, None));
        }
        let card = card.map_err(without_gpu)?;
        let device = Device::cuda(ordinal, None).map_err(without_gpu)?;
        let told = format!("cuda:{ordinal}, {}, bf16 activations", described(&card));
        Ok(machine(Some(card.capability), device.limit(), told, Some(device)))
    }
}

impl Machine {
    /// Opens the device.
    ///
    /// # Errors
    /// A GPU that is not here.
    pub fn open(&self) -> Result<Device, Error> {
        match (&self.gpu, self.hardware) {
            (Some(device), _) => Ok(device.clone()),
            (None, Hardware::Cpu { threads }) => Ok(Device::cpu(threads, self.dtype, self.budget)),
            (None, Hardware::Cuda { ordinal, .. }) => {
                Device::cuda(ordinal, Some(self.budget)).map_err(without_gpu)
            }
        }
    }

    /// The device as `--device` names it.
    pub fn name(&self) -> String {
        match self.hardware {
            Hardware::Cpu { .. } => "cpu".to_owned(),
            Hardware::Cuda { ordinal, .. } => format!("cuda:{ordinal}"),
        }
    }

    /// Says what was chosen.
    pub fn tell(&self) {
        output::note(format_args!("device: {}", self.told));
    }
}

/// A GPU in a few words.
pub fn described(card: &Card) -> String {
    let (major, minor) = card.capability;
    format!("{}, compute capability {major}.{minor}", card.name)
}

/// Why there is no GPU to work with.
pub fn reason(error: &Error) -> String {
    match error {
        Error::Device { what, .. } => what.clone(),
        other => other.to_string(),
    }
}

fn without_gpu(error: Error) -> Error {
    let what = format!("{}; --device cpu works without one", reason(&error));
    Error::input(Place::flag("--device"), what)
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
