//! Streams: work that waits until somebody waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use super::{
    Code, Driver, INVALID_HANDLE, INVALID_VALUE, LAUNCH_FAILED, NOT_READY, complain, count,
};
use crate::{Launch, Order};

/// Something that a stream will do.
pub(super) enum Work {
    /// From host memory that was copied at the call.
    Upload { to: u64, bytes: Vec<u8> },
    /// From pinned host memory, which nothing but a download before it may change until then.
    UploadPinned { to: u64, from: usize, len: usize, hash: u64 },
    /// To host memory, which must be there until then.
    Download { to: usize, from: u64, len: usize },
    /// From device to device.
    Copy { to: u64, from: u64, len: usize },
    /// The same byte everywhere.
    Fill { to: u64, byte: u8, len: usize },
    /// A grid.
    Launch(Grid),
    /// An event has come.
    Record { event: u64, count: u64 },
    /// Nothing before an event has come so many times.
    Wait { event: u64, count: u64 },
    /// Memory is given back.
    Free(u64),
}

/// A kernel and what it is started with; the arguments are copied at the call.
#[derive(Clone)]
pub(super) struct Grid {
    pub(super) function: usize,
    pub(super) blocks: [u32; 3],
    pub(super) threads: [u32; 3],
    pub(super) shared_bytes: usize,
    pub(super) params: Vec<u8>,
}

/// How often an event was recorded, as queued and as done.
#[derive(Debug, Clone, Copy, Default)]
struct Event {
    queued: u64,
    done: u64,
    /// When it last came.
    at: Option<Instant>,
    /// Destroyed by the program; who waits for it goes on waiting.
    forgotten: bool,
}

/// All streams and events of a device.
pub(super) struct Streams {
    queues: BTreeMap<u64, VecDeque<Work>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    random: u64,
    /// Which streams go first for now.
    preference: u64,
}

/// How much work is done, in the mean, before other streams are preferred: as much as a block of a model is.
const MEAN_STRETCH: u64 = 32;

/// The stream that is always there.
const DEFAULT: u64 = 0;

impl Streams {
    pub(super) fn new(seed: u64) -> Self {
        let queues = BTreeMap::from([(DEFAULT, VecDeque::new())]);
        Self { queues, events: BTreeMap::new(), next: 1, random: seed, preference: seed }
    }

    pub(super) fn open(&mut self) -> u64 {
        let stream = self.handle();
        self.queues.insert(stream, VecDeque::new());
        stream
    }

    pub(super) fn new_event(&mut self) -> u64 {
        let event = self.handle();
        self.events.insert(event, Event::default());
        event
    }

    pub(super) fn forget_event(&mut self, event: u64) -> Result<(), Code> {
        self.event(event)?.forgotten = true;
        self.remove_forgotten(event);
        Ok(())
    }

    /// An event that the program still has.
    fn event(&mut self, event: u64) -> Result<&mut Event, Code> {
        self.events.get_mut(&event).filter(|event| !event.forgotten).ok_or(INVALID_HANDLE)
    }

    fn remove_forgotten(&mut self, event: u64) {
        if self
            .events
            .get(&event)
            .is_some_and(|event| event.forgotten && event.done == event.queued)
        {
            self.events.remove(&event);
        }
    }

    fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn push(&mut self, stream: u64, work: Work) -> Result<(), Code> {
        self.queues.get_mut(&stream).ok_or(INVALID_HANDLE)?.push_back(work);
        Ok(())
    }

    pub(super) fn record(&mut self, stream: u64, event: u64) -> Result<(), Code> {
        let known = self.event(event)?;
        known.queued += 1;
        let count = known.queued;
        self.push(stream, Work::Record { event, count })
    }

    /// An event that was never recorded is waited for by nobody.
    pub(super) fn wait(&mut self, stream: u64, event: u64) -> Result<(), Code> {
        let count = self.event(event)?.queued;
        self.push(stream, Work::Wait { event, count })
    }

