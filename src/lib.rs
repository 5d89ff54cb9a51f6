//! Fine-tunes a frozen language model whose weights are kept as NF4 blocks, on a machine you own.
//!
//! This page is the guided tour: from the training loop down to one matrix product, in the order in
//! which the source is best read. Each module's own page says what it is for, what it is not, and
//! where to go next.
//!
//! # The tour
//!
//! 1. **The loop.** [`train::run`] is the whole run: steps, evaluations, checkpoints, metrics. What
//!    a step learns from is a pure function of its number ([`train::steps`]); nothing but the
//!    adapter and the optimizer's moments has to survive a crash.
//! 2. **A step.** [`train::session`] adds the gradients of the micro-batches, each scaled by one
//!    over the supervised tokens of the *whole* step, and hands them to [`optim::adamw`].
//! 3. **A pass.** [`model::decoder`] runs embedding, blocks and head. The head is computed in
//!    chunks of rows, and only where a label stands.
//! 4. **A block.** [`model::block`] reads top to bottom: nine steps forward, the same nine backward.
//!    What a block keeps in between is a plan ([`model::workspace`]); forward has one code path.
//! 5. **A linear map.** [`model::linear`] holds the QLoRA algebra once. LoRA rides in the product
//!    with the frozen weight as extra columns.
//! 6. **A product.** [`ops::gemm`] decodes 4-bit blocks ([`quant`]) straight into the panels that its
//!    inner loop reads (a GPU: into scratch, one weight at a time). No dequantized copy of a weight stays.
//! 7. **A device.** [`device`] runs it: the CPU, an NVIDIA GPU, or a plan that only books the bytes. What
//!    an operation comes to on a GPU stands beside it, in its `run_on_gpu`; the kernels are CUDA, under
//!    `kernels/`. What a run will take is found by making the run's calls on the plan ([`train::plan`](mod@train::plan)).
//! 8. **What does not fit.** Weights of layers pass through two places of the device
//!    ([`device::conveyor`]), one reading for all micro-batches of a step ([`model::workspace`]); layer
//!    inputs and moments wait in host memory ([`device::parking`], [`optim::shelf`]).
//!
//! Beside the tour stand the two ends: [`checkpoint`] reads Hugging Face folders and writes adapters
//! that `peft` loads; [`data`] turns JSONL records into tokens and says which of them are
//! supervised. [`methods`] attaches what is trained to the frozen model, and [`params`] keeps it in
//! one flat array.
//!
//! # Shape letters
//!
//! B sequences, T tokens per sequence, N = B·T, C hidden, H heads, K kv heads, D head dim, F
//! feed-forward, V vocabulary, R rank, L layers. Gradients are `d` + name.
//!
//! # Numbers
//!
//! Activations and operands are bf16 (f32 by choice on the CPU), sums f32, master values, gradients
//! and moments f32, base codes four bits. Results are the same bits for any number of threads.
//! [`tolerance`] is the one rule by which they are called equal to a reference.

pub mod checkpoint;
pub mod data;
pub mod device;
pub mod error;
pub mod ffi;
pub mod json;
pub mod methods;
pub mod model;
pub mod ops;
pub mod optim;
pub mod params;
pub mod quant;
pub mod random;
pub mod tolerance;
pub mod train;

pub use error::Error;
