//! Comparisons: a mask of the lanes in which they hold.

use super::{Alu, Longs, Words};
use crate::ptx::Type;

/// The comparison, if there is one of this name.
pub(super) fn find(modifiers: &[&str], ty: Type) -> Option<Alu> {
    let [name] = modifiers else { return None };
    match ty {
        Type::U(4) | Type::B(4) | Type::U(2) | Type::B(2) => unsigned_words(name),
        Type::S(4) => signed_words(name),
        Type::S(2) => signed_halves(name),
        Type::U(8) | Type::B(8) => unsigned_longs(name),
        Type::S(8) => signed_longs(name),
        Type::F32 => floats(name),
        Type::F64 => doubles(name),
        _ => None,
    }
}

#[inline(always)]
fn words(a: &Words, b: &Words, holds: impl Fn(u32, u32) -> bool) -> u32 {
    (0..32).fold(0, |mask, lane| mask | u32::from(holds(a[lane], b[lane])) << lane)
}

#[inline(always)]
fn longs(a: &Longs, b: &Longs, holds: impl Fn(u64, u64) -> bool) -> u32 {
    (0..32).fold(0, |mask, lane| mask | u32::from(holds(a[lane], b[lane])) << lane)
}

/// A function by the name of an order, of lanes seen through `$view`.
macro_rules! ordered {
    ($function:ident, $kind:ident, $lanes:ident, $view:expr) => {
        fn $function(name: &str) -> Option<Alu> {
            Some(match name {
                "eq" => Alu::$kind(|a, b| $lanes(a, b, |a, b| $view(a) == $view(b))),
                "ne" => Alu::$kind(|a, b| $lanes(a, b, |a, b| $view(a) != $view(b))),
                "lt" | "lo" => Alu::$kind(|a, b| $lanes(a, b, |a, b| $view(a) < $view(b))),
                "le" | "ls" => Alu::$kind(|a, b| $lanes(a, b, |a, b| $view(a) <= $view(b))),
                "gt" | "hi" => Alu::$kind(|a, b| $lanes(a, b, |a, b| $view(a) > $view(b))),
                "ge" | "hs" => Alu::$kind(|a, b| $lanes(a, b, |a, b| $view(a) >= $view(b))),
                _ => return None,
            })
        }
    };
}

ordered!(unsigned_words, CompareWords, words, |a: u32| a);
ordered!(signed_words, CompareWords, words, |a: u32| a as i32);
ordered!(signed_halves, CompareWords, words, |a: u32| a as i16);
ordered!(unsigned_longs, CompareLongs, longs, |a: u64| a);
ordered!(signed_longs, CompareLongs, longs, |a: u64| a as i64);
ordered!(doubles, CompareLongs, longs, f64::from_bits);

/// f32 lanes in which a comparison holds.
macro_rules! floats {
    (|$a:ident, $b:ident| $holds:expr) => {
        Alu::CompareWords(|a, b| {
            words(a, b, |a, b| {
                let ($a, $b) = (f32::from_bits(a), f32::from_bits(b));
                $holds
            })
        })
    };
}

/// Those ending in `u` hold if one of both is not a number; the plain ones do not, `ne` included.
fn floats(name: &str) -> Option<Alu> {
    Some(match name {
        "eq" => floats!(|a, b| a == b),
        "ne" => floats!(|a, b| a != b && !unordered(a, b)),
        "lt" => floats!(|a, b| a < b),
        "le" => floats!(|a, b| a <= b),
        "gt" => floats!(|a, b| a > b),
        "ge" => floats!(|a, b| a >= b),
        "equ" => floats!(|a, b| a == b || unordered(a, b)),
        "neu" => floats!(|a, b| a != b),
        "ltu" => floats!(|a, b| a < b || unordered(a, b)),
        "leu" => floats!(|a, b| a <= b || unordered(a, b)),
        "gtu" => floats!(|a, b| a > b || unordered(a, b)),
        "geu" => floats!(|a, b| a >= b || unordered(a, b)),
        "nan" => floats!(|a, b| unordered(a, b)),
        "num" => floats!(|a, b| !unordered(a, b)),
        _ => return None,
    })
}

/// Whether one of both is not a number.
#[inline(always)]
fn unordered(a: f32, b: f32) -> bool {
    a.is_nan() || b.is_nan()
}