    pub(super) fn has_come(&self, event: u64) -> Result<bool, Code> {
        let event = self.events.get(&event).ok_or(INVALID_HANDLE)?;
        Ok(event.done == event.queued)
    }

    /// Milliseconds from one event to another, as this machine emulates.
    pub(super) fn between(&self, start: u64, end: u64) -> Result<f32, Code> {
        let at = |event: u64| match self.has_come(event)? {
            true => self.events[&event].at.ok_or(INVALID_HANDLE),
            false => Err(NOT_READY),
        };
        let (start, end) = (at(start)?, at(end)?);
        Ok(end.saturating_duration_since(start).as_secs_f32() * 1e3)
    }

    pub(super) fn is_idle(&self, stream: u64) -> Result<bool, Code> {
        Ok(self.queues.get(&stream).ok_or(INVALID_HANDLE)?.is_empty())
    }

    pub(super) fn are_idle(&self) -> bool {
        self.queues.values().all(VecDeque::is_empty)
    }

    /// Takes the next work of any stream that can go on.
    fn take(&mut self) -> Option<Work> {
        let may_go_on = |work: &Work| match work {
            Work::Wait { event, count } => {
                self.events.get(event).is_none_or(|event| event.done >= *count)
            }
            _ => true,
        };
        let ready = self.queues.iter().filter(|(_, queue)| queue.front().is_some_and(may_go_on));
        let ready: Vec<u64> = ready.map(|(stream, _)| *stream).collect();
        if self.draw().is_multiple_of(MEAN_STRETCH) {
            self.preference = self.draw();
        }
        // For a stretch, streams that are ready wait for those that are preferred, however long that takes.
        let rank = |stream: &u64| (stream ^ self.preference).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let chosen = ready.into_iter().max_by_key(rank)?;
        self.queues.get_mut(&chosen)?.pop_front()
    }

    /// A download has come to pinned memory: what waits to be uploaded from there is what is there now.
    fn renew(&mut self, landed: std::ops::Range<usize>) {
        for work in self.queues.values_mut().flatten() {
            if let Work::UploadPinned { from, len, hash, .. } = work
                && *from < landed.end
                && landed.start < *from + *len
            {
                // SAFETY: pinned memory is there until the upload is done.
                *hash = unsafe { hash_of(*from, *len) };
            }
        }
    }

    /// A linear congruential generator; its upper bits.
    pub(super) fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.random >> 33
    }
}

/// What bytes are now, to see whether they have changed.
///
/// # Safety
/// They must be readable.
pub(super) unsafe fn hash_of(from: usize, len: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    // SAFETY: passed on from the caller.
    unsafe { std::slice::from_raw_parts(from as *const u8, len) }.hash(&mut hasher);
    hasher.finish()
}

impl Driver {
    /// Works until `done`, which must come to be.
    pub(super) fn work_until(
        &mut self,
        done: impl Fn(&Streams) -> Result<bool, Code>,
    ) -> Result<(), Code> {
        if done(&self.streams)? {
            return Ok(());
        }
        while !done(&self.streams)? {
            let Some(work) = self.streams.take() else {
                return self.lose("streams wait for events that nobody records".to_owned());
            };
            self.run(work)?;
        }
        count(|counts| counts.idle += u64::from(self.streams.are_idle()));
        Ok(())
    }

    /// A grid of `function` as a caller describes it: blocks, threads and bytes of shared memory.
    ///
    /// # Safety
    /// `params` is null or points to one pointer to the argument of the kernel.
    pub(super) unsafe fn grid(
        &mut self,
        function: usize,
        (blocks, threads, shared_bytes): ([u32; 3], [u32; 3], u32),
        params: *mut *mut c_void,
    ) -> Result<Grid, Code> {
        let shared_bytes = shared_bytes as usize;
        if shared_bytes > self.function_of(function)?.shared_bytes || params.is_null() {
            return Err(INVALID_VALUE);
        }
        let known = &self.functions[function - 1];
        let len = self.modules[known.module].kernels[known.kernel].param_bytes;
        // SAFETY: the caller gives the address of an argument as long as the kernel declares it.
        let params = unsafe { std::slice::from_raw_parts((*params).cast::<u8>(), len) }.to_vec();
        Ok(Grid { function: function - 1, blocks, threads, shared_bytes, params })
    }

