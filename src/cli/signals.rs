//! SIGINT and SIGTERM: the first asks the run to finish its micro-batch and write a checkpoint, the second
//! ends the process at once. Files are whole at every moment, so nothing is lost but the step.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context;
use qlora_train::Error;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::output;

/// Starts to listen. The number that is given holds the signal that arrived, or 0.
///
/// # Errors
/// The system refuses.
pub fn watch() -> anyhow::Result<Arc<AtomicI32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listening to signals")?;
    let stop = Arc::new(AtomicI32::new(0));
    let arrived = stop.clone();
    std::thread::spawn(move || {
        for signal in &mut signals {
            if arrived.swap(signal, Ordering::SeqCst) != 0 {
                signal_hook::low_level::exit(128 + signal);
            }
            output::note(
                "stopping: the micro-batch under way is finished first; once more to leave now",
            );
        }
    });
    Ok(stop)
}

/// Stops here if a signal has arrived and there is nothing to save.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn check(stop: &AtomicI32) -> Result<(), Error> {
    match stop.load(Ordering::SeqCst) {
        0 => Ok(()),
        signal => Err(Error::Interrupted { signal }),
    }
}
