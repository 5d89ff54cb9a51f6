//! Token after token: what a model writes behind a prompt.
//!
//! Each token is computed once; keys and values of all before it stay in the cache of a session
//! made for generation. Draws are counted by position, so that a seed gives the same text on any
//! number of threads.

use std::ops::ControlFlow;

use crate::device::Device;
use crate::error::{Error, Place};
use crate::model::decoder::Decoder;
use crate::model::tokens::Limits;
use crate::model::workspace::Purpose;
use crate::params::Index;
use crate::random::{Purpose as Draws, Random};

use super::session::Session;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the most likely token.
    pub temperature: f64,
    /// The likeliest tokens that together have this share are drawn from.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// Takes memory for `capacity` tokens, of which `prompt` are the prompt.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn session(
    device: Device,
    decoder: Decoder,
    index: Index,
    prompt: usize,
    capacity: usize,
) -> Result<Session, Error> {
    let limits = Limits { tokens: prompt, sequences: 1, targets: 1 };
    Session::new(device, decoder, index, limits, Purpose::Generation { capacity })
}

/// Writes at most `most` tokens behind `prompt`, the one at which it stops included, and hands each
/// to `each` at once, which may end it.
///
/// # Errors
/// Logits that are not finite; what the device kept; whatever `each` fails with.
pub fn generate(
    session: &mut Session,
    prompt: &[u32],
    sampling: &Sampling,
    most: usize,
    mut each: impl FnMut(u32) -> Result<ControlFlow<()>, Error>,
) -> Result<Vec<u32>, Error> {
    let mut tokens: Vec<u32> = Vec::new();
    while tokens.len() < most {
        let logits = match tokens.last() {
            None => session.extend(prompt, 0)?,
            Some(token) => session.extend(&[*token], prompt.len() + tokens.len() - 1)?,
        };
        session.device.synchronize()?;
        check_finite(&logits, tokens.len())?;
        let token = sampling.choose(&logits, tokens.len() as u64);
        tokens.push(token);
        if each(token)?.is_break() {
            break;
        }
    }
    Ok(tokens)
}

fn check_finite(logits: &[f32], position: usize) -> Result<(), Error> {
    match logits.iter().find(|logit| !logit.is_finite()) {
        None => Ok(()),
        Some(logit) => {
            let what = format!(
                "a logit of token {} is {logit}: look for damaged weights or a diverged adapter",
                position + 1
            );
            Err(Error::input(Place::flag("MODEL"), what))
        }
    }
}

impl Sampling {
    /// The token of `logits` [V], drawn at `position`.
    fn choose(&self, logits: &[f32], position: u64) -> u32 {
        if self.temperature == 0.0 {
            return likeliest(logits);
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        let top = f64::from(logits[order[0] as usize]);
        let weight = |id: u32| ((f64::from(logits[id as usize]) - top) / self.temperature).exp();
        let all: f64 = order.iter().map(|id| weight(*id)).sum();
        let uniform = Random::new(self.seed, Draws::Sample, 0).uniform_at(position);
        let kept = nucleus(order.iter().map(|id| weight(*id)), self.top_p * all);
        let mut left = f64::from(uniform) * order[..kept].iter().map(|id| weight(*id)).sum::<f64>();
        for id in &order[..kept] {
            left -= weight(*id);
            if left < 0.0 {
                return *id;
            }
        }
        order[kept - 1]
    }
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// How many of the weights, largest first, together reach `enough`; one at least.
fn nucleus(weights: impl Iterator<Item = f64>, enough: f64) -> usize {
    let (mut count, mut sum) = (0, 0.0);
    for weight in weights {
        count += 1;
        sum += weight;
        if sum >= enough {
            break;
        }
    }
    count.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        (0..20_000).for_each(|at| counts[sampling.choose(logits, at) as usize] += 1.0);
        counts.iter().map(|count| count / 20_000.0).collect()
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let logits = [1.0f32, 3.0, 2.0];
        let sampling = Sampling { temperature: 2.0, top_p: 1.0, seed: 7 };
        let weights = logits.map(|logit| f64::from(logit / 2.0).exp());
        let all: f64 = weights.iter().sum();
        for (share, weight) in shares(sampling, &logits).iter().zip(weights) {
            assert!((share - weight / all).abs() < 0.015, "{share} {}", weight / all);
        }
    }

    #[test]
    fn tokens_outside_the_nucleus_are_never_drawn() {
        let logits = [0.0f32, 2.0, 1.9, -5.0];
        let sampling = Sampling { temperature: 1.0, top_p: 0.45, seed: 1 };
        assert_eq!(shares(sampling, &logits)[1], 1.0);
        let wider = Sampling { top_p: 0.6, ..sampling };
        let drawn = shares(wider, &logits);
        assert!(drawn[1] > 0.4 && drawn[2] > 0.4 && drawn[0] + drawn[3] == 0.0, "{drawn:?}");
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 1 };
        assert_eq!(sampling.choose(&[1.0, 3.0, 3.0], 5), 1);
        assert_eq!(sampling.choose(&[-1.0, -3.0], 5), 0);
    }
}
