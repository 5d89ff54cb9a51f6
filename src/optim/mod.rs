//! From gradients to new values: clipping, the learning rate, AdamW and its state.
//!
//! Every rule is PyTorch's and every schedule transformers', so that a curve made here lies on one
//! made there. Read [`schedule`], then [`adamw`]; [`shelf`] is where its state lies.

pub mod adamw;
pub mod schedule;
pub mod shelf;
