//! Room on the disk: what a run will write, held against what is free before it starts.

use qlora_train::error::{Error, Place};
use qlora_train::optim::adamw::Moments;
use qlora_train::train::plan::Plan;

use super::flags::TrainFlags;
use super::output;
use super::table::mib;

/// Bytes of the adapter, and of the checkpoints that stand beside it at most while a new one is
/// written; `total` is the number of steps, where it is known.
pub fn needed(flags: &TrainFlags, plan: &Plan, total: Option<u64>) -> u64 {
    let adapter = plan.report.labels.get("adapter values").map_or(0, |usage| usage.peak);
    let moments = match flags.optimizer.optimizer.moments() {
        Moments::F32 => 2 * adapter,
        // Two codes for each f32, and a scale for every 256 of them.
        Moments::EightBit => adapter / 2 + adapter / 128,
    };
    let checkpoints = match flags.output.save_steps {
        Some(every) => {
            let written = total.map_or(u64::MAX, |total| total / every as u64 + 1);
            written.min(flags.output.keep_checkpoints as u64 + 1)
        }
        None => 1,
    };
    adapter + checkpoints.saturating_mul(adapter + moments)
}

/// Says what the run will write to `folder`, and refuses if that much is not free.
///
/// # Errors
/// Too little room.
pub fn check(flags: &TrainFlags, plan: &Plan, total: u64) -> Result<(), Error> {
    let (folder, needed) = (&flags.output.output_dir, needed(flags, plan, Some(total)));
    // Some file systems do not tell.
    let Ok(free) = fs4::available_space(folder) else { return Ok(()) };
    output::note(format_args!("disk: {} MiB at most, {} MiB are free", mib(needed), mib(free)));
    if needed <= free {
        return Ok(());
    }
    let what = format!(
        "{}: adapter and checkpoints need {} MiB, {} MiB are free: choose another disk, or fewer \
         --keep-checkpoints",
        folder.display(),
        mib(needed),
        mib(free)
    );
    Err(Error::input(Place::flag("--output-dir"), what))
}
