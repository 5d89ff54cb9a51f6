//! The 256-entry dynamic code: a floating-point type whose exponent may take from one to seven bits,
//! the rest being a linear fraction. Dettmers, "8-Bit Approximations for Parallelism in Deep
//! Learning" (arXiv 1511.04561); the signed map keeps the scales of double quantization, both maps
//! keep optimizer states.

use super::{SMALLEST_DIVISOR, absmax};

/// A sorted table of 256 values and what it takes to find the nearest of them.
#[derive(Debug)]
pub struct Dynamic {
    values: [f32; 256],
    /// The f32 midpoints between neighbouring values; an infinity ends them.
    boundaries: [f32; 256],
    /// For the upper 16 bits of an f32, the code of the least f32 that has them. At most one boundary
    /// lies among the others, so one comparison makes this the code of any of them.
    codes: [u8; CELLS],
}

/// Values of the upper 16 bits of an f32: sign, exponent and seven bits of the fraction.
const CELLS: usize = 1 << 16;

/// -0.993 to 1.0, with 0 at code 127. Not symmetric: there is a +1.0, but no -1.0.
pub static SIGNED: Dynamic = Dynamic::new(signed_values());

/// 0 to 1.0, with 0 at code 0.
pub static UNSIGNED: Dynamic = Dynamic::new(unsigned_values());

/// Decades from 1e-6 to 1.
const DECADES: usize = 7;

/// Entries that are neither zero nor the final 1.0: 1 + 2 + ... + 64 of either sign.
const MAGNITUDES: usize = 127;

impl Dynamic {
    const fn new(values: [f32; 256]) -> Self {
        let mut boundaries = [f32::INFINITY; 256];
        let mut i = 0;
        while i < 255 {
            boundaries[i] = (values[i] + values[i + 1]) / 2.0;
            i += 1;
        }
        let codes = codes_of_cells(&boundaries);
        Self { values, boundaries, codes }
    }

    /// The value of every code, ascending.
    pub const fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The value of a code.
    #[inline]
    pub const fn value(&self, code: u8) -> f32 {
        self.values[code as usize]
    }

    /// The code of the entry nearest to x; a tie takes the lower one. Zero keeps its own code.
    #[inline]
    pub fn nearest(&self, x: f32) -> u8 {
        let least = self.codes[(x.to_bits() >> 16) as usize];
        least + u8::from(self.boundaries[usize::from(least)] < x)
    }
}

/// Writes one code for each of `values`, where `code_of` codes a value divided by their largest
/// magnitude; returns that magnitude. Values that are all zero get code 0, whatever it stands for.
pub(super) fn encode_group(values: &[f32], codes: &mut [u8], code_of: impl Fn(f32) -> u8) -> f32 {
    let absmax = absmax(values);
    if absmax == 0.0 {
        codes.fill(0);
        return absmax;
    }
    let inverse = 1.0 / absmax.max(SMALLEST_DIVISOR);
    for (code, x) in codes.iter_mut().zip(values) {
        *code = code_of(x * inverse);
    }
    absmax
}

/// Walks the cells of either sign from zero outwards, and the boundaries along with them.
const fn codes_of_cells(boundaries: &[f32; 256]) -> [u8; CELLS] {
    const SIGN: usize = CELLS / 2;
    let mut codes = [0; CELLS];
    let (mut above, mut below) = (0, 255);
    let mut cell = 0;
    while cell < SIGN {
        let least = f32::from_bits((cell as u32) << 16);
        while boundaries[above] < least {
            above += 1;
        }
        codes[cell] = above as u8;
        let least = f32::from_bits(((SIGN + cell) as u32) << 16 | 0xffff);
        while below > 0 && boundaries[below - 1] >= least {
            below -= 1;
        }
        codes[SIGN + cell] = below as u8;
        cell += 1;
    }
    codes
}

const fn signed_values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut next = 0;
    let mut decade = 0;
    while decade < DECADES {
        let mut i = 0;
        while i < 1 << decade {
            let magnitude = magnitude(decade, i, 1 << decade);
            values[MAGNITUDES + 1 + next] = magnitude;
            values[MAGNITUDES - 1 - next] = -magnitude;
            (i, next) = (i + 1, next + 1);
        }
        decade += 1;
    }
    values[255] = 1.0;
    values
}

const fn unsigned_values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut next = 1;
    let mut decade = 0;
    while decade < DECADES {
        let mut i = 0;
        while i < 2 << decade {
            values[next] = magnitude(decade, i, 2 << decade);
            (i, next) = (i + 1, next + 1);
        }
        decade += 1;
    }
    values[255] = 1.0;
    values
}

/// The middle of interval i of `intervals` equal ones between 0.1 and 1, in its decade.
const fn magnitude(decade: usize, i: usize, intervals: usize) -> f32 {
    const SCALES: [f32; DECADES] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    SCALES[decade] * ((edge(i, intervals) + edge(i + 1, intervals)) / 2.0)
}

/// Point i of `intervals` + 1 from 0.1 to 1, counted from the nearer end and rounded once, as torch
/// does on a processor with fused multiply-add. Without one it rounds twice, and a sixth of the
/// entries of its maps differ in the last bit; files carry the map they were written with.
const fn edge(i: usize, intervals: usize) -> f32 {
    let (low, high) = (0.1_f32, 1.0_f32);
    let step = (high - low) / intervals as f32;
    // Products and sums of numbers this short are exact in f64.
    let exact = if i < intervals.div_ceil(2) {
        low as f64 + step as f64 * i as f64
    } else {
        high as f64 - step as f64 * (intervals - i) as f64
    };
    exact as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_takes_the_lower_entry_and_the_next_float_the_upper_one() {
        for map in [&SIGNED, &UNSIGNED] {
            for (code, boundary) in map.boundaries[..255].iter().enumerate() {
                assert_eq!(usize::from(map.nearest(*boundary)), code);
                assert_eq!(usize::from(map.nearest(boundary.next_up())), code + 1);
            }
        }
    }

    #[test]
    fn every_entry_is_nearest_to_itself() {
        for map in [&SIGNED, &UNSIGNED] {
            for code in 0..=255 {
                assert_eq!(map.nearest(map.value(code)), code);
            }
        }
    }

    #[test]
    fn the_shortcut_finds_what_a_search_finds() {
        for map in [&SIGNED, &UNSIGNED] {
            for x in (0..=u32::MAX).step_by(4093).map(f32::from_bits).filter(|x| !x.is_nan()) {
                let search = map.boundaries[..255].partition_point(|b| *b < x);
                assert_eq!(usize::from(map.nearest(x)), search, "{x:e}");
            }
        }
    }

    #[test]
    fn values_beyond_the_ends_take_the_last_entry() {
        assert_eq!(SIGNED.nearest(-1.0), 0);
        assert_eq!(UNSIGNED.nearest(-1.0), 0);
        assert_eq!(SIGNED.nearest(2.0), 255);
        assert_eq!(UNSIGNED.nearest(f32::INFINITY), 255);
        // A NaN has no place in the order; it must only not end the program.
        SIGNED.nearest(f32::NAN);
    }

    #[test]
    fn zero_has_a_code_of_its_own() {
        assert_eq!((SIGNED.nearest(0.0), SIGNED.value(127)), (127, 0.0));
        assert_eq!((UNSIGNED.nearest(0.0), UNSIGNED.value(0)), (0, 0.0));
    }
}