    /// Says what happened; the device is gone.
    fn lose(&mut self, what: String) -> Result<(), Code> {
        complain(&what);
        self.lost = LAUNCH_FAILED;
        Err(LAUNCH_FAILED)
    }

    fn run(&mut self, work: Work) -> Result<(), Code> {
        match work {
            Work::Upload { to, bytes } => self.write(to, &bytes),
            Work::UploadPinned { to, from, len, hash } => {
                // SAFETY: a driver reads pinned memory until the copy is done; who frees it earlier
                // would crash there, too.
                let (now, bytes) = unsafe {
                    (
                        hash_of(from, len),
                        std::slice::from_raw_parts(from as *const u8, len).to_vec(),
                    )
                };
                if now != hash {
                    return self
                        .lose(format!("{len} pinned bytes changed before they were copied"));
                }
                self.write(to, &bytes)
            }
            Work::Download { to, from, len } => {
                let Some(bytes) = self.readable(from, len) else {
                    return self.lose(format!("no {len} bytes at {from:#x} to copy to the host"));
                };
                // SAFETY: the caller keeps the host memory until the copy is done.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, len) };
                self.streams.renew(to..to + len);
                Ok(())
            }
            Work::Copy { to, from, len } => match self.readable(from, len) {
                Some(bytes) => self.write(to, &bytes),
                None => self.lose(format!("no {len} bytes at {from:#x} to copy")),
            },
            Work::Fill { to, byte, len } => self.write(to, &vec![byte; len]),
            Work::Launch(grid) => self.launch(&grid),
            Work::Record { event, count } => {
                if let Some(event) = self.streams.events.get_mut(&event) {
                    (event.done, event.at) = (count, Some(Instant::now()));
                }
                self.streams.remove_forgotten(event);
                Ok(())
            }
            Work::Wait { .. } => Ok(()),
            Work::Free(address) => self.free(address),
        }
    }

    fn readable(&self, from: u64, len: usize) -> Option<Vec<u8>> {
        self.memory.allocated(from, len)?;
        Some(self.memory.read(from, len))
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), Code> {
        if self.memory.allocated(to, bytes.len()).is_none() {
            return self.lose(format!("no {} bytes at {to:#x} to write", bytes.len()));
        }
        self.memory.write(to, bytes);
        Ok(())
    }

    fn launch(&mut self, grid: &Grid) -> Result<(), Code> {
        let order = Order::Random(self.streams.draw());
        let function = self.functions.get(grid.function).ok_or(INVALID_VALUE)?;
        let module = &self.modules[function.module];
        let kernel = &module.kernels[function.kernel];
        if self.card.hangs.as_ref() == Some(&kernel.name) {
            never_end(&kernel.name);
        }
        if self.card.spoils.as_ref() == Some(&kernel.name) {
            let what = format!("kernel {}: spoiled, as PTX_EMU_SPOILS asks", kernel.name);
            return self.lose(what);
        }
        let launch = Launch {
            module,
            kernel,
            blocks: grid.blocks,
            first: [0; 3],
            threads: grid.threads,
            shared_bytes: grid.shared_bytes,
            params: &grid.params,
            order,
            workers: self.card.workers,
            checked: self.card.checked,
        };
        let report = launch.run(&mut self.memory);
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        if findings.is_empty() {
            return Ok(());
        }
        let what = format!("kernel {}: {}", kernel.name, findings.join("; "));
        self.lose(what)
    }
}

/// What a program sees of a kernel that loops for ever: a call that does not come back.
fn never_end(kernel: &str) -> ! {
    complain(&format!("kernel {kernel}: hangs, as PTX_EMU_HANGS asks"));
    loop {
        std::thread::park();
    }
}
