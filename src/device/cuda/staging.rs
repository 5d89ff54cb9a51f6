//! Pinned host memory between the program and the GPU.
//!
//! A copy from memory that is not pinned would make the driver wait for all that is queued. Here the
//! host fills one buffer of a ring while the copies of the others are under way; a buffer is filled
//! again only after its last copy is done.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};

use crate::device::Address;

/// Bytes of one buffer: long enough that starting a copy costs little beside it.
const BYTES: usize = 4 << 20;

/// Buffers on the way to the GPU: one is filled while another is read.
const BUFFERS: usize = 2;

/// The ring of buffers to the GPU, and the one from it.
pub(super) struct Staging {
    up: [Stage; BUFFERS],
    next: usize,
    down: PinnedHostSlice<u8>,
}

struct Stage {
    bytes: PinnedHostSlice<u8>,
    /// The last copy out of it is done. The event within the slice is not recorded on a context that
    /// does not track events.
    copied: CudaEvent,
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        // SAFETY: bytes are written before they are read: by the host here, by the GPU there.
        let pinned = || unsafe { context.alloc_pinned_with_flags::<u8>(BYTES, 0) };
        let stage = || Ok(Stage { bytes: pinned()?, copied: context.new_event(None)? });
        Ok(Self { up: [stage()?, stage()?], next: 0, down: pinned()? })
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
            let Stage { bytes, copied } = &mut self.up[self.next];
            self.next = (self.next + 1) % BUFFERS;
            copied.synchronize()?;
            let bytes = &mut bytes.as_mut_slice()?[..piece.len()];
            bytes.copy_from_slice(piece);
            let to = to.offset(number * BYTES).number();
            // SAFETY: the caller vouches for `to`; the buffer is left alone until `copied` has come.
            unsafe { result::memcpy_htod_async(to, bytes, stream.cu_stream())? };
            copied.record(stream)?;
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
