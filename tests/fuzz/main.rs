//! Everything that is read from outside, with bytes changed at random: an answer or an error, never a panic,
//! soon, and with little memory. The changes are the same in every run of the same length.
//!
//! `QLORA_FUZZ_SECONDS` says for how long each target runs, and `QLORA_FUZZ_SEED` from which seed. For hours,
//! `scripts/fuzz.sh` follows what an input reaches in the program (`guided/`). An input that is found lies in
//! `target/fuzz` and becomes a case of `tests/bad_inputs`.

#![allow(
    clippy::print_stderr,
    reason = "how many inputs a target had is what a long run is read for"
)]

mod memory;
mod mutate;
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use mutate::{Dice, mutate};
use qlora_train::error::Error;
use targets::{Read, TARGETS, rewrite};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PROGRAM: &str = env!("CARGO_BIN_EXE_qlora-train");

/// An input may take as long.
const SLOWEST: Duration = Duration::from_secs(1);
/// An input may ask for as many bytes at once.
const MOST: usize = 256 << 20;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Runs the target `name` on changed seeds until the time is over; each seed as it is must be taken.
fn fuzz(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
    let target = target();
    for seed in &target.seeds {
        (target.read)(seed).unwrap_or_else(|error| panic!("{name}: a seed is refused: {error}"));
    }
    let end = Instant::now() + Duration::from_secs(number("QLORA_FUZZ_SECONDS", 4));
    let mut dice = Dice::new(number("QLORA_FUZZ_SEED", 1));
    let (mut runs, mut taken) = (0_u64, 0_u64);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    let seed = |dice: &mut Dice| &target.seeds[dice.below(target.seeds.len())];
    while Instant::now() < end {
        let (one, other) = (seed(&mut dice), seed(&mut dice));
        let input = mutate(one, other, &mut dice);
        // It lies there, too, if this process does not survive it.
        rewrite(&path, &input);
        match judge(&*target.read, &input) {
            Ok(outcome) => taken += u64::from(outcome.is_ok()),
            Err(what) => panic!("{name}: {what} on input {runs}: {}", path.display()),
        }
        runs += 1;
    }
    fs::remove_file(&path).unwrap();
    assert!(runs > 50, "{name}: {runs} inputs only");
    eprintln!("{name}: {runs} inputs, {taken} taken");
}

/// What `read` makes of an input, or what is wrong with that.
fn judge(read: &Read, input: &[u8]) -> Result<Result<(), Error>, String> {
    let begun = Instant::now();
    let (outcome, most) = memory::most_during(|| catch_unwind(AssertUnwindSafe(|| read(input))));
    let mut took = begun.elapsed();
    let outcome = outcome.map_err(|_| "a panic".to_owned())?;
    // A machine that does other work too is slow now and then; an input is slow every time.
    for _ in 0..3 {
        if took > SLOWEST {
            let begun = Instant::now();
            let _ = read(input);
            took = took.min(begun.elapsed());
        }
    }
    match &outcome {
        Err(error) if error.to_string().is_empty() => Err("an empty message".to_owned()),
        _ if took > SLOWEST => Err(format!("{took:?}")),
        _ if most > MOST => Err(format!("{} MiB at once", most >> 20)),
        _ => Ok(outcome),
    }
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($name)),*]);
        }
    };
}

tests! {
    tensor_files
    shard_indices
    configurations
    tokenizers
    tokenizer_configurations
    generation_configurations
    records
    chat_templates
    adapter_configurations
    adapter_tensors
    stores_in_four_bits
    checkpoint_states
    checkpoint_digests
    checkpoint_moments
}
