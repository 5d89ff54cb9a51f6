//! `doctor`: what this machine has, and what of it will be used; with `--kernels`, what each kernel takes of a
//! multiprocessor.

use clap::Args;
use qlora_train::device::cuda::{Loaded, Resources};
use qlora_train::device::{Cuda, Simd};
use qlora_train::error::Error;
use serde_json::{Value, json};
use sysinfo::System;

use super::machine::{available_memory, cores, described, reason, total_memory};
use super::output;
use super::table::mib;

/// Flags of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// The result as one JSON object
    #[arg(long)]
    json: bool,

    /// For each kernel on the GPU its registers, local and shared bytes, and blocks on a multiprocessor
    #[arg(long)]
    kernels: bool,
}

/// Looks and tells.
///
/// # Errors
/// Standard output cannot be written; kernels are asked for where there is no GPU.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let (version, system) = (env!("CARGO_PKG_VERSION"), system());
    let (simd, threads) = (Simd::detect(), cores());
    let (total, available) = (total_memory(), available_memory());
    let gpu = Cuda::open(0, None);
    let device = if gpu.is_ok() { "cuda:0" } else { "cpu" };
    let kernels = match (&gpu, args.kernels) {
        (_, false) => None,
        (Ok(gpu), true) => Some(gpu.resources()?),
        (Err(error), true) => anyhow::bail!("no kernel can be asked for: {}", reason(error)),
    };
    if args.json {
        let mut found = json!({
            "version": version,
            "system": system,
            "gpu": gpu_json(&gpu),
            "cpu": { "threads": threads, "instructions": spelled(simd) },
            "memory": { "total_bytes": total, "available_bytes": available },
            "device": device,
        });
        if let Some(kernels) = &kernels {
            found["kernels"] = kernels.iter().map(kernel_json).collect();
        }
        return output::json(&found);
    }
    output::result(format_args!("qlora-train {version} on {system}"))?;
    output::result(match &gpu {
        Ok(gpu) => {
            let card = gpu.card();
            let kernels = loaded(gpu.loaded(), card.kernels);
            format!("GPU      {}, {} MiB; kernels: {kernels}", described(card), mib(card.memory))
        }
        Err(error) => format!("GPU      none is used: {}", reason(error)),
    })?;
    output::result(format_args!("CPU      {threads} threads, {}", told(simd)))?;
    output::result(format_args!(
        "memory   {} MiB available of {} MiB; runs may use what is available, or --memory-budget",
        mib(available),
        mib(total)
    ))?;
    output::result(format_args!("device   {device} will be used (--device auto)"))?;
    match kernels {
        Some(kernels) => table_of(&kernels),
        None => Ok(()),
    }
}

/// The way in which the kernels came to the card, in words.
fn loaded(loaded: &Loaded, made: &str) -> String {
    let ms = loaded.time.as_millis();
    match (loaded.target, &loaded.refused) {
        (Some(target), _) => format!("machine code for {target} ({made}), loaded in {ms} ms"),
        (None, None) => format!("PTX ({made}), compiled by the driver in {ms} ms"),
        (None, Some(why)) => {
            format!("PTX ({made}), compiled by the driver in {ms} ms, which did not take {why}")
        }
    }
}

/// Prints a line for each kernel; those that need local memory are named again.
fn table_of(kernels: &[Resources]) -> anyhow::Result<()> {
    output::result(format_args!(
        "\n{:26} {:>7} {:>9} {:>6} {:>7} {:>7} {:>7}",
        "kernel", "threads", "registers", "local", "shared", "blocks", "binary"
    ))?;
    for kernel in kernels {
        let Resources { name, threads, registers, local_bytes, shared_bytes, .. } = kernel;
        let (blocks, binary) = (kernel.blocks, kernel.binary_version);
        output::result(format_args!(
            "{name:26} {threads:>7} {registers:>9} {local_bytes:>6} {shared_bytes:>7} {blocks:>7} {binary:>7}"
        ))?;
    }
    let slow: Vec<&str> = kernels.iter().filter(|k| k.local_bytes > 0).map(|k| k.name).collect();
    match slow[..] {
        [] => output::result(format_args!("no kernel uses local memory")),
        _ => output::result(format_args!("local memory, and so slow: {}", slow.join(", "))),
    }
}

fn kernel_json(kernel: &Resources) -> Value {
    json!({
        "kernel": kernel.name,
        "threads": kernel.threads,
        "registers": kernel.registers,
        "local_bytes": kernel.local_bytes,
        "shared_bytes": kernel.shared_bytes,
        "blocks_per_multiprocessor": kernel.blocks,
        "binary_version": kernel.binary_version,
    })
}

fn gpu_json(gpu: &Result<Cuda, Error>) -> Value {
    match gpu.as_ref().map(|gpu| (gpu.card(), gpu.loaded())) {
        Ok((card, loaded)) => json!({
            "found": true,
            "name": card.name,
            "compute_capability": format!("{}.{}", card.capability.0, card.capability.1),
            "driver": card.driver,
            "memory_bytes": card.memory,
            "kernels": format!("{}, {}", loaded.target.unwrap_or("ptx"), card.kernels),
            "kernels_refused": loaded.refused,
            "kernels_seconds": loaded.time.as_secs_f64(),
        }),
        Err(error) => json!({ "found": false, "why": reason(error) }),
    }
}

fn system() -> String {
    let unknown = || "an unknown system".to_owned();
    let name = System::long_os_version().unwrap_or_else(unknown);
    format!("{name}, {}", std::env::consts::ARCH)
}

fn spelled(simd: Simd) -> &'static str {
    match simd {
        Simd::Portable => "portable",
        Simd::Avx2 => "avx2",
        Simd::Avx512 => "avx512",
        Simd::Avx512Bf16 => "avx512-bf16",
    }
}

fn told(simd: Simd) -> &'static str {
    match simd {
        Simd::Portable => "portable code: no wider instructions were found",
        Simd::Avx2 => "AVX2 and FMA",
        Simd::Avx512 => "AVX-512",
        Simd::Avx512Bf16 => "AVX-512 with bf16 products",
    }
}
