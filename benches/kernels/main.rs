//! Speed of every kernel on named shapes: `cargo bench --bench kernels [-- FILTER]`.
//!
//! Products and attention are held against the multiply-add peak of this machine, everything else
//! against a plain copy that moves as many bytes; both are measured beside the kernel, on as many
//! threads and by the same clock. [`measure`] says how, one file each says what.

mod attention;
mod gemm;
mod measure;
mod optimizer;
mod quantize;
mod rows;
#[path = "../support/mod.rs"]
mod support;

use criterion::Criterion;
use qlora_train::device::{Device, Dtype};

use measure::Measured;

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    // To see whether they run, once will do.
    let test = std::env::args().any(|argument| argument == "--test");
    for threads in if test { 2..=2 } else { 1..=2 } {
        let device = Device::cpu(threads, Dtype::Bf16, u64::MAX);
        for (name, benches) in [
            ("gemm", gemm::all as fn(&Device, &mut Measured)),
            ("attention", attention::all),
            ("rows", rows::all),
            ("optimizer", optimizer::all),
            ("quantize", quantize::all),
        ] {
            if name == "quantize" && threads > 1 && !test {
                continue;
            }
            let plural = if threads == 1 { "" } else { "s" };
            let group = criterion.benchmark_group(format!("{name}, {threads} thread{plural}"));
            benches(&device, &mut Measured::new(group, threads, test));
        }
    }
    criterion.final_summary();
}
