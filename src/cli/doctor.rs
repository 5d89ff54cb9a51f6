//! `doctor`: what this machine has, and what of it will be used.

use clap::Args;
use qlora_train::device::Simd;
use qlora_train::device::cuda::{self, Card};
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
}

/// Looks and tells.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let (version, system) = (env!("CARGO_PKG_VERSION"), system());
    let (simd, threads) = (Simd::detect(), cores());
    let (total, available) = (total_memory(), available_memory());
    let gpu = cuda::look(0);
    let device = if gpu.is_ok() { "cuda:0" } else { "cpu" };
    if args.json {
        return output::json(&json!({
            "version": version,
            "system": system,
            "gpu": gpu_json(&gpu),
            "cpu": { "threads": threads, "instructions": spelled(simd) },
            "memory": { "total_bytes": total, "available_bytes": available },
            "device": device,
        }));
    }
    output::result(format_args!("qlora-train {version} on {system}"))?;
    output::result(match &gpu {
        Ok(card) => {
            let (name, memory, made) = (described(card), mib(card.memory), card.kernels);
            format!("GPU      {name}, {memory} MiB; kernels: PTX ({made}), compiled by the driver")
        }
        Err(error) => format!("GPU      none is used: {}", reason(error)),
    })?;
    output::result(format_args!("CPU      {threads} threads, {}", told(simd)))?;
    output::result(format_args!(
        "memory   {} MiB available of {} MiB; runs may use what is available, or --memory-budget",
        mib(available),
        mib(total)
    ))?;
    output::result(format_args!("device   {device} will be used (--device auto)"))
}

fn gpu_json(gpu: &Result<Card, Error>) -> Value {
    match gpu {
        Ok(card) => json!({
            "found": true,
            "name": card.name,
            "compute_capability": format!("{}.{}", card.capability.0, card.capability.1),
            "driver": card.driver,
            "memory_bytes": card.memory,
            "kernels": format!("ptx, {}", card.kernels),
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
