//! Fine-tunes a frozen language model kept as NF4 blocks.

pub mod checkpoint;
pub mod device;
pub mod error;
pub mod model;
pub mod ops;
pub mod quant;

pub use error::Error;
