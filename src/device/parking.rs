//! Host memory beside a device, where numbers wait until they are wanted again.
//!
//! On a GPU it is pinned, and copies are queued with everything else, or beside it: nothing is waited for.
//! On the CPU it is memory like any other. It is booked apart from the memory of the device.

use bytemuck::Pod;

use super::cuda::Pinned;
use super::memory::Booking;
use super::{Buf, Device, Kind};
use crate::error::Error;

/// When a copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// After all that is queued before it, and before all that will be.
    InOrder,
    /// After all that is queued before it, and beside what will be: what is queued before [`Device::settle`]
    /// must not touch what is copied, or either has whatever numbers come first.
    Beside,
}

/// Room for numbers that wait.
pub struct Parked {
    memory: Memory,
    bytes: usize,
    _booking: Booking,
}

enum Memory {
    Host(Box<[u8]>),
    Pinned(Box<Pinned>),
    Planned,
}

impl Device {
    /// `bytes` zeros in host memory under `label`.
    ///
    /// # Errors
    /// [`Error::Device`]: the system has no more memory that can be pinned.
    pub fn alloc_parked(&self, label: &'static str, bytes: usize) -> Result<Parked, Error> {
        let booking = self.host.book(label, bytes as u64)?;
        let memory = match &self.kind {
            Kind::Cpu(_) => Memory::Host(vec![0; bytes].into_boxed_slice()),
            Kind::Cuda(cuda) => Memory::Pinned(Box::new(cuda.pinned(bytes)?)),
            Kind::Plan(_) => Memory::Planned,
        };
        Ok(Parked { memory, bytes, _booking: booking })
    }

    /// Copies the first `len` numbers of `from` to `to`.
    pub fn park<T: Pod>(&self, from: &Buf<T>, len: usize, to: &mut Parked, when: When) {
        let bytes = to.check(from, len);
        match (&self.kind, &mut to.memory) {
            (Kind::Cuda(cuda), Memory::Pinned(pinned)) => {
                // SAFETY: both are as long as checked; the pinned memory belongs to `to`, which is read
                // after this copy only, and freed behind it.
                self.note(unsafe { cuda.park(from.address(), bytes, pinned, when) });
            }
            (_, Memory::Host(memory)) => {
                let host = from.host().expect("the CPU sees its memory");
                memory[..bytes].copy_from_slice(bytemuck::cast_slice(&host[..len]));
            }
            _ => (),
        }
    }

    /// Copies the first `len` numbers of `from` to `to`.
    pub fn unpark<T: Pod>(&self, from: &Parked, len: usize, to: &mut Buf<T>, when: When) {
        let bytes = from.check(to, len);
        match (&self.kind, &from.memory) {
            (Kind::Cuda(cuda), Memory::Pinned(pinned)) => {
                // SAFETY: as above.
                self.note(unsafe { cuda.unpark(pinned, bytes, to.address_mut(), when) });
            }
            (_, Memory::Host(memory)) => {
                let host = to.host_mut().expect("the CPU sees its memory");
                bytemuck::cast_slice_mut(&mut host[..len]).copy_from_slice(&memory[..bytes]);
            }
            _ => (),
        }
    }

    /// What is queued from now on comes after the copies to and from `parked`.
    pub fn settle(&self, parked: &Parked) {
        if let (Kind::Cuda(cuda), Memory::Pinned(pinned)) = (&self.kind, &parked.memory) {
            self.note(cuda.settle(pinned));
        }
    }

    /// Waits for what was [`park`](Self::park)ed and copies the start of `from` to `to`; a plan gives zeros.
    pub fn read_parked<T: Pod>(&self, from: &Parked, to: &mut [T]) {
        let to: &mut [u8] = bytemuck::cast_slice_mut(to);
        match &from.memory {
            Memory::Pinned(pinned) => self.note(pinned.read(to)),
            Memory::Host(memory) => to.copy_from_slice(&memory[..to.len()]),
            Memory::Planned => to.fill(0),
        }
    }

    /// Waits for what is queued and copies `from` to the start of `to`.
    pub fn write_parked<T: Pod>(&self, from: &[T], to: &mut Parked) {
        let from: &[u8] = bytemuck::cast_slice(from);
        match &mut to.memory {
            Memory::Pinned(pinned) => self.note(pinned.write(from)),
            Memory::Host(memory) => memory[..from.len()].copy_from_slice(from),
            Memory::Planned => (),
        }
    }
}

impl Parked {
    fn check<T: Pod>(&self, buf: &Buf<T>, len: usize) -> usize {
        let bytes = len * size_of::<T>();
        assert!(bytes <= self.bytes, "{bytes} bytes in room for {}", self.bytes);
        assert!(len <= buf.len(), "{len} numbers of {}", buf.len());
        bytes
    }
}
