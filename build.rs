//! Where the kernels in the program come from. By default they are those under `kernels/prebuilt`, and
//! nothing of CUDA is needed. Who edits a kernel sets `QLORA_KERNELS`:
//!
//! - `prebuilt`: as by default;
//! - `nvrtc`: compiled from the sources by `scripts/compile_kernels.py`, as those under `prebuilt` were;
//! - `nvcc`: compiled by the `nvcc` on the path.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=QLORA_KERNELS");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let from = env::var("QLORA_KERNELS").unwrap_or_else(|_| "prebuilt".to_owned());
    let folder = match from.as_str() {
        "prebuilt" => root.join("kernels/prebuilt"),
        "nvrtc" => compiled_by(&root, &out, nvrtc),
        "nvcc" => compiled_by(&root, &out, nvcc),
        other => panic!("QLORA_KERNELS={other}: expected prebuilt, nvrtc or nvcc"),
    };
    println!("cargo::rustc-env=QLORA_KERNELS_FROM={from}");
    println!("cargo::rustc-env=QLORA_KERNEL_FOLDER={}", folder.display());
}

/// Has the sources compiled to PTX in `out`.
fn compiled_by(root: &Path, out: &Path, compile: fn(&Path, &Path)) -> PathBuf {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=ffi");
    compile(root, out);
    out.to_owned()
}

fn nvrtc(root: &Path, out: &Path) {
    let script = root.join("scripts/compile_kernels.py");
    run(Command::new("python3").arg(script).arg("--output").arg(out));
}

fn nvcc(root: &Path, out: &Path) {
    let kernels = root.join("kernels");
    for entry in fs::read_dir(&kernels).expect("the folder of kernels") {
        let source = entry.expect("an entry of the folder of kernels").path();
        let Some(stem) =
            source.file_stem().filter(|_| source.extension() == Some(OsStr::new("cu")))
        else {
            continue;
        };
        let made = out.join(stem).with_extension("ptx");
        let mut command = Command::new("nvcc");
        command.args(["-ptx", "-arch=compute_80", "-std=c++17", "-lineinfo", "-o"]).arg(made);
        run(command.arg("-I").arg(&kernels).arg("-I").arg(root.join("ffi")).arg(&source));
    }
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}
