//! Numbers for people: digits in groups, sizes in MiB, and the table of a memory plan.

use std::fmt::Write;

use qlora_train::device::Report;

use qlora_train::model::load::Residence;
use qlora_train::optim::shelf::Paging;
use qlora_train::train::plan::{Outlook, Plan};
use serde_json::{Map, Value, json};

/// A count with commas between groups of three digits.
pub fn grouped(count: impl TryInto<u64>) -> String {
    let digits = count.try_into().map_or_else(|_| "?".to_owned(), |count| count.to_string());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as MiB with one place.
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Seconds as `3h 05m`, `5m 07s` or `7s`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.clamp(0.0, 1e9) as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m {seconds:02}s"),
        _ => format!("{hours}h {minutes:02}m"),
    }
}

/// Where a plan has the weights of the layers, in a word.
pub fn residence(plan: &Plan) -> &'static str {
    match plan.residence {
        Residence::Resident => "resident",
        Residence::Streamed => "streamed",
    }
}

/// What a plan chose to keep, in a word.
pub fn choice(plan: &Plan) -> &'static str {
    match plan.keep.blocks {
        blocks if blocks >= plan.layers => "everything",
        0 | 1 => "inputs",
        _ => "some",
    }
}

/// The plan as a table: one line a category, the largest first.
pub fn plan(plan: &Plan) -> String {
    let mut rows: Vec<_> = categories(&plan.report).collect();
    rows.sort_by_key(|(label, bytes)| (std::cmp::Reverse(*bytes), *label));
    let mut text = String::from("memory plan                       MiB\n");
    for (label, bytes) in rows {
        let _ = writeln!(text, "  {label:<22} {:>12}", mib(bytes));
    }
    let (total, budget) = (mib(plan.report.total.peak), mib(plan.budget));
    let kept = match (choice(plan), plan.keep.blocks, plan.layers) {
        ("everything", ..) => "layers keep everything for the way back".to_owned(),
        ("inputs", ..) => "layers keep their inputs and compute the rest again".to_owned(),
        (_, kept, layers) => format!(
            "{kept} of {layers} layers keep everything for the way back, the others compute it again"
        ),
    };
    let streamed = match (plan.residence, plan.keep.lanes) {
        (Residence::Resident, _) => String::new(),
        (Residence::Streamed, 1) => "; weights are read for every micro-batch".to_owned(),
        (Residence::Streamed, lanes) => {
            format!("; weights are read once there and once back for {lanes} micro-batches")
        }
    };
    let waiting = match (plan.keep.parked, plan.paging) {
        (false, _) => String::new(),
        (true, paging) => {
            let moments = if paging != Paging::Resident { " and moments" } else { "" };
            format!("; layer inputs{moments} wait in {} MiB of host memory", mib(plan.host))
        }
    };
    let verdict = if plan.fits() { "fits" } else { "DOES NOT FIT" };
    let _ = write!(
        text,
        "  {:<22} {total:>12}  of {budget} allowed: {verdict}; {kept}{streamed}{waiting}",
        "total"
    );
    text
}

/// What else the budget could hold, and what a larger one would buy.
pub fn outlook(outlook: &Outlook) -> String {
    let Outlook { everything, resident, longest_sequence, largest_batch, largest_member } = outlook;
    let member =
        largest_member.map_or_else(String::new, |name| format!(", or a model as large as {name}"));
    format!(
        "  the budget holds a sequence of {} tokens, or a micro-batch of {}{member}; all weights stay \
         with {} MiB, and nothing is computed twice with {} MiB",
        grouped(*longest_sequence),
        grouped(*largest_batch),
        mib(*resident),
        mib(*everything)
    )
}

/// Most bytes of each label.
pub fn categories(report: &Report) -> impl Iterator<Item = (&'static str, u64)> {
    report.labels.iter().map(|(label, usage)| (*label, usage.peak))
}

/// The categories as a JSON object.
pub fn categories_json(report: &Report) -> Value {
    let entries = categories(report).map(|(label, bytes)| (label.to_owned(), json!(bytes)));
    Value::Object(entries.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_threes() {
        let of = |count: u64| grouped(count);
        assert_eq!([of(0), of(999), of(1000), of(1234567)], ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn times_are_short() {
        assert_eq!([7.9, 67.0, 3900.0].map(duration), ["7s", "1m 07s", "1h 05m"]);
    }
}
