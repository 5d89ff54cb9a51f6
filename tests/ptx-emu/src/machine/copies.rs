//! `cp.async`: copies from global to shared memory that nobody may count on before waiting for them.
//!
//! The destination is poisoned at once and written at the wait, the latest moment that is allowed: a
//! kernel that waits too little reads poison.

use super::memory::copy;
use super::room::{Fault, Room, Who};
use super::warp::Warp;
use crate::ptx::{Address, Operand};

/// A copy that was started.
#[derive(Clone, Copy)]
struct Transfer {
    who: Who,
    lane: usize,
    /// Where in the shared memory of the block.
    to: usize,
    /// Where in the memory of the device, if anything is read.
    from: usize,
    bytes: usize,
    /// Bytes that are read; the others become 0.
    read: usize,
    /// Number of its group among those of its lane.
    group: u32,
}

/// Copies of a warp that nobody has waited for.
#[derive(Default)]
pub(super) struct Copies {
    in_flight: Vec<Transfer>,
    /// Groups that each lane has committed.
    committed: [u32; 32],
}

impl Copies {
    pub(super) fn commit(&mut self, lanes: u32) {
        for (lane, committed) in self.committed.iter_mut().enumerate() {
            *committed += lanes >> lane & 1;
        }
    }

    /// The instruction of the first copy in flight.
    pub(super) fn first_in_flight(&self) -> Option<usize> {
        self.in_flight.first().map(|copy| copy.who.pc)
    }
}

impl Warp {
    pub(super) fn start_copies(
        &mut self,
        room: &mut Room,
        pc: usize,
        lanes: u32,
        (to, from): (Address, Address),
        bytes: usize,
        read: Option<Operand>,
    ) -> Result<(), Fault> {
        let (to, from) = (self.addresses(to), self.addresses(from));
        let read = read.map_or([bytes as u32; 32], |read| self.registers.words(read));
        room.counters.global(lanes, &from, bytes);
        room.counters.shared(lanes, &to, bytes);
        for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
            let (who, read) = (self.who(pc, lane), (read[lane] as usize).min(bytes));
            let range = room.shared_range(who, to[lane], bytes)?;
            let mut source = 0..0;
            // A copy that reads nothing may point anywhere.
            if read > 0 {
                source = room.copied_range(who, from[lane], (read, bytes))?;
                room.check_global_read(who, source.clone());
            }
            room.check_shared(who, range.clone(), true);
            room.shared[range.clone()].fill(0xff);
            if let Some(shadows) = &mut room.shadows {
                shadows.shared.set_in_flight(range.start, bytes, true);
            }
            let group = self.copies.committed[lane];
            let (to, from) = (range.start, source.start);
            self.copies.in_flight.push(Transfer { who, lane, to, from, bytes, read, group });
        }
        Ok(())
    }

    /// The copies of `lanes` arrive that are in none of the last `groups` groups.
    pub(super) fn finish_copies(&mut self, room: &mut Room, lanes: u32, groups: usize) {
        let Copies { in_flight, committed } = &mut self.copies;
        in_flight.retain(|transfer| {
            let group = transfer.group as usize;
            let done = lanes >> transfer.lane & 1 == 1
                && group + groups < committed[transfer.lane] as usize;
            if done {
                transfer.arrive(room, self.epoch);
            }
            !done
        });
    }
}

impl Transfer {
    fn arrive(&self, room: &mut Room, warp_epoch: u32) {
        let Self { who, to, from, bytes, read, .. } = *self;
        if let Some(shadows) = &mut room.shadows {
            shadows.shared.set_in_flight(to, bytes, false);
        }
        let mut arriving = [0; 16];
        room.memory.get(from, &mut arriving[..read]);
        // The thread that waits is the one that writes.
        room.check_shared(Who { warp_epoch, ..who }, to..to + bytes, true);
        copy(&mut room.shared[to..to + bytes], &arriving[..bytes]);
    }
}
