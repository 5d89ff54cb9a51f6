//! The machine: device memory, a grid of blocks, warps of 32 lanes.
//!
//! `launch.rs` runs the blocks of a grid one after the other; `block.rs` the warps of a block, each
//! until it waits for the others; `warp.rs` follows the lanes of a warp, which may part and meet
//! again. What a warp does outside of its registers goes through `room.rs`: the memory that it can
//! reach, and what is checked there.

mod access;
mod block;
pub(crate) mod check;
mod copies;
pub(crate) mod counters;
mod exchange;
pub(crate) mod launch;
mod matrix;
pub(crate) mod memory;
mod registers;
mod room;
mod shadow;
mod warp;
