//! `--profile FILE`: a timeline that chrome://tracing and Perfetto open, and a table of where the time
//! went.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use qlora_train::checkpoint::atomic;
use qlora_train::device::Device;
use qlora_train::device::profile::{Lane, Record, Span, Total};
use qlora_train::error::{Error, Place};
use serde_json::{Value, json};

use super::output;
use super::table::{grouped, mib};

/// Refuses a file that could not be written after the run.
///
/// # Errors
/// A folder that is not there.
pub fn check(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.file_name().is_none() || folder.is_some_and(|folder| !folder.is_dir()) || path.is_dir()
    {
        let what = format!("{}: is no name of a file in a folder that exists", path.display());
        return Err(Error::input(Place::flag("--profile"), what));
    }
    Ok(())
}

/// Writes the timeline of `device` to `path` and tells the table.
///
/// # Errors
/// A file that cannot be written.
pub fn finish(device: &Device, path: &Path) -> Result<(), Error> {
    let Some(profile) = device.profile() else { return Ok(()) };
    let record = profile.record();
    atomic::write_bytes(path, timeline(&record).to_string())?;
    output::note(table(&record, profile.now(), device.matrix_peak()));
    output::note(format_args!("timeline: {}", path.display()));
    Ok(())
}

/// In the format of Chrome's trace viewer: times in microseconds, a lane as a thread.
fn timeline(record: &Record) -> Value {
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    let names = Lane::ALL.iter().map(|lane| {
        let args = json!({ "name": lane.name() });
        json!({ "ph": "M", "pid": 1, "tid": *lane as usize, "name": "thread_name", "args": args })
    });
    let spans = record.spans.iter().map(|Span { lane, name, start, length, bytes }| {
        let (ts, dur) = (microseconds(*start), microseconds(*length));
        let args = if *bytes > 0 { json!({ "bytes": bytes }) } else { json!({}) };
        json!({ "ph": "X", "pid": 1, "tid": *lane as usize, "name": name, "ts": ts, "dur": dur, "args": args })
    });
    let counters = record.memory.iter().map(|(at, report)| {
        let bytes: BTreeMap<_, _> =
            report.labels.iter().map(|(label, usage)| (*label, usage.current)).collect();
        json!({ "ph": "C", "pid": 1, "name": "memory", "ts": microseconds(*at), "args": bytes })
    });
    let events: Vec<Value> = names.chain(spans).chain(counters).collect();
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

/// What took how long, the longest first in each lane.
fn table(record: &Record, wall: Duration, peak: Option<f64>) -> String {
    let share = |time: Duration| 100.0 * time.as_secs_f64() / wall.as_secs_f64();
    let mut text = String::from(
        "profile                       calls       seconds   % of run           MiB\n",
    );
    for lane in Lane::ALL {
        let mut rows: Vec<(&str, &Total)> = record
            .totals
            .iter()
            .filter(|((of, _), _)| *of == lane)
            .map(|((_, name), total)| (*name, total))
            .collect();
        rows.sort_by_key(|(_, total)| std::cmp::Reverse(total.time));
        for (name, Total { count, time, bytes }) in rows {
            let name = if lane == Lane::Compute {
                name.to_owned()
            } else {
                format!("{}: {name}", lane.name())
            };
            let moved = if *bytes > 0 { mib(*bytes) } else { String::new() };
            let (count, seconds) = (grouped(*count), time.as_secs_f64());
            let share = share(*time);
            let row = format!("  {name:<26} {count:>6} {seconds:>13.3} {share:>10.1} {moved:>13}");
            let _ = writeln!(text, "{}", row.trim_end());
        }
    }
    let rate = record.flops / wall.as_secs_f64();
    let _ = write!(
        text,
        "  products: {:.1} GFLOP, {:.1} GFLOP/s over the run",
        record.flops / 1e9,
        rate / 1e9
    );
    if let Some(peak) = peak {
        let (share, peak) = (100.0 * rate / peak, peak / 1e9);
        let _ = write!(text, ", {share:.1} % of the matrix peak of {peak:.0}");
    }
    if record.left_out > 0 {
        let _ = write!(text, "; {} spans are not in the timeline", grouped(record.left_out));
    }
    text
}
