//! The boundary between host and kernels: Rust twins of the C structs under `ffi/`, one for each
//! operation that has a CUDA kernel.
//!
//! bindgen makes them and asserts their layout when they are compiled; they are committed, so that nobody
//! needs libclang to build. `cargo test --features bindgen --test bindings` makes them again and compares,
//! and asks a C compiler for sizes and offsets. The prebuilt kernels stand beside them.

#[rustfmt::skip]
mod bindings;

pub use bindings::*;

/// A kernel image: PTX that every driver from CUDA 12.8 on (R570) compiles for its GPU, compute
/// capability 8.0 or more.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// The operation: the stem of its files.
    pub name: &'static str,
    /// The text.
    pub ptx: &'static str,
}

macro_rules! image {
    ($name:literal) => {
        Image { name: $name, ptx: include_str!(concat!("../kernels/prebuilt/", $name, ".ptx")) }
    };
}

/// All images.
pub const IMAGES: [Image; 13] = [
    image!("adamw"),
    image!("attention"),
    image!("cast"),
    image!("cross_entropy"),
    image!("dequantize"),
    image!("dropout"),
    image!("embedding"),
    image!("glu"),
    image!("matmul"),
    image!("rmsnorm"),
    image!("rope"),
    image!("rows"),
    image!("sum_squares"),
];
