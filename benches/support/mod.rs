//! What both benches stand on.
#![allow(dead_code, reason = "each bench uses its part")]

pub mod clock;
pub mod shapes;
