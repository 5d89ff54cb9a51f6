//! What the warps of a block can reach: memory, and the book of what they do wrong.

use std::collections::BTreeMap;
use std::ops::Range;

use super::check::{Finding, Kind};
use super::counters::Counters;
use super::memory::{DeviceMemory, copy, start_of};
use super::registers::Registers;
use super::shadow::{Access, Shadow, Wrong};
use crate::ptx::{Kernel, Module, Space};

/// Where a block is in its grid, and the shape of both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub block: [u32; 3],
    pub threads: [u32; 3],
    pub blocks: [u32; 3],
}

/// The end of a launch: on a GPU the device would be lost.
#[derive(Debug)]
pub(super) struct Fault;

/// Who does something, and with which instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub pc: usize,
    pub thread: u32,
    pub warp_epoch: u32,
}

impl Who {
    fn access(self, block_epoch: u32) -> Access {
        Access { thread: self.thread, block_epoch, warp_epoch: self.warp_epoch }
    }
}

/// Findings by instruction and kind: the first of each.
pub(super) type Findings = BTreeMap<(usize, Kind), Finding>;

/// Who of a block touched what.
pub(super) struct Shadows {
    pub shared: Shadow,
    pub global: Shadow,
}

/// What the warps of one block share.
pub(super) struct Room<'a> {
    pub module: &'a Module,
    pub kernel: &'a Kernel,
    pub params: &'a [u8],
    pub memory: &'a DeviceMemory,
    /// The first block that runs.
    pub first: [u32; 3],
    /// How many do, in each direction.
    pub running: [u32; 3],
    /// The allocation that was asked for last: mostly it is the next one too.
    pub last: Range<usize>,
    pub findings: Findings,
    pub counters: Counters,
    pub place: Place,
    /// Number of the block among those that run.
    pub number: u32,
    pub shared: Vec<u8>,
    /// Registers of warps that have ended.
    pub spare: Vec<Registers>,
    /// If the launch is checked.
    pub shadows: Option<Shadows>,
    /// Barriers that all warps have passed.
    pub epoch: u32,
}

/// Bytes of one access: 16 at most.
pub(super) type Bytes = [u8; 16];

