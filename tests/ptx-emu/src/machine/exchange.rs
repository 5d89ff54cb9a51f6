//! What lanes tell each other.

use super::check::Kind;
use super::room::Room;
use super::warp::Warp;
use crate::alu::Words;
use crate::ptx::{Operand, Register, Shuffle, Vote};

impl Warp {
    pub(super) fn shuffle(
        &mut self,
        room: &mut Room,
        pc: usize,
        lanes: u32,
        mode: Shuffle,
        (to, in_range): (Register, Option<Register>),
        from: &[Operand; 4],
    ) {
        if lanes == 0 {
            return;
        }
        let [values, picks, clamps, masks] = from.map(|from| self.registers.words(from));
        self.check_mask(room, pc, lanes, masks[lanes.trailing_zeros() as usize]);
        let mut taken: Words = [0; 32];
        let mut reached = 0;
        for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
            let source = source(mode, lane as u32, picks[lane], clamps[lane]);
            let from = source.map_or(lane, |source| source as usize);
            if lanes >> from & 1 == 0 {
                let message = move || format!("lane {lane} reads lane {from}");
                room.find(pc, Kind::InactiveLane, message);
            }
            taken[lane] = values[from];
            reached |= u32::from(source.is_some()) << lane;
        }
        self.registers.set_words(to, lanes, &taken);
        if let Some(in_range) = in_range {
            self.registers.set_predicate(in_range, lanes, reached);
        }
    }

    pub(super) fn vote(
        &mut self,
        room: &mut Room,
        pc: usize,
        lanes: u32,
        vote: Vote,
        to: Register,
        ((register, negated), mask): ((u16, bool), Operand),
    ) {
        if lanes == 0 {
            return;
        }
        let mask = self.registers.words(mask)[lanes.trailing_zeros() as usize];
        self.check_mask(room, pc, lanes, mask);
        let holds = self.registers.guard(register, negated) & lanes;
        let everywhere = |yes: bool| if yes { u32::MAX } else { 0 };
        match vote {
            Vote::All => self.registers.set_predicate(to, lanes, everywhere(holds == lanes)),
            Vote::Any => self.registers.set_predicate(to, lanes, everywhere(holds != 0)),
            Vote::Ballot => self.registers.set_words(to, lanes, &[holds; 32]),
        }
    }
}

/// The lane that `lane` reads; none if that would leave its segment, and then it reads itself. The
/// low five bits of `clamp` bound the lane, five bits from the eighth on say which bits are the
/// segment.
fn source(mode: Shuffle, lane: u32, pick: u32, clamp: u32) -> Option<u32> {
    let (segment, pick) = (clamp >> 8 & 31, pick & 31);
    let first = lane & segment;
    let last = first | clamp & 31 & !segment;
    match mode {
        Shuffle::Up => lane.checked_sub(pick).filter(|source| *source >= last),
        Shuffle::Down => Some(lane + pick).filter(|source| *source <= last),
        Shuffle::Butterfly => Some(lane ^ pick).filter(|source| *source <= last),
        Shuffle::Index => Some(first | pick & !segment).filter(|source| *source <= last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_beyond_the_segment_are_not_read() {
        // As `__shfl_*_sync` of width 32 and 8 say it.
        let (whole, eight) = (31, (32 - 8) << 8 | 31);
        assert_eq!(source(Shuffle::Down, 30, 1, whole), Some(31));
        assert_eq!(source(Shuffle::Down, 31, 1, whole), None);
        assert_eq!(source(Shuffle::Down, 7, 1, eight), None);
        assert_eq!(source(Shuffle::Butterfly, 5, 16, whole), Some(21));
        assert_eq!(source(Shuffle::Index, 13, 2, eight), Some(10));
        assert_eq!(source(Shuffle::Index, 13, 10, eight), Some(10));
        // Up has the first lane as its bound.
        assert_eq!(source(Shuffle::Up, 3, 1, 0), Some(2));
        assert_eq!(source(Shuffle::Up, 0, 1, 0), None);
        assert_eq!(source(Shuffle::Up, 8, 1, (32 - 8) << 8), None);
    }
}
