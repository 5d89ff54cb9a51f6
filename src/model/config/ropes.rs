//! The rotary fields, in both spellings.
//!
//! Older: `rope_theta`, `partial_rotary_factor`, `original_max_position_embeddings`, for Gemma 3
//! `rope_local_base_freq`, all at the top level, and `rope_scaling` with the type and its numbers.
//! Newer: `rope_parameters` with everything inside; for Gemma 3 one such object for each kind of
//! layer. A key of the object that its type does not know is refused, since it was meant to change
//! something.

use serde_json::Value;

use super::LARGEST_LENGTH;
use super::family::Family;
use super::fields::Fields;
use crate::error::{Error, escape};
use crate::model::rope::{Longrope, Rope, Scaling, Yarn};

/// θ where nothing is written, and for the full layers of Gemma 3.
const THETA: f64 = 10_000.0;
const THETA_GLOBAL: f64 = 1_000_000.0;

/// The largest stretch of the context taken.
const LARGEST_FACTOR: f64 = 1e6;

const TYPES: &str = "known are default, linear, dynamic, yarn, longrope and llama3";

/// The rotary tables in the order of their indices, and `max_position_embeddings`.
pub(super) fn read(
    fields: &Fields,
    family: Family,
    head_dim: usize,
) -> Result<(Vec<Rope>, usize), Error> {
    let max_positions = fields.size("max_position_embeddings", LARGEST_LENGTH)?;
    let newer = fields.object("rope_parameters")?;
    let older = fields.object("rope_scaling")?;
    if newer.is_some() && older.is_some() {
        let what = "stands beside rope_parameters, which says the same: remove one of them";
        return Err(fields.refuse("rope_scaling", what));
    }
    let source = |inside, theta_key, theta| Source {
        top: fields,
        inside,
        family,
        head_dim,
        max_positions,
        theta_key,
        theta,
    };
    let ropes = if family == Family::Gemma3 {
        let (full, sliding) = match newer {
            Some(both) => per_kind(fields, &both)?,
            None => (older, None),
        };
        vec![
            source(full, "rope_theta", THETA_GLOBAL).read()?,
            source(sliding, "rope_local_base_freq", THETA).read()?,
        ]
    } else {
        vec![source(newer.or(older), "rope_theta", THETA).read()?]
    };
    Ok((ropes, max_positions))
}

/// The objects for full and for sliding layers.
fn per_kind<'a>(
    fields: &Fields,
    both: &Fields<'a>,
) -> Result<(Option<Fields<'a>>, Option<Fields<'a>>), Error> {
    let (full, sliding) = ("full_attention", "sliding_attention");
    match both.keys().find(|key| *key != full && *key != sliding) {
        None => Ok((both.object(full)?, both.object(sliding)?)),
        Some(key) => {
            let what = format!("holds {}, expected {full} and {sliding}", escape(key));
            Err(fields.refuse("rope_parameters", what))
        }
    }
}

/// Where one table's numbers come from.
struct Source<'a> {
    top: &'a Fields<'a>,
    inside: Option<Fields<'a>>,
    family: Family,
    head_dim: usize,
    max_positions: usize,
    theta_key: &'static str,
    theta: f64,
}

