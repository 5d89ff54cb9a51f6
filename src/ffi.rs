//! The boundary between host and kernels: Rust twins of the C structs under `ffi/`, one for each
//! operation that has a CUDA kernel.
//!
//! bindgen makes them and asserts their layout when they are compiled; they are committed, so that nobody
//! needs libclang to build. `cargo test --features bindgen --test bindings` makes them again and compares,
//! and asks a C compiler for sizes and offsets. The kernels stand beside them; `build.rs`
//! says where they come from.

#[rustfmt::skip]
mod bindings;

pub use bindings::*;

/// A kernel image: PTX that every driver from CUDA 12.8 on (R570) compiles for its GPU, compute
/// capability 8.0 or more.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// The operation: the stem of its files.
    pub name: &'static str,
    /// The kernels in it.
    pub kernels: &'static [&'static str],
    /// The text.
    pub ptx: &'static str,
}

macro_rules! images {
    ($($name:literal: $kernels:expr,)*) => {
        &[$(Image {
            name: $name,
            kernels: &$kernels,
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        },)*]
    };
}

/// How the images were made: `prebuilt`, `nvrtc` or `nvcc`.
pub const MADE: &str = env!("QLORA_KERNELS_FROM");

/// All images.
pub const IMAGES: &[Image] = images! {
    "adamw": ["adamw"],
    "adamw_8bit": ["adamw_8bit"],
    "attention": ["attention_64", "attention_128", "attention_256"],
    "attention_backward": [
        "attention_delta",
        "attention_backward_q_64",
        "attention_backward_q_128",
        "attention_backward_q_256",
        "attention_backward_kv_64",
        "attention_backward_kv_128",
        "attention_backward_kv_256",
    ],
    "cast": ["cast"],
    "cross_entropy": ["cross_entropy"],
    "dequantize": ["dequantize"],
    "dropout": ["dropout"],
    "embedding": ["embedding"],
    "glu": ["glu", "glu_backward"],
    "matmul": [
        "matmul_nt",
        "matmul_nn",
        "matmul_tn",
        "matmul_large_nt",
        "matmul_large_nn",
        "matmul_large_tn",
    ],
    "matmul_4bit": ["matmul_4bit_nt", "matmul_4bit_nn"],
    "rmsnorm": ["rmsnorm", "rmsnorm_backward"],
    "rope": ["rope"],
    "rows": ["gather_rows", "scatter_rows", "add_rows"],
    "sum_squares": ["sum_squares", "sum_squares_total"],
};
