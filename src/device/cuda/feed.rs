//! From files to the GPU beside what it computes: a stream of its own, and pinned buffers.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::Cuda;
use super::staging::Ring;
use crate::device::Address;
use crate::device::profile::Lane;
use crate::error::Error;

/// A moment in what is queued.
pub struct Arrival(CudaEvent);

/// What a thread brings bytes to the GPU with.
pub struct Feed {
    cuda: Arc<Cuda>,
    stream: Arc<CudaStream>,
    ring: Ring,
}

impl Cuda {
    /// The moment when all that is queued to be computed is done.
    pub fn mark(&self) -> Result<Arrival, Error> {
        let marked = self.compute.stream().and_then(|stream| stream.record_event(None));
        let marked = marked.map(Arrival);
        marked.map_err(|error| self.failed("an event", error))
    }

    /// What is queued from now on waits for `arrival`.
    pub fn wait_for(&self, arrival: &Arrival) -> Result<(), Error> {
        let waited = self.compute.stream().and_then(|stream| stream.wait(&arrival.0));
        waited.map_err(|error| self.failed("a wait for weights", error))
    }
}

impl Feed {
    /// Takes a stream and pinned memory.
    pub fn new(cuda: Arc<Cuda>) -> Result<Self, Error> {
        let taken = |cuda: &Cuda| -> Result<_, DriverError> {
            Ok((cuda.context.new_stream()?, Ring::new(&cuda.context)?))
        };
        let (stream, ring) =
            taken(&cuda).map_err(|error| cuda.failed("pinned memory for weights", error))?;
        Ok(Self { cuda, stream, ring })
    }

    /// What is brought from now on waits for `arrival`.
    pub fn wait_for(&self, arrival: &Arrival) -> Result<(), Error> {
        self.check(self.stream.wait(&arrival.0))
    }

    /// Brings `bytes` bytes to `to`: `read` puts them into pinned memory.
    ///
    /// # Safety
    /// `to` is valid for writes of as many bytes, and nothing else touches them until an
    /// [`arrival`](Self::arrival) after this call.
    pub unsafe fn portion(
        &mut self,
        bytes: usize,
        to: Address,
        read: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Self { cuda, stream, ring } = self;
        let failed = |error| cuda.failed("a copy of weights to the GPU", error);
        let buffer = ring.free(bytes).map_err(failed)?;
        read(buffer)?;
        let what = (Lane::Copies, "weights", bytes as u64);
        // SAFETY: passed on from the caller.
        let send = || unsafe { ring.send(stream, bytes, to) };
        cuda.timing.around(stream, what, send).map_err(failed)
    }

    /// The moment when all that was brought so far is there.
    pub fn arrival(&self) -> Result<Arrival, Error> {
        self.check(self.stream.record_event(None).map(Arrival))
    }

    fn check<T>(&self, done: Result<T, DriverError>) -> Result<T, Error> {
        done.map_err(|error| self.cuda.failed("the stream of weights", error))
    }
}
