//! The boundary between host and kernels: Rust twins of the C structs under `ffi/`, one for each
//! operation that has a CUDA kernel, and the kernels themselves.
//!
//! bindgen makes the twins and asserts their layout when they are compiled; they are committed, so that
//! nobody needs libclang to build. `cargo test --features bindgen --test bindings` makes them again and
//! compares, and asks a C compiler for sizes and offsets. `build.rs` says where the kernels come from:
//! assembled for the targets in [`MODULES`], and as the PTX in [`IMAGES`], which a driver compiles for
//! any other card.

#[rustfmt::skip]
mod bindings;

pub use bindings::*;

/// A kernel, and what every block of it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Its name in the module.
    pub name: &'static str,
    /// Threads of a block, as its source declares them.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared: usize,
}

const fn kernel(name: &'static str, threads: u32, shared: usize) -> Kernel {
    Kernel { name, threads, shared }
}

/// Bytes of `count` tiles of bf16 in shared memory.
const fn tiles(count: usize, rows: usize, cols: usize) -> usize {
    count * rows * cols * size_of::<u16>()
}

/// Bytes of `count` f32.
const fn floats(count: usize) -> usize {
    count * size_of::<f32>()
}

/// PTX 7.0 of one source, which a driver compiles for its GPU, compute capability 8.0 or more.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// The operation: the stem of its files.
    pub name: &'static str,
    /// The kernels in it.
    pub kernels: &'static [Kernel],
    /// The text.
    pub ptx: &'static str,
}

macro_rules! images {
    ($($name:literal: [$($kernel:expr),* $(,)?],)*) => {
        &[$(Image {
            name: $name,
            kernels: &[$($kernel),*],
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        },)*]
    };
}

/// How the kernels were made: `prebuilt`, `nvrtc` or `nvcc`.
pub const MADE: &str = env!("QLORA_KERNELS_FROM");

/// All images.
pub const IMAGES: &[Image] = images! {
    "adamw": [kernel("adamw", 256, 0)],
    // Two maps, and a maximum of m and one of v for each warp.
    "adamw_8bit": [kernel("adamw_8bit", 256, floats(2 * 256 + 2 * 8))],
    // Queries, and the keys and values that are taken at a time.
    "attention": [
        kernel("attention_64", 128, tiles(3, 64, 64)),
        kernel("attention_128", 128, tiles(3, 64, 128)),
        kernel("attention_256", 128, tiles(1, 64, 256) + tiles(2, 32, 256)),
    ],
    // Both operands of two products: the rows of the block, and those that are taken at a time. Over queries,
    // their lse and delta too.
    "attention_backward": [
        kernel("attention_delta", 32, 0),
        kernel("attention_backward_q_64", 128, tiles(2, 64 + 64, 64)),
        kernel("attention_backward_q_128", 128, tiles(2, 64 + 32, 128)),
        kernel("attention_backward_q_256", 128, tiles(2, 64 + 32, 256)),
        kernel("attention_backward_kv_64", 128, tiles(2, 64 + 32, 64) + floats(2 * 32)),
        kernel("attention_backward_kv_128", 128, tiles(2, 64 + 16, 128) + floats(2 * 16)),
        kernel("attention_backward_kv_256", 128, tiles(2, 64 + 16, 256) + floats(2 * 16)),
    ],
    "cast": [kernel("cast", 256, 0)],
    // A maximum and a sum of each warp.
    "cross_entropy": [kernel("cross_entropy", 256, floats(2 * 8))],
    "dequantize": [kernel("dequantize", 128, 0)],
    "dropout": [kernel("dropout", 256, 0)],
    "embedding": [kernel("embedding", 128, 0)],
    "glu": [kernel("glu", 256, 0), kernel("glu_backward", 256, 0)],
    // Three stages of both operands.
    "matmul": [
        kernel("matmul_nt", 128, tiles(3 * 2, 64, 64)),
        kernel("matmul_nn", 128, tiles(3 * 2, 64, 64)),
        kernel("matmul_tn", 128, tiles(3 * 2, 64, 64)),
        kernel("matmul_large_nt", 256, tiles(3 * 2, 128, 64)),
        kernel("matmul_large_nn", 256, tiles(3 * 2, 128, 64)),
        kernel("matmul_large_tn", 256, tiles(3 * 2, 128, 64)),
    ],
    // Two stages of both operands.
    "matmul_4bit": [
        kernel("matmul_4bit_nt", 128, tiles(2 * 2, 64, 64)),
        kernel("matmul_4bit_nn", 128, tiles(2 * 2, 64, 64)),
    ],
    // Two sums of each warp.
    "rmsnorm": [kernel("rmsnorm", 256, floats(2 * 8)), kernel("rmsnorm_backward", 256, floats(2 * 8))],
    "rope": [kernel("rope", 128, 0)],
    "rows": [
        kernel("gather_rows", 128, 0),
        kernel("scatter_rows", 128, 0),
        kernel("add_rows", 128, 0),
    ],
    // A sum in f64 of each thread.
    "sum_squares": [
        kernel("sum_squares", 256, 256 * size_of::<f64>()),
        kernel("sum_squares_total", 256, 256 * size_of::<f64>()),
    ],
};

/// All kernels as one module of machine code.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// What it was assembled for, as `sm_90`.
    pub target: &'static str,
    /// That compute capability: it runs on cards of this one and of later ones of the same major number.
    pub capability: (i32, i32),
    /// A cubin as xz; empty where kernels were not assembled but compiled with the program.
    pub packed: &'static [u8],
}

macro_rules! modules {
    ($($target:literal: $capability:expr,)*) => {
        &[$(Module {
            target: $target,
            capability: $capability,
            packed: include_bytes!(concat!(env!("OUT_DIR"), "/", $target, ".cubin.xz")),
        },)*]
    };
}

/// All modules, in the order of their capabilities.
pub const MODULES: &[Module] = modules! {
    "sm_80": (8, 0),
    "sm_86": (8, 6),
    "sm_89": (8, 9),
    "sm_90": (9, 0),
    "sm_100": (10, 0),
    "sm_120": (12, 0),
};
