//! Where numbers live and where they are computed.
//!
//! A [`Device`] knows memory (allocate with a label, upload, download, copy, zero, report) and
//! [`launch`](Device::launch); nothing else. What is computed is in [`ops`](crate::ops): a
//! [`Kernel`] is the struct of its parameters, and each device runs it in its own way:
//!
//! - [`Cpu`] trains, and is the oracle of every other device;
//! - [`Plan`] books the bytes that a run would take, through the same calls.
//!
//! No layer above this one may ask which of them it has. Read [`buffer`] next, then
//! [`memory`], then any file of `ops`.

pub mod buffer;
pub mod cpu;
pub mod memory;
pub mod plan;

use std::sync::{Arc, Mutex};

use bytemuck::Pod;

pub use buffer::{Act, Address, Buf, Dtype, HostBytes, Mat, MatMut};
pub use cpu::{Cpu, ScratchMemory, Simd};
pub use memory::{Ledger, Report};
pub use plan::Plan;

use crate::error::Error;
use buffer::Storage;

/// One operation with its parameters, as it is handed to a device.
///
/// # Safety
/// `run_on_cpu` reads and writes through the addresses in the struct. An implementation touches
/// nothing beyond the shapes that the struct states, and writes the same bits for any number of
/// threads.
pub unsafe trait Kernel: Copy {
    /// The stem: the name of the operation everywhere.
    const NAME: &'static str;

    /// Scratch that the CPU implementation needs.
    fn scratch(&self) -> Scratch {
        Scratch::default()
    }

    /// Computes on the CPU.
    ///
    /// # Safety
    /// Every address in the struct is valid for the shape that the struct states, and nothing else
    /// touches what is written during the call.
    unsafe fn run_on_cpu(&self, cpu: &Cpu, scratch: ScratchMemory);
}

/// Scratch memory of one launch, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Bytes that all tasks share.
    pub shared: usize,
    /// Bytes that each thread has for itself.
    pub per_thread: usize,
}

impl Scratch {
    const fn aligned(bytes: usize) -> usize {
        bytes.next_multiple_of(64)
    }

    fn total(self, threads: usize) -> usize {
        Self::aligned(self.shared) + threads * Self::aligned(self.per_thread)
    }
}

/// A device; cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Device {
    kind: Kind,
    failure: Arc<Mutex<Option<Error>>>,
}

#[derive(Clone)]
enum Kind {
    Cpu(Arc<Cpu>),
    Plan(Arc<Plan>),
}

impl Device {
    /// The CPU with `threads` threads, activations of `dtype` and at most `limit` bytes.
    pub fn cpu(threads: usize, dtype: Dtype, limit: u64) -> Self {
        Self::cpu_with(threads, Simd::detect(), dtype, limit)
    }

    /// The CPU, held to the instruction set `simd`, which the machine must have.
    pub fn cpu_with(threads: usize, simd: Simd, dtype: Dtype, limit: u64) -> Self {
        assert!(simd <= Simd::detect(), "{simd:?} on a machine with {:?}", Simd::detect());
        let ledger = Ledger::new("cpu", limit);
        Self::new(Kind::Cpu(Arc::new(Cpu::new(threads.max(1), simd, dtype, ledger))))
    }

    /// A plan for a CPU of `threads` threads with activations of `dtype` and `limit` bytes.
    pub fn plan(threads: usize, dtype: Dtype, limit: u64) -> Self {
        let ledger = Ledger::new("cpu (planned)", limit);
        Self::new(Kind::Plan(Arc::new(Plan::new(threads.max(1), dtype, ledger))))
    }

    fn new(kind: Kind) -> Self {
        Self { kind, failure: Arc::default() }
    }

    /// The element of activations.
    pub fn dtype(&self) -> Dtype {
        match &self.kind {
            Kind::Cpu(cpu) => cpu.dtype,
            Kind::Plan(plan) => plan.dtype,
        }
    }

    /// Threads that a CPU device works with.
    pub fn threads(&self) -> usize {
        match &self.kind {
            Kind::Cpu(cpu) => cpu.threads(),
            Kind::Plan(plan) => plan.threads(),
        }
    }

    /// Whether this device only books and never computes, so that no data need be brought to it.
    pub fn is_plan(&self) -> bool {
        matches!(self.kind, Kind::Plan(_))
    }

    /// `len` zeros under `label`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the device's limit does not allow it.
    pub fn alloc<T: Pod>(&self, label: &'static str, len: usize) -> Result<Buf<T>, Error> {
        let bytes = len * size_of::<T>();
        let booking = self.ledger().book(label, bytes as u64)?;
        let storage = match &self.kind {
            Kind::Cpu(_) => Storage::host(bytes),
            Kind::Plan(_) => Storage::Planned,
        };
        Ok(Buf::new(storage, len, booking))
    }

