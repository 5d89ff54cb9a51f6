//! Faults planted in the kernels that ship: each is found, and by the check that is meant for it.
//!
//! What is planted is what a hand slips on: a barrier forgotten, a copy not waited for or not committed,
//! half a warp in a shuffle, an address four bytes off, a block that takes itself for another one. Every
//! place of an image where that can happen gets its turn, so a barrier or a wait that nothing needs is found
//! too: taking it out changes nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ptx_emu::Kind;
use ptx_emu::ptx::Module;
use qlora_train::ffi::{IMAGES, Image};

use super::card::is_left_out;
use super::{
    adamw_8bit, attention, attention_backward, cross_entropy, matmul, matmul_4bit, rmsnorm,
    sum_squares,
};

/// An image with a fault, and what was found while it ran.
pub(super) struct Planted {
    pub(super) image: &'static str,
    pub(super) module: Module,
    pub(super) found: BTreeSet<Kind>,
}

thread_local! {
    /// What this thread runs instead of the image of that name.
    pub(super) static PLANTED: RefCell<Option<Planted>> = const { RefCell::new(None) };
}

/// A way to spoil a line of PTX.
struct Fault {
    what: &'static str,
    /// Whether all lines of the kernel are spoiled at once.
    everywhere: bool,
    /// The spoiled line, if this can go wrong in it.
    spoil: fn(&str) -> Option<String>,
    /// The checks that are meant for it.
    meant: &'static [Kind],
}

const FAULTS: [Fault; 6] = [
    Fault {
        what: "a barrier forgotten",
        everywhere: false,
        spoil: |line| line.starts_with("bar.sync").then(String::new),
        meant: &[Kind::SharedRace, Kind::SharedFresh, Kind::CopyRace, Kind::GlobalRace],
    },
    Fault {
        what: "a copy not waited for",
        everywhere: false,
        spoil: |line| line.starts_with("cp.async.wait").then(String::new),
        meant: &[Kind::CopyRace, Kind::CopyAtExit],
    },
    Fault {
        what: "a copy not committed",
        everywhere: false,
        spoil: |line| line.starts_with("cp.async.commit").then(String::new),
        meant: &[Kind::CopyRace, Kind::CopyAtExit],
    },
    Fault {
        what: "half a warp in a shuffle",
        everywhere: false,
        spoil: |line| {
            Some(format!("{}, 65535;", line.strip_prefix("shfl.sync")?.strip_suffix(", -1;")?))
                .map(|rest| format!("shfl.sync{rest}"))
        },
        meant: &[Kind::WarpMask],
    },
    Fault {
        what: "an address four bytes off",
        everywhere: false,
        spoil: |line| line.contains(".global.v").then(|| line.replacen(']', "+4]", 1)),
        meant: &[Kind::Alignment],
    },
    Fault {
        what: "every block the first one",
        everywhere: true,
        spoil: |line| line.contains("%ctaid.x").then(|| line.replace("%ctaid.x", "0")),
        meant: &[Kind::GlobalRace],
    },
];

/// Runs a kernel of an image on numbers that reach all of its lines.
fn exercise(image: &str, kernel: &'static str) {
    match image {
        "adamw_8bit" => adamw_8bit::three_steps_give_the_bits_of_the_cpu(),
        "attention" => attention::exercise(kernel),
        "attention_backward" => attention_backward::exercise(kernel),
        "cross_entropy" => cross_entropy::losses_and_gradients_are_those_of_f64(),
        "matmul" => matmul::exercise(kernel),
        "matmul_4bit" => matmul_4bit::exercise(kernel),
        "rmsnorm" => rmsnorm::check_all(kernel),
        "sum_squares" => sum_squares::check_all(kernel),
        other => panic!("nothing exercises {other}"),
    }
}

const EXERCISED: [&str; 8] = [
    "adamw_8bit",
    "attention",
    "attention_backward",
    "cross_entropy",
    "matmul",
    "matmul_4bit",
    "rmsnorm",
    "sum_squares",
];

/// The kernels of an image: name, number of the first line, and lines.
fn kernels(image: &'static Image) -> Vec<(&'static str, usize, Vec<&'static str>)> {
    let mut kernels = Vec::new();
    for (number, line) in image.ptx.lines().enumerate() {
        if let Some(name) = line.strip_prefix(".visible .entry ") {
            kernels.push((name.trim_end_matches('('), number, Vec::new()));
        }
        if let Some((.., lines)) = kernels.last_mut() {
            lines.push(line);
        }
    }
    kernels
}

/// What is found in the image with some lines spoiled.
fn found(
    image: &'static Image,
    kernel: &'static str,
    spoiled: &[(usize, String)],
) -> BTreeSet<Kind> {
    let mut lines: Vec<&str> = image.ptx.lines().collect();
    for (number, spoiled) in spoiled {
        lines[*number] = spoiled;
    }
    let module = Module::parse(&lines.join("\n")).unwrap();
    PLANTED.set(Some(Planted { image: image.name, module, found: BTreeSet::new() }));
    // Wrong numbers are no surprise.
    let _ = catch_unwind(AssertUnwindSafe(|| exercise(image.name, kernel)));
    PLANTED.take().unwrap().found
}

#[test]
fn each_is_found_by_the_check_that_is_meant_for_it() {
    if is_left_out("silicon finds nothing") {
        return;
    }
    let (mut planted, mut missed) = (0, Vec::new());
    for image in IMAGES.iter().filter(|image| EXERCISED.contains(&image.name)) {
        for (kernel, first, lines) in kernels(image) {
            for Fault { what, everywhere, spoil, meant } in &FAULTS {
                let spoiled = |(i, line): (usize, &&str)| Some((first + i, spoil(line.trim())?));
                let spoiled: Vec<_> = lines.iter().enumerate().filter_map(spoiled).collect();
                let at_once = if *everywhere { spoiled.len().max(1) } else { 1 };
                for spoiled in spoiled.chunks(at_once) {
                    let found = found(image, kernel, spoiled);
                    planted += 1;
                    if !meant.iter().any(|kind| found.contains(kind)) {
                        let line = spoiled[0].0 + 1;
                        missed.push(format!("{what} in {kernel}, line {line}: {found:?}"));
                    }
                }
            }
        }
    }
    assert!(planted > 100, "{planted} faults");
    assert!(missed.is_empty(), "{} of {planted}:\n{}", missed.len(), missed.join("\n"));
}
