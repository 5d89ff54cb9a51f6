//! Times of what a GPU does: two events around it, read when the program waits anyway.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use crate::device::profile::{Lane, Profile, Span};

/// Events of work that is queued, if anybody asked for times.
#[derive(Default)]
pub(super) struct Timing {
    /// A moment that both the GPU and the host know.
    origin: OnceLock<(CudaEvent, Duration)>,
    pending: Mutex<Vec<Pending>>,
}

struct Pending {
    lane: Lane,
    name: &'static str,
    bytes: u64,
    from: CudaEvent,
    to: CudaEvent,
}

fn event(stream: &CudaStream) -> Result<CudaEvent, DriverError> {
    stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
}

impl Timing {
    /// From now on, work is timed; nothing is queued at this moment.
    pub(super) fn begin(&self, stream: &CudaStream, profile: &Profile) -> Result<(), DriverError> {
        let origin = event(stream)?;
        origin.synchronize()?;
        // A second call changes nothing.
        let _ = self.origin.set((origin, profile.now()));
        Ok(())
    }

    /// Whether work is timed.
    pub(super) fn is_on(&self) -> bool {
        self.origin.get().is_some()
    }

    /// Queues what `work` queues on `stream`, timed if that was asked for.
    pub(super) fn around<T>(
        &self,
        stream: &CudaStream,
        (lane, name, bytes): (Lane, &'static str, u64),
        work: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        if !self.is_on() {
            return work();
        }
        let from = event(stream)?;
        let done = work()?;
        let pending = Pending { lane, name, bytes, from, to: event(stream)? };
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(pending);
        Ok(done)
    }

    /// Enters everything timed so far, and waits for what a feed still copies.
    pub(super) fn settle(&self, profile: &Profile) -> Result<(), DriverError> {
        let Some((origin, begun)) = self.origin.get() else { return Ok(()) };
        let pending =
            std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        for Pending { lane, name, bytes, from, to } in pending {
            let since = |event: &CudaEvent| Ok(milliseconds(origin.elapsed_ms(event)?));
            let (start, end) = (since(&from)?, since(&to)?);
            let length = end.saturating_sub(start);
            profile.add(Span { lane, name, start: *begun + start, length, bytes });
        }
        Ok(())
    }
}

fn milliseconds(time: f32) -> Duration {
    Duration::from_secs_f64(f64::from(time.max(0.0)) / 1e3)
}
