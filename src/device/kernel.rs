//! An operation as devices run it.

use super::{Cpu, Queue, ScratchMemory};
use crate::error::Error;

/// One operation with its parameters, as it is handed to a device.
///
/// # Safety
/// Both ways to run read and write through the addresses in the struct. An implementation touches
/// nothing beyond the shapes that the struct states, and writes the same bits for any number of
/// threads and any order of blocks.
pub unsafe trait Kernel: Copy {
    /// The stem: the name of the operation everywhere.
    const NAME: &'static str;

    /// Scratch that the CPU implementation needs.
    fn scratch(&self) -> Scratch {
        Scratch::default()
    }

    /// Multiplications and additions, where the operation is a product of matrices.
    fn flops(&self) -> f64 {
        0.0
    }

    /// Computes on the CPU.
    ///
    /// # Safety
    /// Every address in the struct is valid for the shape that the struct states, and nothing else
    /// touches what is written during the call.
    unsafe fn run_on_cpu(&self, cpu: &Cpu, scratch: ScratchMemory);

    /// Queues what computes the same on a GPU. A plan reads it, too: nothing but addresses may depend
    /// on which of them it is.
    ///
    /// # Errors
    /// Scratch that is not to be had, a shape that no GPU kernel takes, a launch that fails.
    ///
    /// # Safety
    /// As for [`run_on_cpu`](Self::run_on_cpu), until what is queued has run.
    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error>;
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
    pub(super) const fn aligned(bytes: usize) -> usize {
        bytes.next_multiple_of(64)
    }

    pub(super) fn total(self, threads: usize) -> usize {
        Self::aligned(self.shared) + threads * Self::aligned(self.per_thread)
    }
}
