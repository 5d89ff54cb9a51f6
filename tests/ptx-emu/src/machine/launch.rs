//! A grid of blocks, on as many threads as are wanted.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::block::{Turns, run};
use super::check::{Finding, Kind};
use super::counters::Counters;
use super::memory::DeviceMemory;
use super::room::{Findings, Place, Room, Shadows};
use super::shadow::Shadow;
use crate::ptx::{Kernel, Module};

/// In which order blocks run, and the warps of a block between barriers. A kernel that is right gives
/// the same in every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The first one first.
    Forward,
    /// The last one first.
    Reverse,
    /// By chance, a few instructions at a time.
    Random(u64),
}

/// A kernel and what it is started with.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// Where the kernel is.
    pub module: &'a Module,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks of the grid.
    pub blocks: [u32; 3],
    /// The first block that runs, in each direction: those before it are left out. 0 to run all; more to
    /// see the end of a grid that is too large to run.
    pub first: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// The arguments, laid out as the kernel declares them.
    pub params: &'a [u8],
    /// Of blocks and warps.
    pub order: Order,
    /// Most threads that run blocks.
    pub workers: usize,
    /// Whether races, fresh memory and copies in flight are looked for.
    pub checked: bool,
}

/// What a launch did.
#[derive(Debug, Default)]
pub struct Report {
    /// Mistakes: the first of each kind at each instruction.
    pub findings: Vec<Finding>,
    /// Counts.
    pub counters: Counters,
}

/// Most threads of a block.
const MOST_THREADS: u32 = 1024;

impl Launch<'_> {
    /// Runs the grid on `memory`. A mistake that a device would not survive ends the launch.
    pub fn run(&self, memory: &mut DeviceMemory) -> Report {
        if let Some(message) = self.refusal() {
            let place = self.kernel.name.clone();
            let finding = Finding { kind: Kind::Launch, place, block: [0; 3], message };
            return Report { findings: vec![finding], ..Report::default() };
        }
        let running = self.running();
        memory.begin_launch(running.iter().product());
        let queue = Queue { blocks: self.order.blocks(running), next: AtomicUsize::new(0) };
        let workers = self.workers.min(queue.blocks.len() / BLOCKS_OF_A_WORKER).max(1);
        let memory = &*memory;
        let (findings, counters) = std::thread::scope(|scope| {
            let helpers: Vec<_> =
                (1..workers).map(|_| scope.spawn(|| self.work(memory, &queue))).collect();
            let (mut findings, mut counters) = self.work(memory, &queue);
            for helper in helpers {
                let (more_findings, more_counters) = helper.join().expect("it does not panic");
                for (place, finding) in more_findings {
                    findings.entry(place).or_insert(finding);
                }
                counters += more_counters;
            }
            (findings, counters)
        });
        Report { findings: findings.into_values().collect(), counters }
    }

    /// Runs blocks until none is left.
    fn work(&self, memory: &DeviceMemory, queue: &Queue) -> (Findings, Counters) {
        let mut room = self.room(memory);
        while let Some(number) = queue.next() {
            room.enter(number);
            if run(&mut room, &mut Turns::new(self.order, number)).is_err() {
                queue.stop();
            }
        }
        (room.findings, room.counters)
    }

    /// Blocks that run, in each direction.
    fn running(&self) -> [u32; 3] {
        std::array::from_fn(|i| self.blocks[i] - self.first[i])
    }

    /// Why no device takes the launch.
    fn refusal(&self) -> Option<String> {
        let threads: u32 = self.threads.iter().product();
        let declared = self.kernel.param_bytes;
        let most = self.kernel.most_threads.unwrap_or(MOST_THREADS).min(MOST_THREADS);
        if threads == 0 || threads > most {
            return Some(format!("{threads} threads in a block of at most {most}"));
        }
        if self.blocks.contains(&0) || self.blocks[1].max(self.blocks[2]) > 65_535 {
            return Some(format!("{:?} blocks", self.blocks));
        }
        let given = self.params.len();
        (given != declared).then(|| format!("{given} bytes of arguments for {declared}"))
    }

    fn room<'a>(&'a self, memory: &'a DeviceMemory) -> Room<'a> {
        let shared_bytes = self.kernel.shared_bytes.next_multiple_of(16) + self.shared_bytes;
        Room {
            module: self.module,
            kernel: self.kernel,
            params: self.params,
            memory,
            first: self.first,
            running: self.running(),
            last: 0..0,
            findings: Findings::new(),
            counters: Counters::default(),
            place: Place { block: [0; 3], threads: self.threads, blocks: self.blocks },
            number: 0,
            shared: vec![0xff; shared_bytes],
            spare: Vec::new(),
            shadows: self.checked.then(|| Shadows {
                shared: Shadow::new(shared_bytes),
                global: Shadow::new(memory.len()),
            }),
            epoch: 0,
        }
    }
}

/// Blocks for which a thread is worth its start.
const BLOCKS_OF_A_WORKER: usize = 4;

/// The blocks that have not run.
struct Queue {
    blocks: Vec<u32>,
    next: AtomicUsize,
}

impl Queue {
    fn next(&self) -> Option<u32> {
        self.blocks.get(self.next.fetch_add(1, Relaxed)).copied()
    }

    fn stop(&self) {
        self.next.store(self.blocks.len(), Relaxed);
    }
}