impl Source<'_> {
    fn read(&self) -> Result<Rope, Error> {
        let theta = self.theta()?;
        let width = self.width()?;
        let Some(inside) = &self.inside else {
            return Ok(Rope::new(theta, width, Scaling::Default));
        };
        let name = self.type_name(inside)?;
        let scaling = self.scaling(inside, name, width)?;
        Ok(Rope::new(theta, width, scaling))
    }

    fn scaling(&self, inside: &Fields, name: &str, width: usize) -> Result<Scaling, Error> {
        let known: &[&str] = match name {
            "default" => &[],
            "linear" | "dynamic" => &["factor"],
            "yarn" => YARN,
            "longrope" => LONGROPE,
            "llama3" => LLAMA3,
            _ => return Err(inside.refuse(type_key(inside), format!("{}, {TYPES}", escape(name)))),
        };
        check_keys(inside, name, known)?;
        match name {
            "linear" => Ok(Scaling::Linear { factor: factor(inside)? }),
            "dynamic" => self.dynamic(inside, width),
            "yarn" => Ok(Scaling::Yarn(self.yarn(inside)?)),
            "longrope" => Ok(Scaling::Longrope(self.longrope(inside, width)?)),
            "llama3" => self.llama3(inside),
            _ => Ok(Scaling::Default),
        }
    }

    /// `rope_type`, formerly `type`. Phi-3 called longrope `su` and, for a time, `yarn`.
    fn type_name<'b>(&self, inside: &Fields<'b>) -> Result<&'b str, Error> {
        let (newer, older) = (inside.text("rope_type")?, inside.text("type")?);
        if let (Some(a), Some(b)) = (newer, older)
            && a != b
        {
            let what = format!("{}, but rope_type is {}: make them equal", escape(b), escape(a));
            return Err(inside.refuse("type", what));
        }
        match newer.or(older) {
            Some("su" | "yarn") if self.family == Family::Phi3 => Ok("longrope"),
            Some(name)
                if self.family == Family::Phi3 && !matches!(name, "default" | "longrope") =>
            {
                let what = format!("{}, Phi-3 knows default and longrope", escape(name));
                Err(inside.refuse(type_key(inside), what))
            }
            Some(name) => Ok(name),
            // Without a type, other keys would have no meaning.
            None => Ok("default"),
        }
    }

    fn theta(&self) -> Result<f64, Error> {
        let within = |fields: &Fields, key| fields.number_within(key, 1.001, 1e15);
        let top = within(self.top, self.theta_key)?;
        let inside = match &self.inside {
            None => None,
            Some(inside) => within(inside, "rope_theta")?,
        };
        Ok(self.same(self.theta_key, top, inside)?.unwrap_or(self.theta))
    }

    /// Rotated numbers per head.
    fn width(&self) -> Result<usize, Error> {
        let key = "partial_rotary_factor";
        let within = |fields: &Fields| fields.number_within(key, 0.0, 1.0);
        let inside = self.inside.as_ref().map(within).transpose()?.flatten();
        let share = self.same(key, within(self.top)?, inside)?.unwrap_or(1.0);
        let width = (self.head_dim as f64 * share) as usize;
        if share < 1.0 && self.family != Family::Phi3 {
            let what =
                format!("{share}, but {} rotates whole heads: write 1", self.family.architecture());
            return Err(self.holder(key).refuse(key, what));
        }
        if width == 0 || !width.is_multiple_of(2) {
            let what = format!(
                "{share}, which rotates {width} of the {} numbers of a head, expected an even \
                 number of them",
                self.head_dim
            );
            return Err(self.holder(key).refuse(key, what));
        }
        Ok(width)
    }

    /// The length of the first training, at the top level (Phi-3) or inside.
    fn original(&self, inside: &Fields) -> Result<Option<f64>, Error> {
        let key = "original_max_position_embeddings";
        let read = |fields: &Fields| fields.optional_size(key, LARGEST_LENGTH);
        let as_number = |length: Option<usize>| length.map(|length| length as f64);
        self.same(key, as_number(read(self.top)?), as_number(read(inside)?))
    }

    /// The object that holds `key`.
    fn holder(&self, key: &str) -> &Fields<'_> {
        match &self.inside {
            Some(inside) if inside.value(key).is_some() => inside,
            _ => self.top,
        }
    }

    /// The one value that stands in one place, or equal in both.
    fn same(&self, key: &str, top: Option<f64>, inside: Option<f64>) -> Result<Option<f64>, Error> {
        match (top, inside) {
            (Some(a), Some(b)) if a != b => {
                let what = format!("{a}, but {b} stands in the rotary object: make them equal");
                Err(self.top.refuse(key, what))
            }
            _ => Ok(inside.or(top)),
        }
    }

    fn dynamic(&self, inside: &Fields, width: usize) -> Result<Scaling, Error> {
        if width < 4 {
            let what = format!("dynamic needs at least 4 rotated numbers per head, not {width}");
            return Err(inside.refuse(type_key(inside), what));
        }
        Ok(Scaling::Dynamic { factor: factor(inside)?, max_positions: self.max_positions })
    }

    fn yarn(&self, inside: &Fields) -> Result<Yarn, Error> {
        let scale = |key| inside.number_within(key, 0.0, 1e6);
        let beta = |key, usual| {
            let found = inside.number_within(key, 1e-6, 1e6)?;
            Ok::<f64, Error>(found.unwrap_or(usual))
        };
        let yarn = Yarn {
            factor: factor(inside)?,
            original: self.original(inside)?.unwrap_or(self.max_positions as f64),
            beta_fast: beta("beta_fast", 32.0)?,
            beta_slow: beta("beta_slow", 1.0)?,
            mscale: scale("mscale")?,
            mscale_all_dim: scale("mscale_all_dim")?,
            attention_factor: gain(inside)?,
            truncate: inside.flag("truncate", true)?,
        };
        if yarn.beta_fast < yarn.beta_slow {
            let what =
                format!("{}, expected at least beta_slow {}", yarn.beta_fast, yarn.beta_slow);
            return Err(inside.refuse("beta_fast", what));
        }
        Ok(yarn)
    }

    fn llama3(&self, inside: &Fields) -> Result<Scaling, Error> {
        let of = |key| {
            let found = inside.number_within(key, 1e-6, 1e6)?;
            inside.needed(key, found, "a positive number, such as 1 (low) and 4 (high)")
        };
        let (low, high) = (of("low_freq_factor")?, of("high_freq_factor")?);
        if high <= low {
            let what = format!("{high}, expected more than low_freq_factor {low}");
            return Err(inside.refuse("high_freq_factor", what));
        }
        let original = self.needed_original(inside)?;
        Ok(Scaling::Llama3 { factor: factor(inside)?, low, high, original })
    }

    fn longrope(&self, inside: &Fields, width: usize) -> Result<Longrope, Error> {
        let original = self.needed_original(inside)?;
        if original < 2.0 {
            let what = "1, expected at least 2: its logarithm divides";
            return Err(inside.refuse("original_max_position_embeddings", what));
        }
        let stretch = inside.number_within("factor", 1.0, LARGEST_FACTOR)?;
        Ok(Longrope {
            factor: stretch.unwrap_or(self.max_positions as f64 / original),
            short: factors(inside, "short_factor", width)?,
            long: factors(inside, "long_factor", width)?,
            attention_factor: gain(inside)?,
            original: original as usize,
        })
    }

    fn needed_original(&self, inside: &Fields) -> Result<f64, Error> {
        let what = "the length that the model was first trained with";
        inside.needed("original_max_position_embeddings", self.original(inside)?, what)
    }
}

