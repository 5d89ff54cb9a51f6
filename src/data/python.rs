//! What Python brings into a chat template: values written Python's way, `tojson`, dates.
//!
//! Measured against Jinja2's output; where the engine's own functions agree with Python they are
//! left alone. Used by [`super::template`] only.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};

/// A moment in UTC: what `strftime_now` shows to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    seconds: i64,
}

impl Moment {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub fn from_unix(seconds: i64) -> Self {
        Self { seconds }
    }

    /// The machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::from_unix(since.map_or(0, |since| since.as_secs() as i64))
    }

    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub fn unix(self) -> i64 {
        self.seconds
    }

    /// C's `strftime` in the C locale; an unknown letter stays as it is.
    fn format(self, pattern: &str) -> String {
        let date = Date::of(self.seconds);
        let mut out = String::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match rest.next() {
                Some('-') => {
                    let part = date.part(rest.next().unwrap_or('%'));
                    let short = part.trim_start_matches(['0', ' ']);
                    out.push_str(if short.is_empty() { "0" } else { short });
                }
                Some(letter) => out.push_str(&date.part(letter)),
                None => out.push('%'),
            }
        }
        out
    }
}

struct Date {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    day_of_year: i64,
    second: i64,
}

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Date {
    fn of(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let weekday = (days + 4).rem_euclid(7) as usize;
        let (mut year, mut left) = (1970, days);
        while left < 0 {
            year -= 1;
            left += days_of(year);
        }
        while left >= days_of(year) {
            left -= days_of(year);
            year += 1;
        }
        let day_of_year = left + 1;
        let mut month = 0;
        while left >= days_of_month(year, month) {
            left -= days_of_month(year, month);
            month += 1;
        }
        let second = seconds.rem_euclid(86_400);
        Self { year, month, day: left + 1, weekday, day_of_year, second }
    }

    fn part(&self, letter: char) -> String {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        let half_day = if hour % 12 == 0 { 12 } else { hour % 12 };
        match letter {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'B' => MONTHS[self.month].to_string(),
            'b' | 'h' => MONTHS[self.month][..3].to_string(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'A' => DAYS[self.weekday].to_string(),
            'a' => DAYS[self.weekday][..3].to_string(),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{hour:02}"),
            'I' => format!("{half_day:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_string(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_string(),
            'z' => "+0000".to_string(),
            '%' => "%".to_string(),
            other => format!("%{other}"),
        }
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64) -> i64 {
    365 + i64::from(is_leap(year))
}

fn days_of_month(year: i64, month: usize) -> i64 {
    match month {
        1 => 28 + i64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// A JSON value as templates see it.
pub(super) fn value(json: &serde_json::Value) -> Value {
    serde_json::from_value(json.clone()).expect("every JSON value is a template value")
}

/// Adds what Hugging Face's renderer has and the engine has not.
pub(super) fn extend(environment: &mut Environment<'static>, now: Moment) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(write_value);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |pattern: &str| now.format(pattern));
}

/// `{{ value }}`: Python writes True, False and None; anything else is as the engine writes it.
fn write_value(out: &mut Output<'_>, state: &mut State, value: &Value) -> Result<(), Error> {
    let name = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(name).map_err(Error::from)
}

/// Bounds the memory that a template can ask for.
const WIDEST_INDENT: usize = 32;

/// Python's `json.dumps` as Hugging Face calls it: no ASCII escapes, `, ` and `: ` between.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let indent = options.get::<Option<usize>>("indent")?;
    if indent.is_some_and(|width| width > WIDEST_INDENT) {
        let what = format!("an indent of more than {WIDEST_INDENT}");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let comma = if indent.is_some() { "," } else { ", " };
    let mut writer = JsonWriter {
        out: String::new(),
        comma: comma.to_string(),
        colon: ": ".to_string(),
        indent,
        escape: if ascii { Escape::Ascii } else { Escape::Least },
        order: if sort { Order::Sorted } else { Order::AsGiven },
    };
    if let Some([comma, colon]) = separators.as_deref() {
        (writer.comma, writer.colon) = (comma.clone(), colon.clone());
    }
    writer.value(&json, 0);
    Ok(writer.out)
}

enum Escape {
    Ascii,
    Least,
}

#[derive(PartialEq)]
enum Order {
    Sorted,
    AsGiven,
}

struct JsonWriter {
    out: String,
    comma: String,
    colon: String,
    indent: Option<usize>,
    escape: Escape,
    order: Order,
}

impl JsonWriter {
    fn value(&mut self, value: &serde_json::Value, depth: usize) {
        match value {
            serde_json::Value::String(text) => self.string(text),
            serde_json::Value::Array(items) if items.is_empty() => self.out.push_str("[]"),
            serde_json::Value::Object(map) if map.is_empty() => self.out.push_str("{}"),
            serde_json::Value::Array(items) => self.array(items, depth),
            serde_json::Value::Object(map) => self.object(map, depth),
            other => self.out.push_str(&other.to_string()),
        }
    }

    fn array(&mut self, items: &[serde_json::Value], depth: usize) {
        self.out.push('[');
        for (index, item) in items.iter().enumerate() {
            self.separate(index, depth + 1);
            self.value(item, depth + 1);
        }
        self.new_line(depth);
        self.out.push(']');
    }

    fn object(&mut self, map: &serde_json::Map<String, serde_json::Value>, depth: usize) {
        let mut entries: Vec<_> = map.iter().collect();
        if self.order == Order::Sorted {
            entries.sort_by_key(|(key, _)| *key);
        }
        self.out.push('{');
        for (index, (key, value)) in entries.into_iter().enumerate() {
            self.separate(index, depth + 1);
            self.string(key);
            self.out.push_str(&self.colon);
            self.value(value, depth + 1);
        }
        self.new_line(depth);
        self.out.push('}');
    }

    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(&self.comma);
        }
        self.new_line(depth);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        match self.escape {
            Escape::Least => self.out.push_str(&quoted),
            Escape::Ascii => self.ascii(&quoted),
        }
    }

    fn ascii(&mut self, quoted: &str) {
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(self.out, "\\u{unit:04x}").expect("writing to a string cannot fail");
            }
        }
    }
}
