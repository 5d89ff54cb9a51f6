//! Rotary position embedding: the angle of each pair of numbers at each position.
//!
//! Pair i of a head turns by p·fᵢ at position p, with fᵢ = θ^(−2i/w) for w rotated numbers, and a
//! [`Scaling`] that changes the frequencies to reach longer contexts. A [`Rope`] answers with rows
//! of cos and sin; the rotation itself is an operation and not here.
//!
//! Everything is computed in f64 and rounded once, to f32, at the end. The reference (transformers)
//! rounds each frequency to f32, and again the angle p·fᵢ; its table is therefore off by up to about
//! p·10⁻⁷, which is 0.01 at position 100,000. Evaluated in f64, its formulas give this table.
//!
//! Two scalings depend on the length of the sequence (`dynamic`, `longrope`). The length is an
//! argument, one for each sequence: a batch of several sequences gives each the table that it would
//! have alone, and no call depends on an earlier one.

use std::f64::consts::TAU;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The angles of one kind of layer, with the rows computed so far.
#[derive(Debug, Clone)]
pub struct Rope {
    theta: f64,
    width: usize,
    scaling: Scaling,
    /// Rows from position 0 on, for short and for long sequences; clones share them.
    tables: Arc<[Mutex<Vec<f32>>; 2]>,
}

/// How frequencies change to reach a longer context. Numbers are finite and positive.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// All are divided by `factor`.
    Linear {
        /// How many times the context is stretched.
        factor: f64,
    },
    /// Beyond `max_positions` tokens, θ grows with the length of the sequence; w ≥ 4.
    Dynamic {
        /// How many times the context is stretched.
        factor: f64,
        /// The length up to which nothing changes.
        max_positions: usize,
    },
    /// Slow pairs are stretched, fast ones kept, with a ramp between (Peng et al., 2023).
    Yarn(Yarn),
    /// As in Llama 3.1: pairs that turn fewer than `low` times in the original context are
    /// stretched, those that turn more than `high` times kept.
    Llama3 {
        /// How many times the context is stretched.
        factor: f64,
        /// Turns below which a pair is stretched.
        low: f64,
        /// Turns above which a pair is kept; greater than `low`.
        high: f64,
        /// The length of the first training.
        original: f64,
    },
    /// Each pair has its own divisor, one for short and one for long sequences (Phi-3).
    Longrope(Longrope),
}

/// The numbers of [`Scaling::Yarn`].
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// How many times the context is stretched.
    pub factor: f64,
    /// The length of the first training.
    pub original: f64,
    /// Turns within `original` above which a pair is kept.
    pub beta_fast: f64,
    /// Turns below which a pair is stretched.
    pub beta_slow: f64,
    /// Weight of ln `factor` in the attention factor's numerator.
    pub mscale: Option<f64>,
    /// The same in its denominator.
    pub mscale_all_dim: Option<f64>,
    /// The attention factor itself, instead of the formula.
    pub attention_factor: Option<f64>,
    /// Whether the ramp starts and ends at whole pairs.
    pub truncate: bool,
}

/// The numbers of [`Scaling::Longrope`].
#[derive(Debug, Clone, PartialEq)]
pub struct Longrope {
    /// Divisors for sequences up to `original` tokens, w/2 of them.
    pub short: Vec<f64>,
    /// Divisors for longer ones, w/2 of them.
    pub long: Vec<f64>,
    /// How many times the context is stretched.
    pub factor: f64,
    /// The attention factor itself, instead of the formula.
    pub attention_factor: Option<f64>,
    /// The length of the first training.
    pub original: usize,
}

impl Rope {
    /// Angles of base `theta` > 1 for `width` rotated numbers per head, an even number.
    pub fn new(theta: f64, width: usize, scaling: Scaling) -> Self {
        assert!(width > 0 && width.is_multiple_of(2), "width {width} must be even");
        assert!(theta > 1.0, "theta {theta} must be above 1");
        let tables = Arc::default();
        Self { theta, width, scaling, tables }
    }

    /// w, the rotated numbers per head; even, at most the head's size. The rest stays as it is.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes for each of `positions` a row of w/2 cosines and w/2 sines, both multiplied by the
    /// scaling's attention factor, for a sequence of `length` tokens in all.
    ///
    /// `out` has `positions.len()` rows of `width` numbers.
    pub fn fill(&self, positions: Range<u32>, length: usize, out: &mut [f32]) {
        assert_eq!(out.len(), positions.len() * self.width, "a row for each position");
        let variant = match &self.scaling {
            Scaling::Dynamic { max_positions, .. } if length > *max_positions => {
                let first = positions.start;
                return write_rows(&self.frequencies(length), self.scaling.gain(), first, out);
            }
            Scaling::Longrope(longrope) if length > longrope.original => 1,
            _ => 0,
        };
        let (start, end) = (positions.start as usize, positions.end.max(positions.start) as usize);
        // Rows are added whole, so a table is sound even after a panic elsewhere.
        let mut table = self.tables[variant].lock().unwrap_or_else(PoisonError::into_inner);
        self.grow(&mut table, end, length);
        out.copy_from_slice(&table[start * self.width..end * self.width]);
    }

