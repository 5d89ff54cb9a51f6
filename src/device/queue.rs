//! Where an operation queues what a GPU does for it.
//!
//! An operation says once, in [`Kernel::run_on_gpu`](super::Kernel::run_on_gpu), what it comes to on a
//! GPU: which shapes it takes, how much scratch, which kernels in which order. A plan reads the same
//! lines: it books the scratch and refuses the shapes, and queues nothing. So a shape that no kernel
//! takes is refused before anything is loaded.

use super::cuda::Cuda;
use super::{Address, Device, Dtype, Hardware, Kind, Plan};
use crate::error::Error;

/// How many blocks of a kernel a launch has, in x, y and z; what a block has stands beside the kernel's
/// name ([`ffi::Kernel`](crate::ffi::Kernel)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid(pub [usize; 3]);

impl Grid {
    /// `blocks` blocks in a row.
    pub const fn row(blocks: usize) -> Self {
        Self([blocks, 1, 1])
    }

    /// The blocks as a driver takes them; it refuses what it does not take.
    pub(super) fn counts(self) -> [u32; 3] {
        self.0.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX))
    }
}

/// Launches that come again and again: with every micro-batch of the same shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pass {
    /// What is done.
    pub name: &'static str,
    /// By which block.
    pub block: usize,
    /// To which of the micro-batches that are under way.
    pub lane: usize,
}

impl Device {
    /// Runs `work`, whose launches are `pass`: a GPU starts them together when they come again.
    pub fn gather<R>(&self, pass: Pass, work: impl FnOnce() -> R) -> R {
        match &self.kind {
            Kind::Cuda(cuda) => {
                let (result, started) = cuda.gather(pass, work);
                self.note(started);
                result
            }
            _ => work(),
        }
    }
}

/// The queue of a GPU, or of the plan of one.
pub struct Queue<'a> {
    pub(super) target: Target<'a>,
}

/// Who is behind a queue.
pub(super) enum Target<'a> {
    Planned(&'a Plan),
    Cuda(&'a Cuda),
}

impl Queue<'_> {
    /// Scratch of `bytes` bytes for the launches that follow, up to the next call.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn scratch(&self, bytes: usize) -> Result<Address, Error> {
        match self.target {
            Target::Planned(plan) => plan.note_scratch(bytes).map(|()| Address::NULL),
            Target::Cuda(cuda) => cuda.scratch(bytes),
        }
    }

    /// Queues the kernel `name`; a grid without blocks is none.
    ///
    /// # Safety
    /// `params` is what the kernel takes by value, and every address in it is valid for the shapes
    /// that it states until the kernel has run.
    ///
    /// # Errors
    /// [`Error::Device`] names the kernel and what it was given.
    pub unsafe fn launch<P: Copy + PartialEq + std::fmt::Debug>(
        &self,
        name: &'static str,
        grid: Grid,
        params: &P,
    ) -> Result<(), Error> {
        match self.target {
            Target::Cuda(cuda) if !grid.0.contains(&0) => {
                // SAFETY: passed on from the caller.
                unsafe { cuda.launch(name, grid, params) }
            }
            _ => Ok(()),
        }
    }

    /// Queues zeros for `bytes` bytes at `address`.
    ///
    /// # Safety
    /// They are valid for writes, and nothing else touches them meanwhile.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub unsafe fn zero(&self, address: Address, bytes: usize) -> Result<(), Error> {
        match self.target {
            // SAFETY: passed on from the caller.
            Target::Cuda(cuda) if bytes > 0 => unsafe { cuda.zero(address, bytes) },
            _ => Ok(()),
        }
    }

    /// Refuses what the kernel `name` does not take: `what` says what it is given and what it takes.
    ///
    /// # Errors
    /// [`Error::Device`] unless `fits`.
    pub fn require(
        &self,
        name: &'static str,
        fits: bool,
        what: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        match fits {
            true => Ok(()),
            false => Err(Error::Device {
                device: self.device(),
                what: format!("{name} cannot run on a GPU: {}; use --device cpu", what()),
            }),
        }
    }

    /// Refuses numbers that are not bf16.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn require_bf16(&self, name: &'static str, dtype: Dtype) -> Result<(), Error> {
        self.require(name, dtype == Dtype::Bf16, || format!("its numbers are {dtype:?}, not bf16"))
    }

    /// The compute capability of the GPU; none where a plan is for any.
    pub fn capability(&self) -> Option<(i32, i32)> {
        match self.target {
            Target::Cuda(cuda) => Some(cuda.card().capability),
            Target::Planned(plan) => match plan.hardware {
                Hardware::Cuda { capability, .. } => capability,
                Hardware::Cpu { .. } => None,
            },
        }
    }

    fn device(&self) -> String {
        match self.target {
            Target::Planned(plan) => plan.ledger.device().to_owned(),
            Target::Cuda(cuda) => cuda.ledger.device().to_owned(),
        }
    }
}

/// A size as the structs of kernels hold it.
///
/// # Panics
/// If it does not fit.
pub fn narrow(size: u64) -> u32 {
    assert!(size <= u64::from(u32::MAX), "a size of {size}, {} at most", u32::MAX);
    size as u32
}

/// Whether rows that begin at `address`, `stride` bf16 numbers apart, all begin at multiples of 16
/// bytes, as asynchronous copies want them.
pub fn has_aligned_rows(address: Address, stride: u64) -> bool {
    address.number().is_multiple_of(16) && stride.is_multiple_of(8)
}
