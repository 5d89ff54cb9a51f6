//! Fine-tunes a frozen language model kept as NF4 blocks.

pub mod device;
pub mod error;
pub mod ops;
pub mod quant;

pub use error::Error;
