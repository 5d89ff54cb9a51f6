//! A warp: 32 lanes that run together, part at branches, and meet again.
//!
//! The lanes are on paths, each with its own place in the kernel. The path that is furthest behind
//! always goes first, so paths meet where their branches join.

use super::check::Kind;
use super::copies::Copies;
use super::registers::Registers;
use super::room::{Fault, Room, Who};
use crate::ptx::{Instruction, Operation};

/// Lanes at the same place.
#[derive(Debug, Clone, Copy)]
struct Path {
    pc: usize,
    lanes: u32,
}

/// What a warp can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// It waits for the other warps of its block.
    Waiting,
    Ended,
}

/// What comes after an instruction.
enum Flow {
    Next,
    /// These lanes go on there.
    Branch(usize, u32),
    /// These lanes end.
    Exit(u32),
    /// All lanes wait.
    Wait,
}

pub(super) struct Warp {
    /// Number of the first thread.
    pub(super) first: u32,
    pub(super) registers: Registers,
    pub(super) copies: Copies,
    /// `bar.warp.sync`s that it has passed.
    pub(super) epoch: u32,
    pub(super) state: State,
    paths: Vec<Path>,
    alive: u32,
}

impl Warp {
    /// The warp of the threads from `first` on; `lanes` of it exist.
    pub(super) fn new(first: u32, lanes: u32, registers: Registers) -> Self {
        Self {
            first,
            registers,
            copies: Copies::default(),
            epoch: 0,
            state: State::Running,
            paths: vec![Path { pc: 0, lanes }],
            alive: lanes,
        }
    }

    /// The thread of a lane at an instruction.
    pub(super) fn who(&self, pc: usize, lane: usize) -> Who {
        Who { pc, thread: self.first + lane as u32, warp_epoch: self.epoch }
    }

    /// Runs until it waits or ends, or for `most` instructions.
    pub(super) fn run(&mut self, room: &mut Room, most: u64) -> Result<(), Fault> {
        for _ in 0..most {
            let Some(path) = self.furthest_behind() else {
                self.state = State::Ended;
                return self.end(room);
            };
            room.counters.instructions += 1;
            let instruction = &room.kernel.instructions[path.pc];
            match self.step(room, instruction, path)? {
                Flow::Next => self.go_on(path.pc + 1, path.lanes),
                Flow::Branch(target, lanes) => {
                    self.go_on(target, lanes);
                    self.go_on(path.pc + 1, path.lanes & !lanes);
                }
                Flow::Exit(lanes) => {
                    self.alive &= !lanes;
                    self.go_on(path.pc + 1, path.lanes & !lanes);
                }
                Flow::Wait => {
                    self.go_on(path.pc + 1, path.lanes);
                    self.state = State::Waiting;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes out the path with the lowest place, with all lanes that are there.
    fn furthest_behind(&mut self) -> Option<Path> {
        if let [path] = self.paths[..] {
            self.paths.clear();
            return Some(path);
        }
        let pc = self.paths.iter().map(|path| path.pc).min()?;
        let here = self.paths.iter().filter(|path| path.pc == pc);
        let lanes = here.fold(0, |lanes, path| lanes | path.lanes);
        self.paths.retain(|path| path.pc != pc);
        Some(Path { pc, lanes })
    }

    fn go_on(&mut self, pc: usize, lanes: u32) {
        if lanes != 0 {
            self.paths.push(Path { pc, lanes });
        }
    }

    fn end(&mut self, room: &mut Room) -> Result<(), Fault> {
        if let Some(pc) = self.copies.first_in_flight() {
            room.find(pc, Kind::CopyAtExit, || "a thread ends before it has arrived".to_owned());
        }
        Ok(())
    }

    fn step(&mut self, room: &mut Room, what: &Instruction, path: Path) -> Result<Flow, Fault> {
        let Path { pc, lanes } = path;
        let lanes = match what.guard {
            None => lanes,
            Some((register, negated)) => lanes & self.registers.guard(register, negated),
        };
        match &what.operation {
            Operation::Alu { function, to, from } => {
                self.registers.run(*function, *to, from, lanes)
            }
            Operation::Branch(target) => return Ok(Flow::Branch(*target as usize, lanes)),
            Operation::Exit => return Ok(Flow::Exit(lanes)),
            Operation::Barrier => return self.wait(room, pc, lanes),
            Operation::WarpBarrier(mask) => {
                if lanes != 0 {
                    let mask = self.registers.words(*mask)[lanes.trailing_zeros() as usize];
                    self.check_mask(room, pc, lanes, mask);
                }
                self.epoch += 1;
            }
            Operation::Fence => (),
            Operation::Load { space, ty, to, from } => {
                self.load(room, pc, lanes, (*space, *ty), to, *from)?;
            }
            Operation::Store { space, ty, to, from } => {
                self.store(room, pc, lanes, (*space, *ty), *to, from)?;
            }
            Operation::Shuffle { mode, to, in_range, from } => {
                self.shuffle(room, pc, lanes, *mode, (*to, *in_range), from);
            }
            Operation::Vote { vote, to, from, mask } => {
                self.vote(room, pc, lanes, *vote, *to, (*from, *mask));
            }
            Operation::LoadMatrix { to, from, transposed } => {
                self.load_matrix(room, pc, lanes, to, *from, *transposed)?;
            }
            Operation::MultiplyMatrix { d, a, b, c } => {
                self.check_all_lanes(room, pc, lanes);
                room.counters.products += 1;
                self.registers.multiply_matrix(d, a, b, c);
            }
            Operation::CopyAsync { to, from, bytes, read } => {
                self.start_copies(room, pc, lanes, (*to, *from), *bytes, *read)?;
            }
            Operation::CopyCommit => self.copies.commit(lanes),
            Operation::CopyWait(groups) => self.finish_copies(room, lanes, *groups),
            Operation::CopyWaitAll => {
                self.copies.commit(lanes);
                self.finish_copies(room, lanes, 0);
            }
        }
        Ok(Flow::Next)
    }

    fn wait(&mut self, room: &mut Room, pc: usize, lanes: u32) -> Result<Flow, Fault> {
        if lanes == self.alive {
            return Ok(Flow::Wait);
        }
        let message = format!("lanes {lanes:08x} of {:08x}", self.alive);
        Err(room.fault(pc, Kind::DivergentBarrier, message))
    }

    /// Instructions of a whole warp want every lane.
    pub(super) fn check_all_lanes(&self, room: &mut Room, pc: usize, lanes: u32) {
        if lanes != u32::MAX {
            room.find(pc, Kind::WarpMask, || format!("only lanes {lanes:08x}"));
        }
    }

    /// An instruction that names the lanes that take part wants those, and no others.
    pub(super) fn check_mask(&self, room: &mut Room, pc: usize, lanes: u32, mask: u32) {
        if mask & self.alive != lanes {
            room.find(pc, Kind::WarpMask, || format!("mask {mask:08x}, lanes {lanes:08x}"));
        }
    }
}
