//! The kernels as they come to a card: what ships is what the manifest says, and one call loads it.
#![cfg(target_os = "linux")]

use crate::common::{counts, json};
use ptx_emu::Counts;
use ptx_emu::ptx::Module;
use qlora_train::device::cuda::unpack;
use qlora_train::ffi::{IMAGES, MODULES};
use qlora_train::ops::sum_squares::sum_squares;
use sha2::{Digest, Sha256};

#[test]
fn up_to_the_first_kernel_there_is_one_load_and_no_compilation() {
    if !crate::common::is_emulated() {
        return;
    }
    let device = crate::common::gpu();
    let x = device.alloc::<f32>("test", 100).unwrap();
    let mut sum = device.alloc::<f64>("test", 1).unwrap();
    sum_squares(&device, &x, &mut sum);
    device.synchronize().unwrap();
    let Counts { launches, loaded, compiled, .. } = counts();
    assert_eq!((launches, loaded, compiled), (2, 1, 0));
}

#[test]
fn prebuilt_kernels_are_of_the_sources_beside_them() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let hash = |bytes: &[u8]| -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let manifest = json(&root.join("kernels/prebuilt/manifest.json"));
    for (name, expected) in manifest["sources"].as_object().unwrap() {
        let source = std::fs::read(root.join(name)).unwrap();
        assert!(hash(&source) == *expected, "{name} changed: scripts/compile_kernels.py");
    }
    let images =
        IMAGES.iter().map(|image| (format!("{}.ptx", image.name), hash(image.ptx.as_bytes())));
    let modules =
        MODULES.iter().map(|module| (format!("{}.cubin.xz", module.target), hash(&unpack(module))));
    let shipped: serde_json::Map<_, _> =
        images.chain(modules).map(|(name, hash)| (name, hash.into())).collect();
    assert_eq!(shipped, *manifest["artefacts"].as_object().unwrap());
}

#[test]
fn blocks_are_launched_with_the_threads_that_their_kernels_declare() {
    for image in IMAGES {
        let module = Module::parse(image.ptx).unwrap();
        let declared: Vec<_> =
            module.kernels.iter().map(|kernel| (&*kernel.name, kernel.most_threads)).collect();
        let mut launched: Vec<_> =
            image.kernels.iter().map(|kernel| (kernel.name, Some(kernel.threads))).collect();
        let by_name = |a: &(&str, _), b: &(&str, _)| a.0.cmp(b.0);
        let mut declared = declared;
        declared.sort_by(by_name);
        launched.sort_by(by_name);
        assert_eq!(declared, launched, "{}", image.name);
    }
}
