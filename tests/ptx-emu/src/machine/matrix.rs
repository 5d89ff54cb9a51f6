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
            let (mut matrix, mut banks) = ([0_u32; 32], Banks::default());
            for (r, row) in matrix.chunks_exact_mut(4).enumerate() {
                let lane = 8 * i + r;
                banks.touch(addresses[lane], 16);
                let bytes = room.read(self.who(pc, lane), Space::Shared, addresses[lane], 16)?;
                for (pair, bytes) in row.iter_mut().zip(bytes.as_chunks().0) {
                    *pair = u32::from_le_bytes(*bytes);
                }
            }
            room.counters.shared_passes += banks.passes();
            room.counters.shared_passes_at_best += 1;
            let matrix = if transposed { turned(&matrix) } else { matrix };
            self.registers.set_words(*to, u32::MAX, &matrix);
        }
        Ok(())
    }
}

/// An 8 × 8 matrix with rows and columns exchanged.
fn turned(matrix: &Words) -> Words {
    let number = |row: usize, column: usize| matrix[4 * row + column / 2] >> (16 * (column % 2));
    std::array::from_fn(|lane| {
        let (row, column) = part(lane);
        number(column, row) & 0xffff | number(column + 1, row) << 16
    })
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
        let (left, right) = (self.left(a), self.right(b));
        let mut sums = [[0.0; 8]; 16];
        for (half, c) in sums.chunks_exact_mut(8).zip(c.as_chunks().0) {
            let [even, odd] = c.map(|c| self.words(c));
            for (row, lanes) in half.iter_mut().zip((0..32).step_by(4)) {
                *row = alternating(&even[lanes..lanes + 4], &odd[lanes..lanes + 4]);
            }
        }
        for (row, left) in sums.iter_mut().zip(&left) {
            for (a, right) in left.iter().zip(&right) {
                for (sum, b) in row.iter_mut().zip(right) {
                    *sum += a * b;
                }
            }
        }
        for (half, d) in sums.chunks_exact(8).zip(d.as_chunks::<2>().0) {
            for (odd, d) in d.iter().enumerate() {
                let value = |lane: usize| half[lane / 4][2 * (lane % 4) + odd].to_bits();
                self.set_words(*d, u32::MAX, &std::array::from_fn(value));
            }
        }
    }

    /// 16 rows and a depth of 16: the quarters top left, bottom left, top right, bottom right.
    fn left(&self, a: &[Operand; 4]) -> [[f32; 16]; 16] {
        let mut left = [[0.0; 16]; 16];
        for (i, a) in a.iter().enumerate() {
            let words = self.words(*a);
            for (row, lanes) in words.chunks_exact(4).enumerate() {
                let columns = 8 * (i / 2)..8 * (i / 2) + 8;
                left[row + 8 * (i % 2)][columns].copy_from_slice(&numbers(lanes));
            }
        }
        left
    }

    /// A depth of 16 and 8 columns: the upper half and the lower one, each lane holding two numbers
    /// below each other.
    fn right(&self, b: &[Operand; 2]) -> [[f32; 8]; 16] {
        let mut right = [[0.0; 8]; 16];
        for (half, b) in right.chunks_exact_mut(8).zip(b) {
            for (column, lanes) in self.words(*b).chunks_exact(4).enumerate() {
                for (row, number) in half.iter_mut().zip(numbers(lanes)) {
                    row[column] = number;
                }
            }
        }
        right
    }
}

/// The numbers that four lanes hold, one of each register in turn.
fn alternating(even: &[u32], odd: &[u32]) -> [f32; 8] {
    std::array::from_fn(|i| f32::from_bits(if i % 2 == 0 { even[i / 2] } else { odd[i / 2] }))
}

/// The bf16 numbers of four lanes, the lower one of a register first.
fn numbers(lanes: &[u32]) -> [f32; 8] {
    std::array::from_fn(|i| {
        f32::from_bits(if i % 2 == 0 { lanes[i / 2] << 16 } else { lanes[i / 2] & 0xffff_0000 })
    })
}
