//! Matrices spread over the lanes of a warp: `ldmatrix` and `mma.sync`.
//!
//! An 8 × 8 matrix of 16-bit numbers has one register of each lane: lane l holds the numbers 2(l mod 4)
//! and 2(l mod 4) + 1 of row l div 4. Larger ones are made of those.

use super::counters::Banks;
use super::registers::Registers;
use super::room::{Fault, Room};
use super::warp::Warp;
use crate::alu::Words;
use crate::ptx::{Address, Operand, Register, Space};

/// Row and first column of a lane's part of an 8 × 8 matrix.
const fn part(lane: usize) -> (usize, usize) {
    (lane / 4, 2 * (lane % 4))
}

impl Warp {
    pub(super) fn load_matrix(
        &mut self,
        room: &mut Room,
        pc: usize,
        lanes: u32,
        to: &[Register],
        from: Address,
        transposed: bool,
    ) -> Result<(), Fault> {
        self.check_all_lanes(room, pc, lanes);
        let addresses = self.addresses(from);
        for (i, to) in to.iter().enumerate() {
            let (mut rows, mut banks) = ([[0_u16; 8]; 8], Banks::default());
            for (r, row) in rows.iter_mut().enumerate() {
                let lane = 8 * i + r;
                banks.touch(addresses[lane], 16);
                let bytes = room.read(self.who(pc, lane), Space::Shared, addresses[lane], 16)?;
                *row =
                    std::array::from_fn(|c| u16::from_le_bytes([bytes[2 * c], bytes[2 * c + 1]]));
            }
            room.counters.shared_passes += banks.passes();
            room.counters.shared_passes_at_best += 1;
            let number = |row: usize, column: usize| match transposed {
                false => u32::from(rows[row][column]),
                true => u32::from(rows[column][row]),
            };
            let pair = |lane| {
                let (row, column) = part(lane);
                number(row, column) | number(row, column + 1) << 16
            };
            self.registers.set_words(*to, u32::MAX, &std::array::from_fn(pair));
        }
        Ok(())
    }
}

impl Registers {
    /// d = a·b + c, each number of d summed in f32 in the order of the depth.
    pub(super) fn multiply_matrix(
        &mut self,
        d: &[Register; 4],
        a: &[Operand; 4],
        b: &[Operand; 2],
        c: &[Operand; 4],
    ) {
        let left = self.left(a);
        let right = self.right(b);
        let mut sums = [[0.0_f32; 8]; 16];
        for (i, c) in c.iter().enumerate() {
            for (lane, bits) in self.words(*c).into_iter().enumerate() {
                let (row, column) = place_of_sum(i, lane);
                sums[row][column] = f32::from_bits(bits);
            }
        }
        for (row, left) in sums.iter_mut().zip(&left) {
            for (a, right) in left.iter().zip(&right) {
                for (sum, b) in row.iter_mut().zip(right) {
                    *sum += a * b;
                }
            }
        }
        for (i, d) in d.iter().enumerate() {
            let values: Words = std::array::from_fn(|lane| {
                let (row, column) = place_of_sum(i, lane);
                sums[row][column].to_bits()
            });
            self.set_words(*d, u32::MAX, &values);
        }
    }

    /// 16 rows and a depth of 16: the quarters top left, bottom left, top right, bottom right.
    fn left(&self, a: &[Operand; 4]) -> [[f32; 16]; 16] {
        let mut left = [[0.0; 16]; 16];
        for (i, a) in a.iter().enumerate() {
            for (lane, bits) in self.words(*a).into_iter().enumerate() {
                let (row, column) = part(lane);
                let (row, column) = (row + 8 * (i % 2), column + 8 * (i / 2));
                [left[row][column], left[row][column + 1]] = numbers(bits);
            }
        }
        left
    }

    /// A depth of 16 and 8 columns: the upper half and the lower one, each lane holding two numbers
    /// below each other.
    fn right(&self, b: &[Operand; 2]) -> [[f32; 8]; 16] {
        let mut right = [[0.0; 8]; 16];
        for (i, b) in b.iter().enumerate() {
            for (lane, bits) in self.words(*b).into_iter().enumerate() {
                let (column, row) = part(lane);
                [right[row + 8 * i][column], right[row + 1 + 8 * i][column]] = numbers(bits);
            }
        }
        right
    }
}

/// Row and column of the sum in register `i` of a lane.
const fn place_of_sum(i: usize, lane: usize) -> (usize, usize) {
    let (row, column) = part(lane);
    (row + 8 * (i / 2), column + i % 2)
}

/// The bf16 numbers of a register, the lower one first.
fn numbers(bits: u32) -> [f32; 2] {
    [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)]
}
