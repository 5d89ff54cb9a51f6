//! What a case costs: time on one clock for a loop and the thing beside it, and memory.

use std::fs;
use std::sync::LazyLock;
use std::time::Instant;

/// A clock in seconds: of this thread's own work where there is one thread, so that other work on
/// the machine does not enter; of the world else.
pub fn seconds(threads: usize) -> f64 {
    if cfg!(target_os = "linux") && threads == 1 {
        return own_seconds();
    }
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGUN.elapsed().as_secs_f64()
}

#[cfg(target_os = "linux")]
fn own_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which is there.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "the clock of a thread");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn own_seconds() -> f64 {
    unreachable!("asked for on Linux only")
}

/// The most memory that this process has had in use, pages of mapped files that it touched
/// included; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The middle one of an odd number of measurements.
pub fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
