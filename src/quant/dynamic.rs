//! The 256-entry dynamic code: a floating-point type whose exponent may take from one to seven bits,
//! the rest being a linear fraction. Dettmers, "8-Bit Approximations for Parallelism in Deep
//! Learning" (arXiv 1511.04561); the signed map keeps the scales of double quantization, both maps
//! keep optimizer states.

/// A sorted table of 256 values and the f32 midpoints between them.
#[derive(Debug)]
pub struct Dynamic {
    values: [f32; 256],
    boundaries: [f32; 255],
}

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
        let mut boundaries = [0.0; 255];
        let mut i = 0;
        while i < 255 {
            boundaries[i] = (values[i] + values[i + 1]) / 2.0;
            i += 1;
        }
        Self { values, boundaries }
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
        // At most 255 boundaries.
        self.boundaries.partition_point(|b| *b < x) as u8
    }
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

/// Point i of `intervals` + 1 from 0.1 to 1, counted from the nearer end, as torch does.
const fn edge(i: usize, intervals: usize) -> f32 {
    let step = (1.0_f32 - 0.1) / intervals as f32;
    if i < intervals.div_ceil(2) {
        0.1 + step * i as f32
    } else {
        1.0 - step * (intervals - i) as f32
    }
}
