//! One decoder for every family of models that is read: what a folder's `config.json` says decides
//! all of it.
//!
//! [`config`] holds what was read, already consistent; [`rope`] the rotary angles.

pub mod config;
pub mod rope;
