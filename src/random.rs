//! Random numbers by position: what is drawn depends on (seed, purpose, step, position) only.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", 2011)
//! turns a counter and a key into four words. There is no state to save and no order of draws:
//! thread count, resume and device never change a number.

/// What numbers are drawn for; two purposes never see the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The order of the records in an epoch.
    Shuffle = 1,
    /// Start values of trainable numbers.
    Init = 2,
    /// Which values a dropout keeps.
    Dropout = 3,
    /// Tokens drawn while generating.
    Sample = 4,
    /// Weights of models that were never trained.
    Synthetic = 5,
}

/// A family of random numbers, indexed by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random {
    key: [u32; 2],
    purpose: u32,
    step: u32,
}

impl Random {
    /// The numbers of a seed for one purpose at one step (or epoch, or tensor: what counts for the
    /// purpose).
    pub fn new(seed: u64, purpose: Purpose, step: u32) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], purpose: purpose as u32, step }
    }

    /// A uniform 32-bit number.
    pub fn u32_at(&self, position: u64) -> u32 {
        self.block(position / 4)[(position % 4) as usize]
    }

    /// A uniform number in [0, 1), a multiple of 2⁻²⁴.
    pub fn uniform_at(&self, position: u64) -> f32 {
        (self.u32_at(position) >> 8) as f32 / (1 << 24) as f32
    }

    /// A standard normal number (Box-Muller on a pair of uniform ones).
    pub fn normal_at(&self, position: u64) -> f32 {
        let block = self.block(position / 2);
        let pair = 2 * (position % 2) as usize;
        let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * unit(block[pair]).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * unit(block[pair + 1]);
        (radius * angle.cos()) as f32
    }

    /// A uniformly drawn order of `0..count` (Fisher-Yates).
    pub fn permutation(&self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last as u64, last as u64 + 1) as usize);
        }
        order
    }

    /// A number below `bound`, from 64 bits: the bias is below 2⁻³² for any `bound` below 2³².
    fn below(&self, position: u64, bound: u64) -> u64 {
        let block = self.block(position);
        let word = u64::from(block[0]) << 32 | u64::from(block[1]);
        ((u128::from(word) * u128::from(bound)) >> 64) as u64
    }

    fn block(&self, counter: u64) -> [u32; 4] {
        let counter = [counter as u32, (counter >> 32) as u32, self.step, self.purpose];
        philox(counter, self.key)
    }
}

/// Philox4x32-10: four random words for a counter and a key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(counter[0]) * 0xD251_1F53;
        let high = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 library.
    #[test]
    fn philox_gives_the_published_words() {
        let ones = u32::MAX;
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([ones; 4], [ones; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_numbers_have_mean_zero_variance_one_and_thin_tails() {
        let random = Random::new(7, Purpose::Init, 3);
        let draws: Vec<f64> = (0..20_000).map(|i| f64::from(random.normal_at(i))).collect();
        let moment = |power| draws.iter().map(|x| x.powi(power)).sum::<f64>() / 20_000.0;
        assert!(moment(1).abs() < 0.03, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.04, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.3, "{}", moment(4));
    }

    #[test]
    fn every_position_of_a_permutation_is_equally_likely() {
        let mut firsts = [0; 5];
        for epoch in 0..5000 {
            let order = Random::new(1, Purpose::Shuffle, epoch).permutation(5);
            firsts[order[0]] += 1;
            let mut sorted = order;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert!(firsts.iter().all(|&n| (850..1150).contains(&n)), "{firsts:?}");
    }

    #[test]
    fn purposes_and_steps_do_not_share_numbers() {
        let words = |purpose, step| Random::new(1, purpose, step).u32_at(0);
        assert_ne!(words(Purpose::Shuffle, 0), words(Purpose::Init, 0));
        assert_ne!(words(Purpose::Shuffle, 0), words(Purpose::Shuffle, 1));
        assert_eq!(words(Purpose::Shuffle, 1), words(Purpose::Shuffle, 1));
    }
}
