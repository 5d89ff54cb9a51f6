//! The training loop and what belongs to it.
//!
//! [`Session`](session::Session) holds one decoder with its trainables on one device and computes
//! an optimizer step; [`run`] is the loop around it: epochs, evaluation, checkpoints, metrics.
//! [`plan`](mod@plan) makes the same calls on a device that only books bytes. Read [`session`]
//! first, then [`run`].

pub mod check;
pub mod checkpoints;
pub mod evaluate;
pub mod export;
pub mod generate;
pub mod guard;
pub mod metrics;
pub mod plan;
pub mod run;
pub mod session;
pub mod steps;
