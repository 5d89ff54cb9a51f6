//! `--config FILE.toml`: flags from a file, in snake_case; the command line wins over them.
//!
//! Every key becomes the flag of that name and goes through the same parser, so that names, ranges
//! and defaults are written down once. Keys are added one by one: the one that the parser refuses
//! is the one that the error names. `model` and `data` may stand in the file too. A flag of training
//! that another command does not have is passed over there, so that `train_config.toml` serves all.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use qlora_train::error::{Error, Place, escape};
use qlora_train::json::read_text;
use toml::{Table, Value};

use super::Refusal;

/// Largest file that is taken for settings.
const LARGEST: u64 = 1 << 20;

/// What was typed, and under it what the file of `--config` says.
pub fn matches(mut program: Command, typed: Vec<OsString>) -> Result<ArgMatches, Refusal> {
    program.build();
    let program = &program;
    let parse = |arguments: &[OsString]| program.clone().try_get_matches_from(arguments);
    let matches = parse(&typed).map_err(Refusal::Usage)?;
    let (command, of_command) = match matches.subcommand() {
        None => (program, &matches),
        Some((name, of_command)) => {
            let command = program.find_subcommand(name).expect("the parser knows its commands");
            (command, of_command)
        }
    };
    let path = of_command.try_get_one::<std::path::PathBuf>("config").ok().flatten();
    let Some(path) = path.cloned() else {
        return Ok(matches);
    };
    let mut line = Line::new(typed, matches.subcommand_name().is_some());
    let mut merged = matches.clone();
    for (key, value) in read(&path).map_err(Refusal::Config)? {
        let place = Place::file(&path).field(&key);
        let refuse = |what: String| Refusal::Config(Error::input(place.clone(), what));
        let Some(arg) = find(command, &key) else {
            match find(program, &key) {
                Some(_) => continue,
                None => return Err(refuse(unknown(command, &key))),
            }
        };
        if of_command.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            continue;
        }
        line.add(arg, arguments(arg, &key, &value).map_err(refuse)?);
        merged = parse(&line.arguments()).map_err(|error| refuse(reason(&error)))?;
    }
    Ok(merged)
}

fn read(path: &Path) -> Result<Table, Error> {
    let text = read_text(path, LARGEST)?;
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(""));
        let line = 1 + before.matches('\n').count();
        let what = format!("not valid TOML: {}", error.message());
        Error::input(Place::file(path).line(line), what)
    })
}

/// A command line that grows by settings of the file.
struct Line {
    /// The program's name, and the command's where there is one.
    front: Vec<OsString>,
    flags: Vec<OsString>,
    typed: Vec<OsString>,
    /// With the place of each.
    positionals: Vec<(usize, OsString)>,
}

impl Line {
    fn new(mut typed: Vec<OsString>, has_command: bool) -> Self {
        let rest = typed.split_off(1 + usize::from(has_command));
        Self { front: typed, flags: Vec::new(), typed: rest, positionals: Vec::new() }
    }

    fn add(&mut self, arg: &Arg, arguments: Vec<String>) {
        let arguments = arguments.into_iter().map(OsString::from);
        match arg.get_index() {
            None => self.flags.extend(arguments),
            Some(place) => self.positionals.extend(arguments.map(|argument| (place, argument))),
        }
        self.positionals.sort_by_key(|(place, _)| *place);
    }

    /// The file's flags come before those typed, its positionals behind them.
    fn arguments(&self) -> Vec<OsString> {
        let separator = match self.positionals.is_empty() || self.typed.iter().any(|a| a == "--") {
            true => None,
            false => Some(OsString::from("--")),
        };
        let parts = self.front.iter().chain(&self.flags).chain(&self.typed).chain(&separator);
        parts.chain(self.positionals.iter().map(|(_, argument)| argument)).cloned().collect()
    }
}

