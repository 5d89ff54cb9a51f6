//! Pinned host memory between the program and the GPU.
//!
//! A copy from memory that is not pinned would make the driver wait for all that is queued. Here the
//! host fills one buffer of a ring while the copies of the others are under way; a buffer is filled
//! again only after its last copy is done. Small copies share a buffer: the few of a micro-batch wait
//! for what is computed before them, and a buffer for each would make the host wait, too.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};

use crate::device::Address;

/// Bytes of one buffer: long enough that starting a copy costs little beside it.
const BYTES: usize = 4 << 20;

/// Buffers on the way to the GPU: one is filled while another is read.
const BUFFERS: usize = 2;

/// Buffers on the way to the GPU.
pub(super) struct Ring {
    stages: [Stage; BUFFERS],
    /// The one in turn.
    turn: usize,
}

struct Stage {
    bytes: PinnedHostSlice<u8>,
    /// Bytes of it that have been filled since it became the one in turn.
    used: usize,
    /// The last copy out of it is done. The event within the slice is not recorded on a context that
    /// does not track events.
    copied: CudaEvent,
}

/// The ring of buffers to the GPU, and the one from it.
pub(super) struct Staging {
    up: Ring,
    down: PinnedHostSlice<u8>,
}

fn pinned(context: &Arc<CudaContext>) -> Result<PinnedHostSlice<u8>, DriverError> {
    // SAFETY: bytes are written before they are read: by the host on the way up, by the GPU down.
    unsafe { context.alloc_pinned_with_flags::<u8>(BYTES, 0) }
}

impl Ring {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let stage =
            || Ok(Stage { bytes: pinned(context)?, used: 0, copied: context.new_event(None)? });
        Ok(Self { stages: [stage()?, stage()?], turn: 0 })
    }

    /// `bytes` free bytes: behind those filled before, or of the next buffer once its last copy is done.
    pub(super) fn free(&mut self, bytes: usize) -> Result<&mut [u8], DriverError> {
        if self.stages[self.turn].used + bytes > BYTES {
            self.turn = (self.turn + 1) % BUFFERS;
            let Stage { used, copied, .. } = &mut self.stages[self.turn];
            copied.synchronize()?;
            *used = 0;
        }
        let Stage { bytes: buffer, used, .. } = &mut self.stages[self.turn];
        Ok(&mut buffer.as_mut_slice()?[*used..*used + bytes])
    }

    /// Queues the copy of what was put into the bytes that [`free`](Self::free) gave.
    ///
    /// # Safety
    /// `to` is valid for writes of as many bytes, and nothing else touches them meanwhile.
    pub(super) unsafe fn send(
        &mut self,
        stream: &CudaStream,
        bytes: usize,
        to: Address,
    ) -> Result<(), DriverError> {
        let Stage { bytes: buffer, used, copied } = &mut self.stages[self.turn];
        stream.context().bind_to_thread()?;
        let from = &buffer.as_slice()?[*used..*used + bytes];
        *used += bytes;
        // SAFETY: the caller vouches for `to`; the buffer is left alone until `copied` has come.
        unsafe { result::memcpy_htod_async(to.number(), from, stream.cu_stream())? };
        copied.record(stream)
    }
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        Ok(Self { up: Ring::new(context)?, down: pinned(context)? })
    }

    /// Queues the copy of `from` on `stream`, after which `from` may change.
    ///
    /// # Safety
    /// `to` is valid for writes of as many bytes, and nothing else touches them meanwhile.
    pub(super) unsafe fn upload(
        &mut self,
        stream: &CudaStream,
        from: &[u8],
        to: Address,
    ) -> Result<(), DriverError> {
        for (number, piece) in from.chunks(BYTES).enumerate() {
            self.up.free(piece.len())?.copy_from_slice(piece);
            // SAFETY: passed on from the caller.
            unsafe { self.up.send(stream, piece.len(), to.offset(number * BYTES))? };
        }
        Ok(())
    }

    /// Copies `from` to `to` behind all that is queued on `stream`.
    ///
    /// # Safety
    /// `from` is valid for reads of as many bytes.
    pub(super) unsafe fn download(
        &mut self,
        stream: &CudaStream,
        from: Address,
        to: &mut [u8],
    ) -> Result<(), DriverError> {
        stream.context().bind_to_thread()?;
        for (number, piece) in to.chunks_mut(BYTES).enumerate() {
            let from = from.offset(number * BYTES).number();
            let buffer = &mut self.down.as_mut_slice()?[..piece.len()];
            // SAFETY: the caller vouches for `from`; the stream is waited for before the buffer is read.
            unsafe { result::memcpy_dtoh_async(buffer, from, stream.cu_stream())? };
            stream.synchronize()?;
            piece.copy_from_slice(buffer);
        }
        Ok(())
    }
}