impl Room<'_> {
    /// Makes room for the block `number` of the grid.
    pub(super) fn enter(&mut self, number: u32) {
        let [x, y, _] = self.running;
        let block = [number % x, number / x % y, number / (x * y)];
        self.place.block = std::array::from_fn(|i| self.first[i] + block[i]);
        self.number = number;
        self.shared.fill(0xff);
        if let Some(Shadows { shared, global }) = &mut self.shadows {
            shared.renew();
            global.renew();
        }
        self.epoch = 0;
    }

    pub(super) fn find(&mut self, pc: usize, kind: Kind, message: impl FnOnce() -> String) {
        let Self { module, kernel, place, .. } = self;
        self.findings.entry((pc, kind)).or_insert_with(|| Finding {
            kind,
            place: module.place(&kernel.instructions[pc]),
            block: place.block,
            message: message(),
        });
    }

    /// Notes a mistake that nothing can follow.
    pub(super) fn fault(&mut self, pc: usize, kind: Kind, message: String) -> Fault {
        self.find(pc, kind, || message);
        Fault
    }

    /// Reads `len` bytes at an address of `space`.
    pub(super) fn read(
        &mut self,
        who: Who,
        space: Space,
        address: u64,
        len: usize,
    ) -> Result<Bytes, Fault> {
        let mut bytes = [0; 16];
        let from = match space {
            Space::Shared => {
                let range = self.shared_range(who, address, len)?;
                self.check_shared(who, range.clone(), false);
                &self.shared[range]
            }
            Space::Const => {
                let range = self.range_within(who, self.module.constants.len(), address, len)?;
                &self.module.constants[range]
            }
            Space::Param => {
                let range = self.range_within(who, self.params.len(), address, len)?;
                &self.params[range]
            }
            Space::Global | Space::Generic => {
                let range = self.global_range(who, address, len)?;
                self.check_global_read(who, range.clone());
                self.memory.get(range.start, &mut bytes[..len]);
                return Ok(bytes);
            }
        };
        copy(&mut bytes[..len], from);
        Ok(bytes)
    }

    /// Writes to an address of `space`.
    pub(super) fn write(
        &mut self,
        who: Who,
        space: Space,
        address: u64,
        from: &[u8],
    ) -> Result<(), Fault> {
        if space == Space::Shared {
            let range = self.shared_range(who, address, from.len())?;
            self.check_shared(who, range.clone(), true);
            copy(&mut self.shared[range], from);
            return Ok(());
        }
        let range = self.global_range(who, address, from.len())?;
        self.check_global_write(who, range.clone());
        self.memory.put(range.start, from);
        Ok(())
    }

    /// Where an access to shared memory is, if it may be.
    #[inline]
    pub(super) fn shared_range(
        &mut self,
        who: Who,
        address: u64,
        len: usize,
    ) -> Result<Range<usize>, Fault> {
        self.range_within(who, self.shared.len(), address, len)
    }

    /// Where an access to a memory of `size` bytes is that begins at address 0.
    #[inline]
    fn range_within(
        &mut self,
        who: Who,
        size: usize,
        address: u64,
        len: usize,
    ) -> Result<Range<usize>, Fault> {
        self.check_alignment(who, address, len)?;
        let start = usize::try_from(address).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        range
            .filter(|range| range.end <= size)
            .ok_or_else(|| self.misplaced(who, Kind::Bounds, address, len))
    }

    /// Where an access to global memory is, if it may be.
    #[inline]
    pub(super) fn global_range(
        &mut self,
        who: Who,
        address: u64,
        len: usize,
    ) -> Result<Range<usize>, Fault> {
        self.copied_range(who, address, (len, len))
    }

    /// The first `read` bytes of a copy of `bytes`.
    #[inline]
    pub(super) fn copied_range(
        &mut self,
        who: Who,
        address: u64,
        (read, bytes): (usize, usize),
    ) -> Result<Range<usize>, Fault> {
        self.check_alignment(who, address, bytes)?;
        let range = start_of(address).and_then(|start| self.allocated(start..start + read));
        range.ok_or_else(|| self.misplaced(who, Kind::GlobalBounds, address, read))
    }

    #[inline]
    fn allocated(&mut self, range: Range<usize>) -> Option<Range<usize>> {
        let holds = |all: &Range<usize>| all.start <= range.start && range.end <= all.end;
        if !holds(&self.last) {
            self.last = self.memory.allocation(range.start).filter(holds)?;
        }
        Some(range)
    }

    /// An access is of a power of two of bytes, and at a multiple of that.
    #[inline]
    fn check_alignment(&mut self, who: Who, address: u64, len: usize) -> Result<(), Fault> {
        match address & (len as u64 - 1) {
            0 => Ok(()),
            _ => Err(self.misplaced(who, Kind::Alignment, address, len)),
        }
    }

    #[cold]
    fn misplaced(&mut self, who: Who, kind: Kind, address: u64, len: usize) -> Fault {
        self.fault(who.pc, kind, format!("thread {}: {len} bytes at {address:#x}", who.thread))
    }

    /// What is wrong with an access to shared memory beside its place.
    pub(super) fn check_shared(&mut self, who: Who, range: Range<usize>, writes: bool) {
        let Some(shadows) = &mut self.shadows else { return };
        let kind = match shadows.shared.note(range.clone(), who.access(self.epoch), writes) {
            None => return,
            Some(Wrong::Fresh) => Kind::SharedFresh,
            Some(Wrong::Race) => Kind::SharedRace,
            Some(Wrong::InFlight) => Kind::CopyRace,
        };
        self.find_access(who, kind, range, writes);
    }

    pub(super) fn check_global_read(&mut self, who: Who, range: Range<usize>) {
        if self.shadows.is_none() {
            return;
        }
        if !self.memory.is_written(range.clone()) {
            self.find(who.pc, Kind::GlobalFresh, || format!("thread {}", who.thread));
        }
        let other = self.memory.other_writer(range.clone(), self.number);
        self.check_others(who, range, other, false);
    }

    fn check_global_write(&mut self, who: Who, range: Range<usize>) {
        if self.shadows.is_none() {
            return;
        }
        let other = self.memory.note_writer(range.clone(), self.number);
        self.check_others(who, range, other, true);
    }

    /// An access after that of another block, if there was one, and those of other threads of this one.
    fn check_others(&mut self, who: Who, range: Range<usize>, other: Option<u32>, writes: bool) {
        if let Some(other) = other {
            let message = move || format!("thread {}; block {other} wrote it", who.thread);
            self.find(who.pc, Kind::GlobalRace, message);
        }
        let Some(shadows) = &mut self.shadows else { return };
        // What this block has not written was there before the launch.
        let wrong = shadows.global.note(range.clone(), who.access(self.epoch), writes);
        if wrong == Some(Wrong::Race) {
            self.find_access(who, Kind::GlobalRace, range, writes);
        }
    }

    fn find_access(&mut self, who: Who, kind: Kind, range: Range<usize>, writes: bool) {
        let verb = if writes { "writes" } else { "reads" };
        let (start, len) = (range.start, range.len());
        self.find(who.pc, kind, || {
            format!("thread {} {verb} {len} bytes at {start:#x}", who.thread)
        });
    }
}
