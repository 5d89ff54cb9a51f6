//! The arrows between modules: who may know whom. Fails on any `use crate::` that the table of
//! CONTRIBUTING.md does not allow, and on files longer than the house allows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Module, and what it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("random", &[]),
    ("ffi", &[]),
    ("tolerance", &[]),
    ("json", &["error"]),
    ("checkpoint", &["error", "json"]),
    ("data", &["error", "json", "random"]),
    ("quant", &["error"]),
    ("device", &["error", "ffi"]),
    ("ops", &["error", "device", "ffi", "quant", "random", "tolerance"]),
    ("params", &["error", "device", "ops"]),
    (
        "model",
        &["error", "json", "ops", "params", "device", "quant", "checkpoint", "random", "tolerance"],
    ),
    ("methods", &["error", "model", "params", "device", "checkpoint", "random"]),
    ("optim", &["error", "ops", "params", "device", "quant"]),
    (
        "train",
        &[
            "error",
            "json",
            "random",
            "tolerance",
            "checkpoint",
            "data",
            "quant",
            "device",
            "ops",
            "params",
            "model",
            "methods",
            "optim",
        ],
    ),
    (
        "cli",
        &[
            "error",
            "json",
            "random",
            "checkpoint",
            "data",
            "quant",
            "device",
            "ops",
            "params",
            "model",
            "methods",
            "optim",
            "train",
        ],
    ),
];

#[test]
fn arrows_between_modules_are_those_of_the_plan() {
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in sources(Path::new("src")) {
        let module = module_of(&file);
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let Some(allowed) = allowed.get(module.as_str()) else {
            wrong.push(format!("{}: no such module in the table", file.display()));
            continue;
        };
        for used in uses(&fs::read_to_string(&file).unwrap()) {
            if used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {module} may not use {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_short_enough_to_read() {
    const MOST_LINES: usize = 500;
    // Nobody wrote it, and nobody need read it: the headers say it all.
    let generated = Path::new("src/ffi/bindings.rs");
    let long: Vec<_> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|root| sources(Path::new(root)))
        .filter(|file| file != generated)
        .map(|file| (fs::read_to_string(&file).unwrap().lines().count(), file))
        .filter(|(lines, _)| *lines > MOST_LINES)
        .collect();
    assert!(long.is_empty(), "longer than {MOST_LINES} lines: {long:?}");
}

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `src/model/block.rs` and `src/model.rs` belong to `model`.
fn module_of(file: &Path) -> String {
    let below = file.strip_prefix("src").unwrap().components().next().unwrap();
    Path::new(below.as_os_str()).file_stem().unwrap().to_string_lossy().into_owned()
}

/// The first names behind `crate::` (binary: `qlora_train::`), outside of comments.
fn uses(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut used = Vec::new();
    for line in code {
        for root in ["crate::", "qlora_train::"] {
            for (at, _) in line.match_indices(root) {
                let rest = &line[at + root.len()..];
                let name: String =
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_module = name.chars().next().is_some_and(char::is_lowercase);
                if is_module && !used.contains(&name) {
                    used.push(name);
                }
            }
        }
    }
    used
}