/// The flag or positional that `key` means.
fn find<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let long = key.replace('_', "-");
    let named = |arg: &&Arg| {
        let aliases = arg.get_visible_aliases().unwrap_or_default();
        let positional = arg.is_positional() && arg.get_id() == key;
        positional || arg.get_long() == Some(&long) || aliases.contains(&long.as_str())
    };
    let meant = command.get_arguments().find(named).or_else(|| {
        // `shuffle = false` is `--no-shuffle`.
        let negated = format!("no-{long}");
        command.get_arguments().find(|arg| arg.get_long() == Some(&negated))
    });
    meant.filter(|arg| !["config", "help", "version", "json"].contains(&arg.get_id().as_str()))
}

/// The setting as it would have been typed.
fn arguments(arg: &Arg, key: &str, value: &Value) -> Result<Vec<String>, String> {
    let Some(long) = arg.get_long() else {
        return texts(arg, value);
    };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let Value::Boolean(set) = value else {
            return Err(wrong_kind(value, "true or false"));
        };
        return Ok(switch(arg, long, key, *set).into_iter().collect());
    }
    let texts = texts(arg, value)?;
    match arg.get_value_delimiter() {
        Some(delimiter) => Ok(vec![format!("--{long}={}", texts.join(&delimiter.to_string()))]),
        None => Ok(texts.iter().map(|text| format!("--{long}={text}")).collect()),
    }
}

/// A switch that is typed or not; `packing = false` is `--no-packing`.
fn switch(arg: &Arg, long: &str, key: &str, set: bool) -> Option<String> {
    let negated_key = long == format!("no-{}", key.replace('_', "-"));
    if set != negated_key {
        return Some(format!("--{long}"));
    }
    (arg.get_id() == "packing").then(|| "--no-packing".to_owned())
}

/// The texts of a value that is of the kind the flag wants.
fn texts(arg: &Arg, value: &Value) -> Result<Vec<String>, String> {
    let many = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    match value {
        Value::Array(list) if many => {
            let one = |value: &Value| text(arg, value);
            list.iter().map(one).collect()
        }
        value => Ok(vec![text(arg, value)?]),
    }
}

fn text(arg: &Arg, value: &Value) -> Result<String, String> {
    let kind = arg.get_value_parser().type_id();
    let whole = [TypeId::of::<usize>(), TypeId::of::<u64>()].iter().any(|id| kind == *id);
    match value {
        Value::Integer(number) if whole || kind == TypeId::of::<f64>() => Ok(number.to_string()),
        Value::Integer(number) if arg.get_id() == "memory_budget" => Ok(number.to_string()),
        Value::Float(number) if kind == TypeId::of::<f64>() => Ok(number.to_string()),
        _ if whole => Err(wrong_kind(value, "a whole number")),
        _ if kind == TypeId::of::<f64>() => Err(wrong_kind(value, "a number")),
        Value::String(text) => Ok(text.clone()),
        _ => Err(wrong_kind(value, "a string")),
    }
}

fn wrong_kind(value: &Value, expected: &str) -> String {
    let found = match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a point",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    };
    format!("{found}, expected {expected}")
}

fn unknown(command: &Command, key: &str) -> String {
    let known = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned));
    let known = known.map(|long| long.replace('-', "_"));
    let nearest = known.map(|name| (distance(&name, key), name)).min();
    match nearest.filter(|(distance, name)| *distance <= name.len() / 3 + 1) {
        Some((_, name)) => format!("no such setting; did you mean {name}?"),
        None => format!("no such setting: {} is no flag", escape(&key.replace('_', "-"))),
    }
}

/// Letters to insert, remove or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}

/// The parser's own words without its advice on the command line.
fn reason(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let told = lines.take_while(|line| !line.starts_with("For more information"));
    let told = told.filter(|line| !line.starts_with("Usage:")).collect::<Vec<_>>().join(" ");
    told.strip_prefix("error: ").unwrap_or(&told).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_near_its_word() {
        assert_eq!(distance("lora_r", "lora_r"), 0);
        assert_eq!(distance("learning_rate", "learing_rate"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
