//! One target of `tests/fuzz` under libFuzzer: the one that `QLORA_FUZZ_TARGET` names, with its seeds put into
//! the folder `QLORA_FUZZ_CORPUS`. `scripts/fuzz.sh` builds and runs it.
#![no_main]
#![allow(clippy::print_stderr, reason = "what was found is told beside libFuzzer's own words")]

#[path = "../targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::process::{abort, exit};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target, rewrite};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../..");
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../target/release/qlora-train");

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        begin();
        // The hook of libFuzzer's crate ends the process at a panic that a reader catches and tells.
        drop(take_hook());
        set_hook(Box::new(|_| ()));
    },
    |bytes: &[u8]| {
        let target = TARGET.get().expect("made before the first input");
        match catch_unwind(AssertUnwindSafe(|| (target.read)(bytes))) {
            Ok(Err(error)) if error.to_string().is_empty() => found("an empty message"),
            Ok(_) => (),
            Err(panic) => found(panic.downcast_ref::<String>().map_or("a panic", |text| text)),
        }
    }
);

/// Makes the target and writes down its seeds.
fn begin() {
    let wanted = std::env::var("QLORA_FUZZ_TARGET").unwrap_or_default();
    let Some((_, target)) = TARGETS.into_iter().find(|(name, _)| *name == wanted) else {
        eprintln!("QLORA_FUZZ_TARGET: one of {:?}", TARGETS.map(|(name, _)| name));
        exit(2);
    };
    let target = TARGET.get_or_init(target);
    if let Some(folder) = std::env::var_os("QLORA_FUZZ_CORPUS") {
        for (i, seed) in target.seeds.iter().enumerate() {
            rewrite(&Path::new(&folder).join(format!("seed-{i}")), seed);
        }
    }
}

/// Ends the process: libFuzzer keeps the input.
fn found(what: &str) -> ! {
    eprintln!("found: {what}");
    abort()
}
