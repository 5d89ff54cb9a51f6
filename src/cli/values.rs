//! What the text of a flag means, and the range it must lie in.
//!
//! Each parser says in its error what was expected; which flag it was about is added by whoever
//! called it (the command line, or `--config`).

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use qlora_train::data::Moment;
use qlora_train::train::checkpoints::Resume;

/// A whole number within `range`.
pub fn whole(range: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// A seed: what TOML can write as a whole number.
pub fn seed() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(0..=i64::MAX as u64)
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |value| value > 0.0)
}

/// A number, not negative.
pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a number, not negative", |value| value >= 0.0)
}

/// A number from 0 up to but not including 1.
pub fn below_one(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to less than 1", |value| (0.0..1.0).contains(&value))
}

/// A number above 0, and at most 1.
pub fn share(text: &str) -> Result<f64, String> {
    number(text, "a number above 0, at most 1", |value| value > 0.0 && value <= 1.0)
}

fn number(text: &str, expected: &str, allowed: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && allowed(value) => Ok(value),
        _ => Err(format!("expected {expected}")),
    }
}

/// A name that is not empty.
pub fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected a name".into()),
        name => Ok(name.to_owned()),
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 13] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("B", 1),
];

/// A size such as `24GiB`, `1.5GB` or `512M`; without a unit it is bytes.
pub fn bytes(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    let unit = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (digits, size) = unit.unwrap_or((text, 1));
    let wrong = || "expected a size such as 24GiB or 512MiB".to_owned();
    let value: f64 = digits.trim_end().parse().map_err(|_| wrong())?;
    let bytes = value * size as f64;
    match bytes >= 1.0 && bytes < 2f64.powi(63) {
        true => Ok(Bytes(bytes as u64)),
        false => Err(wrong()),
    }
}

impl fmt::Display for Bytes {
    /// The largest unit that says it exactly, so that it is read back the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = UNITS[..4].iter().rev();
        match binary.clone().find(|(_, size)| self.0.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub fn device(text: &str) -> Result<DeviceName, String> {
    let number = |text: &str| text.parse().map(DeviceName::Cuda);
    match text {
        "auto" => Ok(DeviceName::Auto),
        "cpu" => Ok(DeviceName::Cpu),
        "cuda" => Ok(DeviceName::Cuda(0)),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|text| number(text).ok())
            .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// `auto`, or a checkpoint folder.
pub fn resume(text: &str) -> Result<Resume, String> {
    match text {
        "" => Err("expected auto or a checkpoint folder".into()),
        "auto" | "latest" => Ok(Resume::Auto),
        folder => Ok(Resume::From(PathBuf::from(folder))),
    }
}

/// A day, at its start in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date(i64);

const DAY: i64 = 86_400;

impl Date {
    /// Today.
    pub fn today() -> Self {
        Self(Moment::now().unix().div_euclid(DAY))
    }

    /// What a chat template sees.
    pub fn moment(self) -> Moment {
        Moment::from_unix(self.0 * DAY)
    }
}

/// A day from 1970 on, as `YYYY-MM-DD`.
pub fn date(text: &str) -> Result<Date, String> {
    let part = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let parts = || Some((part(0..4)?, part(5..7)?, part(8..10)?));
    let days = parts().map(|(year, month, day)| Date(days_from_civil(year, month, day)));
    days.filter(|date| date.0 >= 0 && date.to_string() == text)
        .ok_or_else(|| "expected a day as YYYY-MM-DD".to_owned())
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.0);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// Days since 1970-01-01 in the Gregorian calendar. Years are counted from March, so that the day
/// that only leap years have comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    era * 146_097 + year * 365 + year / 4 - year / 100 + of_year - 719_468
}

/// The way back.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, days) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (days - days / 1_460 + days / 36_524 - days / 146_096) / 365;
    let of_year = days - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_mean_what_they_say_and_are_read_back_the_same() {
        let size = |text: &str| bytes(text).map(|bytes| bytes.0);
        assert_eq!(size("24GiB"), Ok(24 << 30));
        assert_eq!(size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1000"), Ok(1000));
        for wrong in ["", "GiB", "-1GiB", "0", "nan", "inf", "1e30TiB", "12 apples", "0x10"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        for value in [1, 1000, 1024, 3 << 20, 24 << 30, (1 << 40) + 1] {
            let text = Bytes(value).to_string();
            assert_eq!(size(&text), Ok(value), "{text}");
        }
    }

    #[test]
    fn numbers_out_of_range_or_not_finite_are_refused() {
        for wrong in ["0", "-1", "nan", "inf", "1e999", "x", ""] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
        assert_eq!(positive("2e-4"), Ok(2e-4));
        assert!(below_one("1").is_err() && below_one("0") == Ok(0.0));
        assert!(share("0").is_err() && share("1") == Ok(1.0));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let days = |text| date(text).map(|date| date.moment().unix() / DAY);
        assert_eq!(days("1970-01-01"), Ok(0));
        assert_eq!(days("2000-02-29"), Ok(11_016));
        assert_eq!(days("2024-12-31"), Ok(20_088));
        for wrong in ["2023-02-29", "2024-13-01", "2024-1-01", "1969-12-31", "today", ""] {
            assert!(days(wrong).is_err(), "{wrong}");
        }
        let back = |days| Date(days).to_string();
        assert!((0..40_000).all(|day| date(&back(day)) == Ok(Date(day))));
    }
}