/// The spelling in which the type stands.
fn type_key(inside: &Fields) -> &'static str {
    if inside.value("rope_type").is_some() { "rope_type" } else { "type" }
}

const YARN: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "finetuned", // says how the model was made
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "truncate",
];

const LONGROPE: &[&str] = &[
    "attention_factor",
    "factor",
    "long_factor",
    "original_max_position_embeddings",
    "short_factor",
];

const LLAMA3: &[&str] =
    &["factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"];

const COMMON: &[&str] = &["partial_rotary_factor", "rope_theta", "rope_type", "type"];

fn check_keys(inside: &Fields, name: &str, known: &[&str]) -> Result<(), Error> {
    let is_known = |key: &str| known.contains(&key) || COMMON.contains(&key);
    match inside.keys().find(|key| !is_known(key)) {
        None => Ok(()),
        Some(key) => {
            let what = format!("not known for the rotary type {name}: remove it or name the type");
            Err(inside.refuse(key, what))
        }
    }
}

fn factor(inside: &Fields) -> Result<f64, Error> {
    let found = inside.number_within("factor", 1.0, LARGEST_FACTOR)?;
    inside.needed("factor", found, "how many times the context is stretched")
}

fn gain(inside: &Fields) -> Result<Option<f64>, Error> {
    inside.number_within("attention_factor", 1e-6, 1e6)
}

/// One divisor for each rotated pair.
fn factors(inside: &Fields, key: &str, width: usize) -> Result<Vec<f64>, Error> {
    let expected = format!("a list of {} positive numbers, half the rotated size", width / 2);
    let list = inside.needed(key, inside.list(key)?, &expected)?;
    if list.len() != width / 2 {
        return Err(inside.refuse(key, format!("has {} numbers, expected {expected}", list.len())));
    }
    let within = |value: &Value| value.as_f64().filter(|factor| (1e-6..=1e6).contains(factor));
    let numbers = list.iter().map(within).collect::<Option<Vec<_>>>();
    numbers.ok_or_else(|| inside.refuse(key, format!("expected {expected}")))
}
