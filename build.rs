//! Where the kernels in the program come from. By default they are those under `kernels/prebuilt`, and
//! nothing of CUDA is needed. Who edits a kernel sets `QLORA_KERNELS`:
//!
//! - `prebuilt`: as by default;
//! - `nvrtc`: compiled from the sources by `scripts/compile_kernels.py`, as those under `prebuilt` were;
//! - `nvcc`: compiled by the `nvcc` on the path.
//!
//! `src/ffi.rs` takes them from where cargo has put what this program made.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=QLORA_KERNELS");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=ffi");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let from = env::var("QLORA_KERNELS").unwrap_or_else(|_| "prebuilt".to_owned());
    match from.as_str() {
        "prebuilt" => copy_prebuilt(&root, &out),
        "nvrtc" => nvrtc(&root, &out),
        "nvcc" => nvcc(&root, &out),
        other => panic!("QLORA_KERNELS={other}: expected prebuilt, nvrtc or nvcc"),
    }
    println!("cargo::rustc-env=QLORA_KERNELS_FROM={from}");
}

/// PTX, and machine code for the targets that have a module.
fn copy_prebuilt(root: &Path, out: &Path) {
    let prebuilt = root.join("kernels/prebuilt");
    let images = with_extension(&prebuilt, "ptx");
    let modules = with_extension(&prebuilt, "xz");
    for made in images.into_iter().chain(modules) {
        let to = out.join(made.file_name().expect("the name of a file"));
        fs::copy(&made, &to).unwrap_or_else(|error| panic!("{}: {error}", made.display()));
    }
}

/// Of kernels that are being edited there is PTX alone: the modules are empty files.
fn without_modules(root: &Path, out: &Path) {
    for module in with_extension(&root.join("kernels/prebuilt"), "xz") {
        let empty = out.join(module.file_name().expect("the name of a file"));
        fs::write(&empty, []).unwrap_or_else(|error| panic!("{}: {error}", empty.display()));
    }
}

fn nvrtc(root: &Path, out: &Path) {
    let script = root.join("scripts/compile_kernels.py");
    run(Command::new("python3").arg(script).arg("--output").arg(out));
    without_modules(root, out);
}

fn nvcc(root: &Path, out: &Path) {
    let kernels = root.join("kernels");
    for source in with_extension(&kernels, "cu") {
        let stem = source.file_stem().expect("the name of a file");
        let made = out.join(stem).with_extension("ptx");
        let mut command = Command::new("nvcc");
        command.args(["-ptx", "-arch=compute_80", "-std=c++17", "-lineinfo", "-o"]).arg(made);
        run(command.arg("-I").arg(&kernels).arg("-I").arg(root.join("ffi")).arg(&source));
    }
    without_modules(root, out);
}

fn with_extension(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry of a folder").path());
    paths.filter(|path| path.extension() == Some(OsStr::new(extension))).collect()
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}
