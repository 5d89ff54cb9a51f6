//! Fine-tunes a frozen language model kept as NF4 blocks.

pub mod checkpoint;
pub mod error;

pub use error::Error;
