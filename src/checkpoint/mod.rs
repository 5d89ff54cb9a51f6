//! Model folders, adapters and tensor files on disk: reading by memory map, writing all or nothing.
//!
//! This module knows what a Hugging Face folder, a PEFT adapter and the bitsandbytes 4-bit layout
//! look like as files. It does not know what a model is: the meaning of `config.json` is the
//! business of `model`, and the arithmetic of quantized blocks that of `quant`.
//!
//! Everything read here comes from strangers. Each reader checks the whole structure before it
//! hands out the first byte, and says in its error which file, line, field or tensor is wrong and
//! what to do.
//!
//! Read [`location`] first (what MODEL may be), then [`tensors`] and [`weights`] (the numbers),
//! then [`writer`] (the way back to disk).

pub mod adapter;
pub mod atomic;
pub mod bitsandbytes;
pub mod digest;
pub mod folder;
mod header;
pub mod identify;
mod index;
mod layout;
pub mod location;
pub mod tensors;
pub mod weights;
pub mod writer;
