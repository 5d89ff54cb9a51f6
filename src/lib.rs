//! Fine-tunes a frozen language model kept as NF4 blocks.

pub mod data;
pub mod error;
pub mod random;

pub use error::Error;
