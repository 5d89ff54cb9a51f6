//! Names the shared library as the one that it stands in for: a program that opens `libcuda.so` later
//! gets it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
