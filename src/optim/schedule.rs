//! The learning rate as a pure function of the optimizer step.

use std::f64::consts::PI;

/// The shape of the curve after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Stays.
    Constant,
    /// Falls to zero in a line.
    Linear,
    /// Falls to zero along half a cosine.
    Cosine,
}

/// A learning-rate curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after warm-up.
    pub shape: Shape,
    /// The highest rate.
    pub peak: f64,
    /// Steps in which the rate rises from zero.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 1: transformers' schedule at `step` − 1.
    pub fn rate(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.warmup {
            return self.peak * (done as f64 / self.warmup.max(1) as f64);
        }
        let rest = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = (done - self.warmup) as f64 / rest;
        self.peak
            * match self.shape {
                Shape::Constant => 1.0,
                Shape::Linear => (1.0 - progress).max(0.0),
                Shape::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_transformers_one_step_earlier() {
        let cosine = Schedule { shape: Shape::Cosine, peak: 2e-3, warmup: 3, total: 50 };
        assert_eq!(cosine.rate(1), 0.0);
        assert_eq!(cosine.rate(4), 2e-3);
        assert!((cosine.rate(2) - 2e-3 / 3.0).abs() < 1e-18);
        let half = 1e-3 * (1.0 + (PI * 23.0 / 47.0).cos());
        assert!((cosine.rate(27) - half).abs() < 1e-18);
        let linear = Schedule { shape: Shape::Linear, warmup: 0, ..cosine };
        assert_eq!(linear.rate(26), 1e-3);
        assert_eq!(linear.rate(51), 0.0);
    }
}
