//! Where numbers live and where they are computed.
//!
//! A [`Device`] knows memory (allocate with a label, upload, download, copy, zero, report) and
//! [`launch`](Device::launch); nothing else. What is computed is in [`ops`](crate::ops): a
//! [`Kernel`] is the struct of its parameters, and each device runs it in its own way:
//!
//! - [`Cpu`] trains, and is the oracle of every other device;
//! - [`Cuda`] trains on an NVIDIA GPU, through the kernels under `kernels/`;
//! - [`Plan`] books the bytes that a run would take on either, through the same calls.
//!
//! No layer above this one may ask which of them it has. What does not fit has two ways out:
//! [`conveyor`] brings parts of files when their turn comes, [`parking`] lets numbers wait on the host.
//! [`profile`] records where time goes. Read [`buffer`] next, then [`memory`], then any file of `ops`.

pub mod buffer;
pub mod conveyor;
pub mod cpu;
pub mod cuda;
mod kernel;
pub mod memory;
pub mod parking;
pub mod peak;
pub mod plan;
pub mod profile;
pub mod queue;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use bytemuck::Pod;

pub use buffer::{Act, Address, Buf, Dtype, HostBytes, Mat, MatMut};
pub use cpu::{Cpu, ScratchMemory, Simd};
use cuda::Arrival;
pub use cuda::Cuda;
pub use kernel::{Kernel, Scratch};
pub use memory::{DriverMemory, Ledger, Report};
pub use plan::Plan;
pub use queue::{Grid, Pass, Queue, has_aligned_rows, narrow};

use crate::error::Error;
use buffer::{Memory, Storage};
use peak::Peak;
use profile::{Lane, Profile};
use queue::Target;

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardware {
    /// The CPU.
    Cpu {
        /// Threads that it works with.
        threads: usize,
    },
    /// An NVIDIA GPU.
    Cuda {
        /// Its number.
        ordinal: usize,
        /// Its compute capability; none of a card that is elsewhere, for which the plan is that of any card.
        capability: Option<(i32, i32)>,
    },
}

/// A device; cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Device {
    kind: Kind,
    failure: Arc<Mutex<Option<Error>>>,
    profile: Arc<OnceLock<Profile>>,
    /// The book of host memory beside it.
    host: Arc<Ledger>,
}

#[derive(Clone)]
enum Kind {
    Cpu(Arc<Cpu>),
    Cuda(Arc<Cuda>),
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

    /// GPU `ordinal`, with bf16 activations and at most `limit` bytes, or nearly all that is free.
    ///
    /// # Errors
    /// [`Error::Device`] says why there is none to work with.
    pub fn cuda(ordinal: usize, limit: Option<u64>) -> Result<Self, Error> {
        Ok(Self::new(Kind::Cuda(Arc::new(Cuda::open(ordinal, limit)?))))
    }

    /// A plan for `hardware` with activations of `dtype` and `limit` bytes.
    pub fn plan(hardware: Hardware, dtype: Dtype, limit: u64) -> Self {
        let name = match hardware {
            Hardware::Cpu { .. } => "cpu (planned)".to_owned(),
            Hardware::Cuda { ordinal, .. } => format!("cuda:{ordinal} (planned)"),
        };
        Self::new(Kind::Plan(Arc::new(Plan::new(hardware, dtype, Ledger::new(name, limit)))))
    }

    fn new(kind: Kind) -> Self {
        let host = Ledger::new("host memory", u64::MAX);
        Self { kind, failure: Arc::default(), profile: Arc::default(), host }
    }

