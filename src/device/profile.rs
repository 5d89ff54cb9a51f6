//! Where the time of a run goes: spans of work in lanes, and the memory of each label.
//!
//! A device records nothing until [`Device::start_profile`](super::Device::start_profile). Then every
//! operation is a span: on the CPU as the host sees it, on a GPU between two events around each kernel,
//! which are read when the program waits for the GPU anyway. The first spans are kept one by one for a
//! timeline, all of them in the totals.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::memory::Report;

/// What works at the same time as others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Operations.
    Compute,
    /// Copies to a device and from it.
    Copies,
    /// Reading of weights from files.
    Disk,
    /// The program that waits for weights: on the CPU until they have come, on a GPU until their copies
    /// are queued.
    Waiting,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Compute, Self::Copies, Self::Disk, Self::Waiting];

    /// Its name in a timeline.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Copies => "copies",
            Self::Disk => "disk",
            Self::Waiting => "waiting for weights",
        }
    }
}

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Who did it.
    pub lane: Lane,
    /// What it was.
    pub name: &'static str,
    /// When it began, since the profile did.
    pub start: Duration,
    /// How long it took.
    pub length: Duration,
    /// Bytes that were moved, where that is the point of it.
    pub bytes: u64,
}

/// All spans of one name.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    /// Count of them.
    pub count: u64,
    /// Time of all together.
    pub time: Duration,
    /// Bytes of all together.
    pub bytes: u64,
}

/// What was recorded.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The first spans.
    pub spans: Vec<Span>,
    /// Spans that are in the totals only.
    pub left_out: u64,
    /// By lane and name.
    pub totals: BTreeMap<(Lane, &'static str), Total>,
    /// Multiplications and additions of matrix products.
    pub flops: f64,
    /// The book of the device at some moments.
    pub memory: Vec<(Duration, Report)>,
}

/// Spans that are kept one by one.
const MOST_SPANS: usize = 400_000;

/// A recording.
#[derive(Debug)]
pub struct Profile {
    begun: Instant,
    record: Mutex<Record>,
}

impl Profile {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), record: Mutex::default() }
    }

    /// Time since it began.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A copy of what was recorded.
    pub fn record(&self) -> Record {
        self.open().clone()
    }

    pub(super) fn add(&self, span: Span) {
        let mut record = self.open();
        let total = record.totals.entry((span.lane, span.name)).or_default();
        total.count += 1;
        total.time += span.length;
        total.bytes += span.bytes;
        match record.spans.len() < MOST_SPANS {
            true => record.spans.push(span),
            false => record.left_out += 1,
        }
    }

    /// A span from `start` until now.
    pub(super) fn close(&self, lane: Lane, name: &'static str, start: Duration, bytes: u64) {
        self.add(Span { lane, name, start, length: self.now() - start, bytes });
    }

    pub(super) fn count(&self, flops: f64) {
        self.open().flops += flops;
    }

    pub(super) fn sample(&self, report: Report) {
        let now = self.now();
        self.open().memory.push((now, report));
    }

    fn open(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
