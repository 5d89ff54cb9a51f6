//! Fine-tunes a frozen language model kept as NF4 blocks.

pub mod checkpoint;
pub mod device;
pub mod error;
pub mod ops;
pub mod quant;
pub mod data;
pub mod error;
pub mod random;

pub use error::Error;
