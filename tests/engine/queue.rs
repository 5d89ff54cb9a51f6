//! A step is one queue: the host runs ahead of a GPU, and what comes again is started by one call.
#![cfg(target_os = "linux")]

use crate::common::{Open, TRAINING, counts, examples, fixture, json, limits_of, micro_batch};
use ptx_emu::Counts;
use qlora_train::data::MicroBatch;
use qlora_train::device::Device;
use qlora_train::model::load::Residence;
use qlora_train::ops::dropout::Draw;
use qlora_train::train::session::Session;

/// Micro-batches of two shapes, one of them three times.
fn window() -> Vec<MicroBatch> {
    let reference = json(&fixture("models/llama/reference.json"));
    let records = examples(reference["rows"].as_array().unwrap());
    let micro = |i: usize| micro_batch(std::slice::from_ref(&records[i]));
    assert!(records[0].tokens.len() != records[1].tokens.len());
    vec![micro(0), micro(0), micro(1), micro(0)]
}

fn session(device: Device, window: &[MicroBatch]) -> Session {
    // As a plan does it: scratch that grows within a pass makes two parts of it.
    device.reserve_scratch(1 << 20).unwrap();
    let all: Vec<_> = window.iter().map(limits_of).collect();
    let mut limits = all[0];
    for other in all {
        limits.tokens = limits.tokens.max(other.tokens);
        limits.targets = limits.targets.max(other.targets);
    }
    let open = Open {
        folder: &fixture("models/llama"),
        adapter: Some(&fixture("models/llama/adapter")),
        // Every launch of a mask is another one than in the step before.
        dropout: 0.1,
        quantization: crate::common::NF4,
        residence: Residence::Resident,
        device,
        limits,
        purpose: TRAINING,
    };
    open.session()
}

/// A step: loss and gradients as bits, and what the driver was asked for until it was queued.
fn step(session: &mut Session, window: &[MicroBatch], stream: u64) -> ((u64, Vec<u32>), Counts) {
    let before = counts();
    let loss = session.gradient(window, Draw { seed: 1, stream }).unwrap().loss;
    let asked = counts().since(before);
    let mut grads = vec![0.0_f32; session.params.index().len()];
    session.device.download(&session.params.grads, &mut grads);
    session.device.synchronize().unwrap();
    ((loss.to_bits(), grads.iter().map(|g| g.to_bits()).collect()), asked)
}

#[test]
fn what_comes_again_is_started_by_one_call_and_gives_the_same_bits() {
    let window = window();
    let (mut gathered, mut timed) =
        (session(crate::common::gpu(), &window), session(crate::common::gpu(), &window));
    // Launches that are timed are launched one by one.
    timed.device.start_profile().unwrap();
    let mut last = Vec::new();
    for stream in [4, 8, 12] {
        let (bits, asked) = step(&mut gathered, &window, stream);
        let (expected, alone) = step(&mut timed, &window, stream);
        assert!(bits == expected, "stream {stream}");
        assert!(bits.1.iter().any(|bits| *bits != 0) && bits.1 != last, "stream {stream}");
        last = bits.1;
        if !crate::common::is_emulated() {
            continue;
        }
        assert_eq!(alone.graphs, 0);
        // Nothing ever waits for all that is queued.
        assert_eq!(asked.idle, 0, "stream {stream}: the GPU stands still");
        let blocks = gathered.decoder.layers.len() as u64;
        // In the first step, the second micro-batch of a shape makes the graphs.
        let passes = if stream == 4 { 2 } else { window.len() as u64 };
        assert_eq!(asked.graphs, passes * 2 * blocks, "stream {stream}");
        let rest = asked.launches as f64 / alone.launches as f64;
        assert!(stream == 4 || rest < 0.2, "stream {stream}: {asked:?} of {alone:?}");
    }
}
