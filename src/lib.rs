//! Fine-tunes a frozen language model kept as NF4 blocks.

pub mod error;
pub mod quant;

pub use error::Error;
