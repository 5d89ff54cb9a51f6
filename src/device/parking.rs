//! Host memory beside a device, where numbers wait until they are wanted again.
//!
//! On a GPU it is pinned, and copies are queued with everything else: nothing is waited for. On the CPU
//! it is memory like any other. It is booked apart from the memory of the device.

use super::cuda::Pinned;
use super::memory::Booking;
use super::{Act, Device, Kind};
use crate::error::Error;

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
    /// Room in host memory for `bytes` bytes under `label`.
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

    /// Copies the first `len` elements of `from` to `to`.
    pub fn park(&self, from: &Act, len: usize, to: &mut Parked) {
        let bytes = to.check(from, len);
        match (&self.kind, &mut to.memory) {
            (Kind::Cuda(cuda), Memory::Pinned(pinned)) => {
                // SAFETY: both are as long as checked; the pinned memory belongs to `to`, which is read
                // by copies queued after this one only, and freed behind them.
                self.note(unsafe { cuda.park(from.bytes().address(), bytes, pinned) });
            }
            (_, Memory::Host(memory)) => {
                let host = from.bytes().host().expect("the CPU sees its memory");
                memory[..bytes].copy_from_slice(&host[..bytes]);
            }
            _ => (),
        }
    }

    /// Copies the first `len` elements of `from` to `to`.
    pub fn unpark(&self, from: &Parked, len: usize, to: &mut Act) {
        let bytes = from.check(to, len);
        match (&self.kind, &from.memory) {
            (Kind::Cuda(cuda), Memory::Pinned(pinned)) => {
                // SAFETY: as above.
                self.note(unsafe { cuda.unpark(pinned, bytes, to.bytes_mut().address_mut()) });
            }
            (_, Memory::Host(memory)) => {
                let host = to.bytes_mut().host_mut().expect("the CPU sees its memory");
                host[..bytes].copy_from_slice(&memory[..bytes]);
            }
            _ => (),
        }
    }
}

impl Parked {
    fn check(&self, act: &Act, len: usize) -> usize {
        let bytes = len * act.dtype().size();
        assert!(bytes <= self.bytes, "{bytes} bytes in room for {}", self.bytes);
        assert!(len <= act.len(), "{len} elements of {}", act.len());
        bytes
    }
}
