//! The registers of a warp.

use super::room::Place;
use crate::alu::{Alu, Longs, Words};
use crate::ptx::{Kernel, Operand, Register, Special};

/// Every register holds the numbers of 32 lanes.
pub(super) struct Registers {
    words: Vec<Words>,
    longs: Vec<Longs>,
    predicates: Vec<u32>,
    /// `%tid` of each lane.
    threads: [Words; 3],
    place: Place,
}

impl Registers {
    /// Registers of the warp `warp` of a block.
    pub(super) fn new(kernel: &Kernel, place: Place, warp: u32) -> Self {
        let [words, longs, predicates] = kernel.registers;
        let registers = Self {
            words: vec![[0; 32]; words],
            longs: vec![[0; 32]; longs],
            predicates: vec![0; predicates],
            threads: [[0; 32]; 3],
            place,
        };
        registers.renewed(place, warp)
    }

    /// The same registers for another warp: what is in them is nobody's business, as on a GPU.
    pub(super) fn renewed(self, place: Place, warp: u32) -> Self {
        let [x, y, _] = place.threads;
        let thread = |lane: usize| warp * 32 + lane as u32;
        let threads = [
            std::array::from_fn(|lane| thread(lane) % x),
            std::array::from_fn(|lane| thread(lane) / x % y),
            std::array::from_fn(|lane| thread(lane) / (x * y)),
        ];
        Self { threads, place, ..self }
    }

    pub(super) fn words(&self, operand: Operand) -> Words {
        match operand {
            Operand::Register(Register::Word(register)) => self.words[usize::from(register)],
            Operand::Register(Register::Long(register)) => {
                self.longs[usize::from(register)].map(|long| long as u32)
            }
            Operand::Register(Register::Predicate(register)) => {
                let mask = self.predicates[usize::from(register)];
                std::array::from_fn(|lane| mask >> lane & 1)
            }
            Operand::Immediate(number) => [number as u32; 32],
            Operand::Special(special) => self.special(special),
        }
    }

    fn special(&self, special: Special) -> Words {
        let axis = usize::from;
        match special {
            Special::Thread(i) => self.threads[axis(i)],
            Special::Block(i) => [self.place.block[axis(i)]; 32],
            Special::Threads(i) => [self.place.threads[axis(i)]; 32],
            Special::Blocks(i) => [self.place.blocks[axis(i)]; 32],
            Special::Lane => std::array::from_fn(|lane| lane as u32),
        }
    }

    pub(super) fn longs(&self, operand: Operand) -> Longs {
        match operand {
            Operand::Register(Register::Long(register)) => self.longs[usize::from(register)],
            Operand::Immediate(number) => [number; 32],
            other => self.words(other).map(u64::from),
        }
    }

    /// A mask of lanes.
    pub(super) fn predicate(&self, operand: Operand) -> u32 {
        match operand {
            Operand::Register(Register::Predicate(register)) => {
                self.predicates[usize::from(register)]
            }
            Operand::Immediate(0) => 0,
            Operand::Immediate(_) => u32::MAX,
            other => panic!("{other:?} as a predicate"),
        }
    }

    /// The lanes in which a guard holds.
    pub(super) fn guard(&self, register: u16, negated: bool) -> u32 {
        let mask = self.predicates[usize::from(register)];
        if negated { !mask } else { mask }
    }

    pub(super) fn set_words(&mut self, to: Register, lanes: u32, values: &Words) {
        match to {
            Register::Word(register) => {
                put(&mut self.words[usize::from(register)], lanes, values);
            }
            Register::Long(register) => {
                put(&mut self.longs[usize::from(register)], lanes, &values.map(u64::from));
            }
            Register::Predicate(_) => panic!("numbers for a predicate"),
        }
    }

    pub(super) fn set_longs(&mut self, to: Register, lanes: u32, values: &Longs) {
        match to {
            Register::Long(register) => put(&mut self.longs[usize::from(register)], lanes, values),
            other => self.set_words(other, lanes, &values.map(|long| long as u32)),
        }
    }

    pub(super) fn set_predicate(&mut self, to: Register, lanes: u32, mask: u32) {
        let Register::Predicate(register) = to else { panic!("a mask for {to:?}") };
        let register = &mut self.predicates[usize::from(register)];
        *register = *register & !lanes | mask & lanes;
    }

    /// One number of up to eight bytes.
    pub(super) fn set_lane(&mut self, to: Register, lane: usize, value: u64) {
        match to {
            Register::Word(register) => self.words[usize::from(register)][lane] = value as u32,
            Register::Long(register) => self.longs[usize::from(register)][lane] = value,
            Register::Predicate(_) => panic!("a number for a predicate"),
        }
    }

    /// Runs a function in `lanes`.
    pub(super) fn run(&mut self, function: Alu, to: Register, from: &[Operand; 4], lanes: u32) {
        let word = |i: usize| self.words(from[i]);
        let long = |i: usize| self.longs(from[i]);
        match function {
            Alu::W1(f) => self.set_words(to, lanes, &f(&word(0))),
            Alu::W2(f) => self.set_words(to, lanes, &f(&word(0), &word(1))),
            Alu::W3(f) => self.set_words(to, lanes, &f(&word(0), &word(1), &word(2))),
            Alu::W4(f) => self.set_words(to, lanes, &f(&word(0), &word(1), &word(2), &word(3))),
            Alu::L1(f) => self.set_longs(to, lanes, &f(&long(0))),
            Alu::L2(f) => self.set_longs(to, lanes, &f(&long(0), &long(1))),
            Alu::L3(f) => self.set_longs(to, lanes, &f(&long(0), &long(1), &long(2))),
            Alu::LongByWord(f) => self.set_longs(to, lanes, &f(&long(0), &word(1))),
            Alu::WordToLong(f) => self.set_longs(to, lanes, &f(&word(0))),
            Alu::LongToWord(f) => self.set_words(to, lanes, &f(&long(0))),
            Alu::WordsToLong(f) => self.set_longs(to, lanes, &f(&word(0), &word(1))),
            Alu::WordsAndLong(f) => self.set_longs(to, lanes, &f(&word(0), &word(1), &long(2))),
            Alu::CompareWords(f) => self.set_predicate(to, lanes, f(&word(0), &word(1))),
            Alu::CompareLongs(f) => self.set_predicate(to, lanes, f(&long(0), &long(1))),
            Alu::P1(f) => self.set_predicate(to, lanes, f(self.predicate(from[0]))),
            Alu::P2(f) => {
                self.set_predicate(to, lanes, f(self.predicate(from[0]), self.predicate(from[1])));
            }
            Alu::SelectWord => {
                let (a, b, mask) = (word(0), word(1), self.predicate(from[2]));
                let values = std::array::from_fn(|l| if mask >> l & 1 == 1 { a[l] } else { b[l] });
                self.set_words(to, lanes, &values);
            }
            Alu::SelectLong => {
                let (a, b, mask) = (long(0), long(1), self.predicate(from[2]));
                let values = std::array::from_fn(|l| if mask >> l & 1 == 1 { a[l] } else { b[l] });
                self.set_longs(to, lanes, &values);
            }
        }
    }
}

fn put<T: Copy>(register: &mut [T; 32], lanes: u32, values: &[T; 32]) {
    if lanes == u32::MAX {
        *register = *values;
        return;
    }
    for (lane, (place, value)) in register.iter_mut().zip(values).enumerate() {
        if lanes >> lane & 1 == 1 {
            *place = *value;
        }
    }
}