    /// Records from now on where time goes.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn start_profile(&self) -> Result<(), Error> {
        let profile = self.profile.get_or_init(Profile::new);
        match &self.kind {
            Kind::Cuda(cuda) => cuda.start_timing(profile),
            Kind::Cpu(_) | Kind::Plan(_) => Ok(()),
        }
    }

    /// Floating-point operations a second that its matrix units could do, where that is known.
    pub fn matrix_peak(&self) -> Option<f64> {
        match &self.kind {
            Kind::Cpu(cpu) => {
                let begun = Instant::now();
                let clock = || begun.elapsed().as_secs_f64();
                Some(Peak::of(cpu.simd(), cpu.dtype)?.measure(cpu.threads(), clock))
            }
            Kind::Cuda(cuda) => cuda.matrix_peak(),
            Kind::Plan(_) => None,
        }
    }

    /// The recording, if one was started.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.get()
    }

    /// The element of activations.
    pub fn dtype(&self) -> Dtype {
        match &self.kind {
            Kind::Cpu(cpu) => cpu.dtype,
            Kind::Cuda(_) => Dtype::Bf16,
            Kind::Plan(plan) => plan.dtype,
        }
    }

    /// Whether this device only books and never computes, so that no data need be brought to it.
    pub fn is_plan(&self) -> bool {
        matches!(self.kind, Kind::Plan(_))
    }

    /// Whether it computes in the host's memory.
    pub fn is_host(&self) -> bool {
        match &self.kind {
            Kind::Cpu(_) => true,
            Kind::Cuda(_) => false,
            Kind::Plan(plan) => matches!(plan.hardware, Hardware::Cpu { .. }),
        }
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
            Kind::Cuda(cuda) => Storage::Cuda(cuda.alloc(label, bytes)?),
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
        Ok(Act::of(self.alloc(label, len * dtype.size())?, dtype))
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
        Ok(Act::of(self.adopt_aligned(label, bytes, dtype.size())?, dtype))
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
        match &self.kind {
            // A plan has no need of the bytes, which may not have been read from the disk yet.
            Kind::Plan(_) => {}
            // SAFETY: the buffer holds `len` numbers.
            Kind::Cuda(cuda) => unsafe {
                cuda.upload(&view[..len * size_of::<T>()], buf.address_mut())?;
            },
            Kind::Cpu(_) => {
                let host = buf.host_mut().expect("the CPU sees its memory");
                bytemuck::cast_slice_mut(host).copy_from_slice(view);
            }
        }
        Ok(buf)
    }

    /// Memory that the ledger has booked under `label`.
    fn take(&self, label: &'static str, bytes: usize) -> Result<Memory, Error> {
        Ok(match &self.kind {
            Kind::Cpu(_) => Memory::host(bytes),
            Kind::Cuda(cuda) => Memory::Cuda(cuda.alloc(label, bytes)?),
            Kind::Plan(_) => Memory::Planned,
        })
    }

    /// The moment when all that is queued is done, where that is not now.
    fn mark(&self) -> Result<Option<Arrival>, Error> {
        match &self.kind {
            Kind::Cuda(cuda) => cuda.mark().map(Some),
            Kind::Cpu(_) | Kind::Plan(_) => Ok(None),
        }
    }

    /// What is queued from now on waits for `arrival`, if there is one.
    fn wait_for(&self, arrival: Option<Arrival>) -> Result<(), Error> {
        match (&self.kind, arrival) {
            (Kind::Cuda(cuda), Some(arrival)) => cuda.wait_for(&arrival),
            _ => Ok(()),
        }
    }

    /// Copies `from` to the start of `to`.
    pub fn upload<T: Pod>(&self, from: &[T], to: &mut Buf<T>) {
        self.upload_at(from, to, 0);
    }

    /// Copies `from` to the numbers of `to` from `start` on.
    pub fn upload_at<T: Pod>(&self, from: &[T], to: &mut Buf<T>, start: usize) {
        let end = start + from.len();
        assert!(end <= to.len(), "numbers {start} to {end} of {}", to.len());
        match &self.kind {
            Kind::Cuda(cuda) => {
                let address = to.address_mut().offset(start * size_of::<T>());
                // SAFETY: the buffer is as long as asserted.
                let queued = unsafe { cuda.upload(bytemuck::cast_slice(from), address) };
                self.note(queued);
            }
            Kind::Cpu(_) | Kind::Plan(_) => {
                if let Some(host) = to.host_mut() {
                    host[start..end].copy_from_slice(from);
                }
            }
        }
    }

    /// Copies the start of `from` to `to`; a plan gives zeros, and so does a device that has failed.
    pub fn download<T: Pod>(&self, from: &Buf<T>, to: &mut [T]) {
        self.download_at(from, 0, to);
    }

    /// Copies the numbers of `from` from `start` on to `to`, as [`download`](Self::download) does.
    pub fn download_at<T: Pod>(&self, from: &Buf<T>, start: usize, to: &mut [T]) {
        let end = start + to.len();
        assert!(end <= from.len(), "numbers {start} to {end} of {}", from.len());
        match (&self.kind, from.host()) {
            (Kind::Cuda(cuda), _) => {
                let address = from.address().offset(start * size_of::<T>());
                // SAFETY: the buffer is as long as asserted.
                let copied = unsafe { cuda.download(address, bytemuck::cast_slice_mut(to)) };
                if copied.is_err() {
                    to.fill(T::zeroed());
                }
                self.note(copied);
            }
            (_, Some(host)) => to.copy_from_slice(&host[start..end]),
            (_, None) => to.fill(T::zeroed()),
        }
    }

    /// Sets every number to zero.
    pub fn zero<T: Pod>(&self, buf: &mut Buf<T>) {
        let bytes = buf.len() * size_of::<T>();
        match &self.kind {
            // SAFETY: the buffer is as long as that.
            Kind::Cuda(cuda) => self.note(unsafe { cuda.zero(buf.address_mut(), bytes) }),
            Kind::Cpu(_) | Kind::Plan(_) => {
                if let Some(host) = buf.host_mut() {
                    host.fill(T::zeroed());
                }
            }
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
            Kind::Plan(plan) => plan.note_scratch(bytes),
            Kind::Cpu(cpu) => cpu.with_scratch(need, |_| ()),
            Kind::Cuda(cuda) => cuda.scratch(bytes).map(|_| ()),
        }
    }

    /// Runs `work`, a run of many launches, where each of them starts at once: on the CPU within its
    /// pool of threads.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.kind {
            Kind::Cpu(cpu) => cpu.enter(work),
            Kind::Cuda(_) | Kind::Plan(_) => work(),
        }
    }

    /// Queues `kernel`. A failure is kept until [`synchronize`](Self::synchronize) asks for it.
    ///
    /// # Safety
    /// As for [`Kernel::run_on_cpu`]; the safe functions of `ops` see to it.
    pub unsafe fn launch<K: Kernel>(&self, kernel: K) {
        let on_gpu = |target| {
            // SAFETY: passed on from the caller.
            unsafe { kernel.run_on_gpu(&Queue { target }) }
        };
        let profile = self.profile.get();
        if let Some(profile) = profile {
            profile.count(kernel.flops());
        }
        let begun = profile.map(Profile::now);
        self.note(match &self.kind {
            Kind::Cpu(cpu) => cpu.with_scratch(kernel.scratch(), |scratch| {
                // SAFETY: passed on from the caller.
                unsafe { kernel.run_on_cpu(cpu, scratch) }
            }),
            Kind::Cuda(cuda) => on_gpu(Target::Cuda(cuda)),
            Kind::Plan(plan) => match plan.hardware {
                Hardware::Cpu { threads } => {
                    plan.note_scratch(kernel.scratch().total(threads.max(1)))
                }
                Hardware::Cuda { .. } => on_gpu(Target::Planned(plan)),
            },
        });
        if let (Kind::Cpu(_), Some(profile), Some(begun)) = (&self.kind, profile, begun) {
            profile.close(Lane::Compute, K::NAME, begun, 0);
        }
    }

    /// Keeps the first failure until somebody asks.
    fn note(&self, done: Result<(), Error>) {
        if let Err(error) = done {
            let mut failure = self.failure.lock().expect("no panic while noting a failure");
            failure.get_or_insert(error);
        }
    }

    /// Waits until everything launched is done.
    ///
    /// # Errors
    /// The first failure since the last call.
    pub fn synchronize(&self) -> Result<(), Error> {
        if let Kind::Cuda(cuda) = &self.kind {
            self.note(cuda.synchronize(self.profile.get()));
        }
        if let Some(profile) = self.profile.get() {
            profile.sample(self.report());
        }
        match self.failure.lock().expect("no panic while noting a failure").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Bytes that may be taken of it.
    pub fn limit(&self) -> u64 {
        self.ledger().limit()
    }

    /// Who holds how many bytes.
    pub fn report(&self) -> Report {
        self.ledger().report()
    }

    /// What the driver of a GPU has taken for itself so far; nothing of another device.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn driver_memory(&self) -> Result<Option<DriverMemory>, Error> {
        let Kind::Cuda(cuda) = &self.kind else { return Ok(None) };
        let taken = cuda.taken_by_driver()?;
        Ok(Some(DriverMemory { taken, planned: memory::DRIVER_BYTES }))
    }

    /// Who holds how many bytes of host memory beside the device.
    pub fn host_report(&self) -> Report {
        self.host.report()
    }

    fn ledger(&self) -> &Arc<Ledger> {
        match &self.kind {
            Kind::Cpu(cpu) => &cpu.ledger,
            Kind::Cuda(cuda) => &cuda.ledger,
            Kind::Plan(plan) => &plan.ledger,
        }
    }
}
