//! What a launch did, and what it could have done it with.

use std::ops::AddAssign;

/// Counts of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Instructions of warps.
    pub instructions: u64,
    /// Products of matrices among them.
    pub products: u64,
    /// Passes that shared memory needed: one for each set of addresses without two words in a bank.
    pub shared_passes: u64,
    /// Passes if no two words shared a bank.
    pub shared_passes_at_best: u64,
    /// Sectors of 32 bytes of global memory that were touched.
    pub sectors: u64,
    /// Sectors if every byte of them had been wanted.
    pub sectors_at_best: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, more: Self) {
        self.instructions += more.instructions;
        self.products += more.products;
        self.shared_passes += more.shared_passes;
        self.shared_passes_at_best += more.shared_passes_at_best;
        self.sectors += more.sectors;
        self.sectors_at_best += more.sectors_at_best;
    }
}

impl Counters {
    /// An access of `bytes` bytes by each lane of `lanes` to shared memory. Of 128 bytes at a time.
    pub(super) fn shared(&mut self, lanes: u32, addresses: &[u64; 32], bytes: usize) {
        let at_once = (128 / bytes).min(32);
        for first in (0..32).step_by(at_once) {
            let mut banks = Banks::default();
            for lane in first..first + at_once {
                if lanes >> lane & 1 == 1 {
                    banks.touch(addresses[lane], bytes);
                }
            }
            self.shared_passes += banks.passes();
            self.shared_passes_at_best += u64::from(banks.passes() > 0);
        }
    }

    /// An access of `bytes` bytes by each lane of `lanes` to global memory.
    pub(super) fn global(&mut self, lanes: u32, addresses: &[u64; 32], bytes: usize) {
        let mut touched = [u64::MAX; 64];
        for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
            touched[2 * lane] = addresses[lane] / 32;
            touched[2 * lane + 1] = (addresses[lane] + bytes as u64 - 1) / 32;
        }
        touched.sort_unstable();
        let changes = touched.windows(2).filter(|pair| pair[0] != pair[1]).count();
        // The last one is of the lanes that are not there, or else counted by no change.
        let all_there = touched[63] != u64::MAX;
        self.sectors += changes as u64 + u64::from(all_there);
        self.sectors_at_best += (u64::from(lanes.count_ones()) * bytes as u64).div_ceil(32);
    }
}

/// Most words that are asked for at once: 128 bytes, and as many again if none is aligned.
const WORDS: usize = 64;

/// No word.
const NONE: u32 = u32::MAX;

/// Different words that are asked for at once, and how many of them are in each of the 32 banks.
pub(super) struct Banks {
    /// The first of each bank.
    first: [u32; 32],
    others: [u32; WORDS],
    count: usize,
    in_bank: [u8; 32],
}

impl Default for Banks {
    fn default() -> Self {
        Self { first: [NONE; 32], others: [NONE; WORDS], count: 0, in_bank: [0; 32] }
    }
}

impl Banks {
    pub(super) fn touch(&mut self, address: u64, bytes: usize) {
        for word in address / 4..=(address + bytes as u64 - 1) / 4 {
            let (word, bank) = (word as u32, (word % 32) as usize);
            if self.first[bank] == word || self.others[..self.count].contains(&word) {
                continue;
            }
            if self.first[bank] == NONE {
                self.first[bank] = word;
            } else {
                self.others[self.count] = word;
                self.count += 1;
            }
            self.in_bank[bank] += 1;
        }
    }

    pub(super) fn passes(&self) -> u64 {
        u64::from(self.in_bank.into_iter().max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_one_bank_take_passes_of_their_own() {
        let passes = |stride: u64, bytes| {
            let mut counters = Counters::default();
            counters.shared(u32::MAX, &std::array::from_fn(|l| l as u64 * stride), bytes);
            (counters.shared_passes, counters.shared_passes_at_best)
        };
        assert_eq!(passes(4, 4), (1, 1));
        assert_eq!(passes(0, 4), (1, 1));
        assert_eq!(passes(8, 4), (2, 1));
        assert_eq!(passes(128, 4), (32, 1));
        assert_eq!(passes(16, 16), (4, 4));
        assert_eq!(passes(32, 16), (8, 4));
    }

    #[test]
    fn sectors_are_counted_once_for_a_warp() {
        let sectors = |stride: u64| {
            let mut counters = Counters::default();
            counters.global(u32::MAX, &std::array::from_fn(|l| 4096 + l as u64 * stride), 4);
            (counters.sectors, counters.sectors_at_best)
        };
        assert_eq!(sectors(4), (4, 4));
        assert_eq!(sectors(8), (8, 4));
        assert_eq!(sectors(32), (32, 4));
    }
}
