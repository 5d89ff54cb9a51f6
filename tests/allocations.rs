//! Memory is taken before the first step: a step allocates nothing.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{NF4, Open, cpu, examples, fixture, json, limits_of, micro_batch};
use qlora_train::device::Dtype;
use qlora_train::model::load::Residence;
use qlora_train::model::workspace::{Keep, Purpose};
use qlora_train::ops::dropout::Draw;
use qlora_train::optim::adamw::{Moments, Settings};
use qlora_train::optim::shelf::Paging;

/// The system's allocator with a count of the calls for more.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: passed on from the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on from the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: passed on from the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ADAMW: Settings =
    Settings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };

#[test]
fn a_step_allocates_nothing() {
    for (family, keep, moments) in
        [("llama", Keep::EVERYTHING, Moments::F32), ("gemma3", Keep::INPUTS, Moments::EightBit)]
    {
        for threads in [1, 2] {
            let calls = calls_of_steps(family, keep, moments, threads);
            assert_eq!(calls, 0, "{family}, {keep:?}, {threads} threads");
        }
    }
}

/// The fewest calls of the allocator in any of ten steps, after the first two: the pool of threads
/// allocates for itself now and then, a step would each time.
fn calls_of_steps(family: &str, keep: Keep, moments: Moments, threads: usize) -> usize {
    let folder = fixture("models").join(family);
    let reference = json(&folder.join("reference.json"));
    let examples = examples(reference["rows"].as_array().unwrap());
    let window: Vec<_> =
        examples.iter().map(|row| micro_batch(std::slice::from_ref(row))).collect();
    let open = Open {
        folder: &folder,
        adapter: Some(&folder.join("adapter")),
        dropout: 0.0,
        quantization: NF4,
        device: cpu(threads, Dtype::Bf16),
        residence: Residence::Resident,
        limits: limits_of(&micro_batch(&examples)),
        purpose: Purpose::Training(keep),
    };
    let mut session = open.session();
    let mut optimizer = session.optimizer(ADAMW, moments, Paging::Resident).unwrap();
    let device = session.device.clone();
    assert!(CALLS.load(Relaxed) > 0, "loading a model allocates");
    let calls_of_step = |step| {
        let before = CALLS.load(Relaxed);
        session.gradient(&window, Draw { seed: 0, stream: 0 }).unwrap();
        optimizer.step(&device, &mut session.params, 1e-3, step).unwrap();
        CALLS.load(Relaxed) - before
    };
    (1..=12).map(calls_of_step).skip(2).min().expect("ten steps")
}
