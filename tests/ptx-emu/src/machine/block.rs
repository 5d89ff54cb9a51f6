//! A block: its warps, one at a time, from barrier to barrier.

use super::check::Kind;
use super::launch::Order;
use super::registers::Registers;
use super::room::{Fault, Room};
use super::warp::{State, Warp};
use crate::ptx::Operation;

/// Most instructions of a warp before another one gets its turn, if the order is random.
const SLICE: u64 = 64;

/// Runs all warps of the block of `room` to their end.
pub(super) fn run(room: &mut Room, order: &mut Turns) -> Result<(), Fault> {
    let threads: u32 = room.place.threads.iter().product();
    let mut warp = |warp: u32| {
        let lanes = (threads - warp * 32).min(32);
        let registers = match room.spare.pop() {
            Some(registers) => registers.renewed(room.place, warp),
            None => Registers::new(room.kernel, room.place, warp),
        };
        Warp::new(warp * 32, u32::MAX >> (32 - lanes), registers)
    };
    let mut warps: Vec<Warp> = (0..threads.div_ceil(32)).map(&mut warp).collect();
    loop {
        let running: Vec<usize> =
            (0..warps.len()).filter(|w| warps[*w].state == State::Running).collect();
        match order.choose(&running) {
            Some(next) => warps[next].run(room, order.slice())?,
            None if warps.iter().all(|warp| warp.state == State::Ended) => {
                room.spare.extend(warps.into_iter().map(|warp| warp.registers));
                return Ok(());
            }
            None => pass_barrier(room, &mut warps),
        }
    }
}

/// All warps that have not ended have arrived.
fn pass_barrier(room: &mut Room, warps: &mut [Warp]) {
    let waiting = warps.iter().filter(|warp| warp.state == State::Waiting).count();
    if waiting < warps.len() {
        let instructions = &room.kernel.instructions;
        let at = instructions.iter().position(|i| matches!(i.operation, Operation::Barrier));
        let message = format!("{waiting} of {} warps wait, the others have ended", warps.len());
        room.find(at.unwrap_or(0), Kind::ExitedBarrier, || message);
    }
    for warp in warps.iter_mut().filter(|warp| warp.state == State::Waiting) {
        warp.state = State::Running;
    }
    room.epoch += 1;
}

/// Whose turn it is.
pub(super) struct Turns {
    order: Order,
    random: Random,
}

impl Turns {
    /// Those in the block `number`.
    pub(super) fn new(order: Order, number: u32) -> Self {
        let seed = if let Order::Random(seed) = order { seed } else { 0 };
        Self { order, random: Random(seed ^ u64::from(number) << 32) }
    }

    fn choose(&mut self, running: &[usize]) -> Option<usize> {
        match self.order {
            Order::Forward => running.first().copied(),
            Order::Reverse => running.last().copied(),
            Order::Random(_) if running.is_empty() => None,
            Order::Random(_) => Some(running[self.random.below(running.len() as u64) as usize]),
        }
    }

    fn slice(&mut self) -> u64 {
        match self.order {
            Order::Random(_) => 1 + self.random.below(SLICE),
            _ => u64::MAX,
        }
    }
}

impl Order {
    /// The blocks of a grid in the order in which they begin.
    pub(super) fn blocks(self, grid: [u32; 3]) -> Vec<u32> {
        let mut blocks: Vec<u32> = (0..grid.iter().product()).collect();
        match self {
            Self::Forward => (),
            Self::Reverse => blocks.reverse(),
            Self::Random(seed) => {
                let mut random = Random(seed);
                for i in (1..blocks.len()).rev() {
                    blocks.swap(i, random.below(i as u64 + 1) as usize);
                }
            }
        }
        blocks
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }
}