    /// Adds the rows that are missing up to position `end`.
    fn grow(&self, table: &mut Vec<f32>, end: usize, length: usize) {
        let rows = table.len() / self.width;
        if rows >= end {
            return;
        }
        table.resize(end * self.width, 0.0);
        let new = &mut table[rows * self.width..];
        write_rows(&self.frequencies(length), self.scaling.gain(), rows as u32, new);
    }

    /// Turning speed of each pair in radians per position, in a sequence of `length` tokens.
    fn frequencies(&self, length: usize) -> Vec<f64> {
        let plain = frequencies(self.theta, self.width);
        match &self.scaling {
            Scaling::Default => plain,
            Scaling::Linear { factor } => plain.into_iter().map(|f| f / factor).collect(),
            Scaling::Dynamic { factor, max_positions } => {
                let ratio = length.max(*max_positions) as f64 / *max_positions as f64;
                let width = self.width as f64;
                let growth = (factor * ratio - (factor - 1.0)).powf(width / (width - 2.0));
                frequencies(self.theta * growth, self.width)
            }
            Scaling::Yarn(yarn) => yarn.frequencies(self.theta, &plain),
            Scaling::Llama3 { factor, low, high, original } => {
                let scaled = |f| llama3(f, *factor, [*low, *high], *original);
                plain.into_iter().map(scaled).collect()
            }
            Scaling::Longrope(longrope) => {
                let divisors = longrope.divisors(length);
                plain.iter().zip(divisors).map(|(f, divisor)| f / divisor).collect()
            }
        }
    }
}

/// Tables are not compared: they follow from the rest.
impl PartialEq for Rope {
    fn eq(&self, other: &Self) -> bool {
        (self.theta, self.width, &self.scaling) == (other.theta, other.width, &other.scaling)
    }
}

impl Scaling {
    /// The attention factor: what cos and sin are multiplied by.
    fn gain(&self) -> f64 {
        match self {
            Self::Yarn(yarn) => yarn.gain(),
            Self::Longrope(longrope) => longrope.gain(),
            _ => 1.0,
        }
    }
}

impl Yarn {
    fn gain(&self) -> f64 {
        let weighted = |weight: f64| {
            if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * self.factor.ln() + 1.0 }
        };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            // The reference takes a weight of 0 for a missing one.
            (None, Some(a), Some(b)) if a != 0.0 && b != 0.0 => weighted(a) / weighted(b),
            _ => weighted(1.0),
        }
    }

    fn frequencies(&self, theta: f64, plain: &[f64]) -> Vec<f64> {
        let (first, last) = self.ramp(theta, 2 * plain.len());
        let mix = |(pair, f): (usize, &f64)| {
            let stretched = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
            f / self.factor * stretched + f * (1.0 - stretched)
        };
        plain.iter().enumerate().map(mix).collect()
    }

    /// The pairs between which kept turns into stretched.
    fn ramp(&self, theta: f64, width: usize) -> (f64, f64) {
        // The pair, as a fraction, that turns `turns` times within the original context.
        let pair =
            |turns: f64| width as f64 * (self.original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut first, mut last) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, last) = (first.max(0.0), last.min(width as f64 - 1.0));
        if first == last { (first, last + 0.001) } else { (first, last) }
    }
}

impl Longrope {
    fn gain(&self) -> f64 {
        let formula = || {
            if self.factor <= 1.0 {
                1.0
            } else {
                (1.0 + self.factor.ln() / (self.original as f64).ln()).sqrt()
            }
        };
        self.attention_factor.unwrap_or_else(formula)
    }

    fn divisors(&self, length: usize) -> &[f64] {
        if length > self.original { &self.long } else { &self.short }
    }
}

fn frequencies(theta: f64, width: usize) -> Vec<f64> {
    let frequency = |pair| theta.powf(-2.0 * pair as f64 / width as f64);
    (0..width / 2).map(frequency).collect()
}

/// One frequency under [`Scaling::Llama3`].
fn llama3(frequency: f64, factor: f64, [low, high]: [f64; 2], original: f64) -> f64 {
    let turns = original * frequency / TAU;
    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    frequency * kept + frequency / factor * (1.0 - kept)
}

/// Rows [cos | sin] · `gain` for the positions from `first` on.
fn write_rows(frequencies: &[f64], gain: f64, first: u32, out: &mut [f32]) {
    let half = frequencies.len();
    for (row, position) in out.chunks_exact_mut(2 * half).zip(first..) {
        let (cosines, sines) = row.split_at_mut(half);
        for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
            let (s, c) = (f64::from(position) * frequency).sin_cos();
            *cos = (c * gain) as f32;
            *sin = (s * gain) as f32;
        }
    }
}
