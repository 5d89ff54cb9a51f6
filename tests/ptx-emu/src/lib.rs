//! A GPU for machines that have none: PTX, executed on the CPU and checked while it runs.
//!
//! The kernels that ship are PTX text. This crate runs that very text: [`ptx::Module::parse`] turns it
//! into instructions, [`Launch::run`] executes a grid over a [`DeviceMemory`]. A register holds its 32
//! lanes side by side, so one decoded instruction is one loop over lanes that the compiler turns into
//! vectors. What no kernel of ours needs is not there: an unknown instruction is an error with its
//! line, never a guess.
//!
//! A wrong kernel often gives right numbers, here or on some GPU. So a launch can be *checked*: every
//! byte of shared and global memory remembers who wrote it, who read it and whether that was ordered,
//! copies in flight are poisoned until they are waited for, and warps run in different orders. What is
//! found comes back as [`Finding`]s that name the line of the source.
//!
//! What cannot be seen at this level: the compiler behind PTX, weak memory order, time. Approximate
//! instructions (`ex2.approx`, `rsqrt.approx`) are computed exactly and rounded, tensor cores add in
//! f32 in the order of K; so results are compared with tolerances, never bit by bit.
//!
//! Read [`ptx`] (text to instructions), then `alu` (what arithmetic does to 32 lanes), then `machine`
//! (warps, blocks and memory), then `driver`: the same under the functions of `libcuda.so`.

mod alu;
mod driver;
mod machine;
pub mod ptx;

pub use driver::Counts;
pub use machine::check::{Finding, Kind};
pub use machine::counters::Counters;
pub use machine::launch::{Launch, Order, Report};
pub use machine::memory::DeviceMemory;
