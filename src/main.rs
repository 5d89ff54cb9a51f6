//! The whole program in one screen.

fn main() {}