    /// Room for `len` activations under `label`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc_act(&self, label: &'static str, len: usize) -> Result<Act, Error> {
        self.alloc_dense(label, len, self.dtype())
    }

    /// Room for `len` elements of `dtype` under `label`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc_dense(&self, label: &'static str, len: usize, dtype: Dtype) -> Result<Act, Error> {
        Ok(Act::new(self.alloc(label, len * dtype.size())?, dtype))
    }

    /// A buffer with the content of `bytes`, used in place where the device shares the host's
    /// memory and the alignment allows it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn adopt<T: Pod>(&self, label: &'static str, bytes: HostBytes) -> Result<Buf<T>, Error> {
        self.adopt_aligned(label, bytes, align_of::<T>())
    }

    /// Elements of `dtype` with the content of `bytes`, in place where [`adopt`](Self::adopt)
    /// allows it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn adopt_dense(
        &self,
        label: &'static str,
        bytes: HostBytes,
        dtype: Dtype,
    ) -> Result<Act, Error> {
        Ok(Act::new(self.adopt_aligned(label, bytes, dtype.size())?, dtype))
    }

    fn adopt_aligned<T: Pod>(
        &self,
        label: &'static str,
        bytes: HostBytes,
        align: usize,
    ) -> Result<Buf<T>, Error> {
        let view = (*bytes).as_ref();
        let len = view.len() / size_of::<T>();
        if matches!(self.kind, Kind::Cpu(_)) && view.as_ptr().align_offset(align) == 0 {
            let booking = self.ledger().book(label, view.len() as u64)?;
            return Ok(Buf::new(Storage::Shared(bytes), len, booking));
        }
        let mut buf = self.alloc::<T>(label, len)?;
        if let Some(host) = buf.host_mut() {
            bytemuck::cast_slice_mut(host).copy_from_slice(view);
        }
        Ok(buf)
    }

    /// Copies `from` to the start of `to`.
    pub fn upload<T: Pod>(&self, from: &[T], to: &mut Buf<T>) {
        assert!(from.len() <= to.len(), "{} numbers into {}", from.len(), to.len());
        if let Some(host) = to.host_mut() {
            host[..from.len()].copy_from_slice(from);
        }
    }

    /// Copies the start of `from` to `to`; a plan gives zeros.
    pub fn download<T: Pod>(&self, from: &Buf<T>, to: &mut [T]) {
        assert!(to.len() <= from.len(), "{} numbers of {}", to.len(), from.len());
        match from.host() {
            Some(host) => to.copy_from_slice(&host[..to.len()]),
            None => to.fill(T::zeroed()),
        }
    }

    /// Sets every number to zero.
    pub fn zero<T: Pod>(&self, buf: &mut Buf<T>) {
        if let Some(host) = buf.host_mut() {
            host.fill(T::zeroed());
        }
    }

    /// Takes `bytes` of scratch now, so that no later launch that needs at most as many can find the
    /// memory gone. A plan says how many a run needs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn reserve_scratch(&self, bytes: usize) -> Result<(), Error> {
        let need = Scratch { shared: bytes, per_thread: 0 };
        match &self.kind {
            Kind::Plan(plan) => plan.note_scratch(need),
            Kind::Cpu(cpu) => cpu.with_scratch(need, |_| ()),
        }
    }

    /// Runs `work`, a run of many launches, where each of them starts at once: on the CPU within its
    /// pool of threads.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.kind {
            Kind::Cpu(cpu) => cpu.enter(work),
            Kind::Plan(_) => work(),
        }
    }

    /// Queues `kernel`. A failure is kept until [`synchronize`](Self::synchronize) asks for it.
    ///
    /// # Safety
    /// As for [`Kernel::run_on_cpu`]; the safe functions of `ops` see to it.
    pub unsafe fn launch<K: Kernel>(&self, kernel: K) {
        let launched = match &self.kind {
            Kind::Plan(plan) => plan.note_scratch(kernel.scratch()),
            Kind::Cpu(cpu) => cpu.with_scratch(kernel.scratch(), |scratch| {
                // SAFETY: passed on from the caller.
                unsafe { kernel.run_on_cpu(cpu, scratch) }
            }),
        };
        if let Err(error) = launched {
            let mut failure = self.failure.lock().expect("no panic while noting a failure");
            failure.get_or_insert(error);
        }
    }

    /// Waits until everything launched is done.
    ///
    /// # Errors
    /// The first failure since the last call.
    pub fn synchronize(&self) -> Result<(), Error> {
        match self.failure.lock().expect("no panic while noting a failure").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Who holds how many bytes.
    pub fn report(&self) -> Report {
        self.ledger().report()
    }

    fn ledger(&self) -> &Arc<Ledger> {
        match &self.kind {
            Kind::Cpu(cpu) => &cpu.ledger,
            Kind::Plan(plan) => &plan.ledger,
        }
    }
}
