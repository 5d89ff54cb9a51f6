//! The CPU as a device: a pool of threads, the instruction set found at run time, and scratch.
//!
//! It trains, and it is the oracle of every kernel. Work is cut into numbered tasks whose results
//! do not depend on which thread runs them, so that a run gives the same bits for any number of
//! threads.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;
use rayon::prelude::*;

use super::buffer::{Address, Storage};
use super::memory::{Booking, Ledger};
use super::{Dtype, Scratch};
use crate::error::Error;

/// Label under which the scratch of CPU kernels is booked.
pub const SCRATCH: &str = "scratch";

/// The widest instruction set that this machine has of those the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Simd {
    /// What the target guarantees.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with bf16 dot products.
    Avx512Bf16,
}

impl Simd {
    /// Looks at this machine.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
            (true, true, true) => Self::Avx512Bf16,
            (true, true, false) => Self::Avx512,
            (true, false, _) => Self::Avx2,
            (false, ..) => Self::Portable,
        }
    }

    /// Looks at this machine.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Self {
        Self::Portable
    }

    /// All levels that this machine can run, the plainest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::detect();
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16]
            .into_iter()
            .filter(move |level| *level <= best)
    }
}

/// Threads, instruction set and scratch of the CPU device.
pub struct Cpu {
    pool: Option<ThreadPool>,
    simd: Simd,
    pub(super) dtype: Dtype,
    pub(super) ledger: Arc<Ledger>,
    scratch: Mutex<Arena>,
    /// Held by whoever is [inside](Cpu::enter): a worker that waits for its tasks must not be given
    /// somebody else's launches, which would wait for the scratch that it holds.
    entrance: Mutex<()>,
}

#[derive(Default)]
struct Arena {
    memory: Option<(Storage, Booking)>,
    bytes: usize,
}

impl Cpu {
    /// A device of `threads` threads (at least one) on `simd` instructions.
    pub fn new(threads: usize, simd: Simd, dtype: Dtype, ledger: Arc<Ledger>) -> Self {
        let pool = (threads > 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("cpu-{i}"))
                .build()
                .expect("the system can start threads")
        });
        let (scratch, entrance) = (Mutex::default(), Mutex::default());
        Self { pool, simd, dtype, ledger, scratch, entrance }
    }

    /// The instruction set that kernels may use.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// Count of threads.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, ThreadPool::current_num_threads)
    }

    /// Runs `work` on one of the threads, so that none need be called up for each launch in it.
    pub(super) fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let Some(pool) = self.pool.as_ref().filter(|pool| pool.current_thread_index().is_none())
        else {
            return work();
        };
        let _inside = self.entrance.lock().unwrap_or_else(PoisonError::into_inner);
        pool.install(work)
    }

    /// Runs `task(0)` to `task(count - 1)`, each once, on any thread in any order.
    pub fn for_each(&self, count: usize, task: impl Fn(usize) + Sync) {
        match &self.pool {
            Some(pool) if count > 1 => {
                pool.install(|| (0..count).into_par_iter().with_max_len(1).for_each(&task));
            }
            _ => (0..count).for_each(task),
        }
    }

    /// The number of the thread that asks, below [`threads`](Self::threads).
    pub fn thread(&self) -> usize {
        self.pool.as_ref().and_then(ThreadPool::current_thread_index).unwrap_or(0)
    }

    /// Lends scratch memory of at least the size asked for; its content is whatever was there.
    ///
    /// # Errors
    /// The arena grows when a launch needs more than any before it; that can run out of memory.
    pub(super) fn with_scratch(
        &self,
        need: Scratch,
        run: impl FnOnce(ScratchMemory),
    ) -> Result<(), Error> {
        let mut arena = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let address = arena.reserve(need.total(self.threads()), &self.ledger)?;
        run(ScratchMemory { address, need, threads: self.threads() });
        Ok(())
    }
}

impl Arena {
    fn reserve(&mut self, bytes: usize, ledger: &Arc<Ledger>) -> Result<Address, Error> {
        if bytes > self.bytes {
            self.memory = None;
            let booking = ledger.book(SCRATCH, bytes as u64)?;
            self.memory = Some((Storage::host(bytes), booking));
            self.bytes = bytes;
        }
        Ok(self.memory.as_mut().map_or(Address::NULL, |(storage, _)| storage.address_mut()))
    }
}

/// Scratch of one launch: one part that all tasks share, and one for each thread.
#[derive(Clone, Copy)]
pub struct ScratchMemory {
    address: Address,
    need: Scratch,
    threads: usize,
}

impl ScratchMemory {
    /// The part that all tasks of the launch share, aligned to 64 bytes.
    pub fn shared(&self) -> Address {
        self.address
    }

    /// The part of thread `thread`, aligned to 64 bytes.
    pub fn of_thread(&self, thread: usize) -> Address {
        assert!(thread < self.threads, "thread {thread} of {}", self.threads);
        let start = Scratch::aligned(self.need.shared);
        self.address.offset(start + thread * Scratch::aligned(self.need.per_thread))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn two_who_launch_at_once_do_not_wait_for_each_other_forever() {
        let cpu = Cpu::new(2, Simd::Portable, Dtype::F32, Ledger::new("cpu", u64::MAX));
        let done = AtomicUsize::new(0);
        let need = Scratch { shared: 64, per_thread: 64 };
        let launch = |_: ScratchMemory| {
            cpu.for_each(8, |_| {
                done.fetch_add(1, Relaxed);
            });
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    cpu.enter(|| (0..200).for_each(|_| cpu.with_scratch(need, launch).unwrap()));
                });
            }
        });
        assert_eq!(done.load(Relaxed), 3 * 200 * 8);
    }
}
