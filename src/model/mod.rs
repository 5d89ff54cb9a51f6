//! One decoder for every family of models that is read: what a folder's `config.json` says decides
//! all of it.
//!
//! [`config`] holds what was read, already consistent, and [`rope`] the rotary angles; [`load`]
//! builds the [`decoder`] from a folder's tensors ([`quantize`]: into four bits where they are not yet; [`synthetic`]: drawn by chance). A pass goes from [`decoder`] to [`block`] to
//! [`linear`] (`branch` at the ends of a block) to one [`weight`]; [`table`] is where tokens enter, [`tokens`] what it runs over, [`workspace`] the memory it runs in ([`saved`]: what blocks keep),
//! [`cache`] what generation keeps, [`fingerprint`] what tells one base from another. Which numbers are trained is not known here: `methods` attaches
//! them to the linear maps.

pub mod block;
mod branch;
pub mod cache;
pub mod config;
pub mod declared;
pub mod decoder;
pub mod fingerprint;
pub mod linear;
pub mod load;
pub mod quantize;
pub mod rope;
pub mod saved;
pub mod synthetic;
pub mod table;
pub mod tokens;
pub mod weight;
pub mod workspace;
