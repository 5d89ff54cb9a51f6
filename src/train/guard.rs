//! Which steps are not applied: those whose numbers would spoil the adapter.
//!
//! A step is left out if its loss or the norm of its gradient is not finite, or if the norm is a spike: more
//! than [`SPIKE`] times the median of the last [`REMEMBERED`] norms, and more than [`BEYOND_CLIPPING`] times
//! what clipping allows (below that, clipping already keeps it harmless). A spike is judged once
//! [`ENOUGH`] norms are known. The data of a step that is left out counts as seen; moments and bias
//! correction of the optimizer do not know of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// So many times the usual norm is a spike.
pub const SPIKE: f64 = 100.0;

/// Below so many times `--max-grad-norm` nothing is a spike.
pub const BEYOND_CLIPPING: f64 = 10.0;

/// Norms that are remembered.
pub const REMEMBERED: usize = 64;

/// Norms that must be known before one of them can be a spike.
pub const ENOUGH: usize = 16;

/// What was seen so far, kept in checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Norms of the last steps that were applied.
    norms: Vec<f64>,
    /// Steps left out since the last one that was applied.
    pub in_a_row: u64,
    /// All steps left out.
    pub skipped: u64,
}

/// Why a step is left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// Its loss or its gradient is not finite.
    NotFinite {
        /// The loss.
        loss: f64,
        /// The norm of the gradient.
        norm: f64,
    },
    /// Its gradient is far longer than those before.
    Spike {
        /// Its norm.
        norm: f64,
        /// The median of those before.
        usual: f64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite { loss, norm } => write!(f, "loss {loss}, gradient norm {norm}"),
            Self::Spike { norm, usual } => {
                write!(f, "gradient norm {norm:.3e}, {usual:.3e} is usual")
            }
        }
    }
}

impl Seen {
    /// Whether a step may be applied, and if not, why.
    pub fn judge(&self, loss: f64, norm: f64, max_grad_norm: f64) -> Option<Reason> {
        if !loss.is_finite() || !norm.is_finite() {
            return Some(Reason::NotFinite { loss, norm });
        }
        let usual = self.median()?;
        let spike = norm > SPIKE * usual && norm > BEYOND_CLIPPING * max_grad_norm;
        spike.then_some(Reason::Spike { norm, usual })
    }

    fn median(&self) -> Option<f64> {
        let mut norms = self.norms.clone();
        norms.sort_by(f64::total_cmp);
        (norms.len() >= ENOUGH).then(|| norms[norms.len() / 2])
    }

    /// A step was applied.
    pub fn applied(&mut self, norm: f64) {
        if self.norms.len() == REMEMBERED {
            self.norms.remove(0);
        }
        self.norms.push(norm);
        self.in_a_row = 0;
    }

    /// A step was left out.
    pub fn left_out(&mut self) {
        self.in_a_row += 1;
        self.skipped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_spoil_an_adapter_is_left_out_and_nothing_else() {
        let mut seen = Seen::default();
        assert!(matches!(seen.judge(f64::NAN, 1.0, 1.0), Some(Reason::NotFinite { .. })));
        assert!(matches!(seen.judge(1.0, f64::INFINITY, 1.0), Some(Reason::NotFinite { .. })));
        assert_eq!(seen.judge(1.0, 1e9, 1.0), None, "nothing is usual yet");
        (0..ENOUGH).for_each(|i| seen.applied(0.5 + i as f64 / 16.0));
        assert_eq!(seen.judge(1.0, 99.0, 1.0), None);
        let spike = Some(Reason::Spike { norm: 101.0, usual: 1.0 });
        assert_eq!(seen.judge(1.0, 101.0, 1.0), spike);
        assert_eq!(seen.judge(1.0, 101.0, 20.0), None, "clipping keeps it harmless");
        seen.left_out();
        assert_eq!((seen.in_a_row, seen.skipped), (1, 1));
        (0..2 * REMEMBERED).for_each(|_| seen.applied(1e-6));
        assert_eq!((seen.in_a_row, seen.skipped, seen.norms.len()), (0, 1, REMEMBERED));
    }

    #[test]
    fn what_was_seen_survives_its_file_bit_for_bit() {
        let mut seen = Seen::default();
        (1..40).for_each(|i| seen.applied(1.0 / f64::from(i)));
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), seen);
    }
}
