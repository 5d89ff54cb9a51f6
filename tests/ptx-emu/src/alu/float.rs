//! Floating-point numbers.

use super::{Alu, Words};
use crate::ptx::Type;

/// f32 lanes.
macro_rules! floats {
    (|$a:ident| $value:expr) => {
        words!(|x| {
            let $a = f32::from_bits(x);
            f32::to_bits($value)
        })
    };
    (|$a:ident, $b:ident| $value:expr) => {
        words!(|x, y| {
            let ($a, $b) = (f32::from_bits(x), f32::from_bits(y));
            f32::to_bits($value)
        })
    };
}

/// f64 lanes.
macro_rules! doubles {
    (|$a:ident, $b:ident| $value:expr) => {
        longs!(|x, y| {
            let ($a, $b) = (f64::from_bits(x), f64::from_bits(y));
            f64::to_bits($value)
        })
    };
}

/// The function, if floating-point numbers have one of this name. Approximate ones are exact and
/// rounded once.
pub(super) fn find(name: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match ty {
        Type::F32 => single(name, modifiers),
        Type::F64 => double(name, modifiers),
        _ => None,
    }
}

fn single(name: &str, modifiers: &[&str]) -> Option<Alu> {
    Some(match (name, modifiers) {
        ("add", [] | ["rn"]) => floats!(|a, b| a + b),
        ("sub", [] | ["rn"]) => floats!(|a, b| a - b),
        ("mul", [] | ["rn"]) => floats!(|a, b| a * b),
        ("fma", ["rn"]) => Alu::W3(multiply_add),
        ("div", ["rn" | "full" | "approx"]) => floats!(|a, b| a / b),
        ("min", []) => floats!(|a, b| a.min(b)),
        ("max", []) => floats!(|a, b| a.max(b)),
        ("neg", []) => words!(|a| a ^ 1 << 31),
        ("abs", []) => words!(|a| a & !(1 << 31)),
        ("copysign", []) => words!(|a, b| a & 1 << 31 | b & !(1 << 31)),
        ("rcp", ["rn" | "approx"]) => floats!(|a| 1.0 / a),
        ("sqrt", ["rn" | "approx"]) => floats!(|a| a.sqrt()),
        ("rsqrt", ["approx"]) => floats!(|a| (1.0 / f64::from(a).sqrt()) as f32),
        ("ex2", ["approx"]) => floats!(|a| f64::from(a).exp2() as f32),
        ("lg2", ["approx"]) => floats!(|a| f64::from(a).log2() as f32),
        ("tanh", ["approx"]) => floats!(|a| f64::from(a).tanh() as f32),
        _ => return None,
    })
}

fn double(name: &str, modifiers: &[&str]) -> Option<Alu> {
    Some(match (name, modifiers) {
        ("add", [] | ["rn"]) => doubles!(|a, b| a + b),
        ("sub", [] | ["rn"]) => doubles!(|a, b| a - b),
        ("mul", [] | ["rn"]) => doubles!(|a, b| a * b),
        ("div", ["rn"]) => doubles!(|a, b| a / b),
        ("sqrt", ["rn"]) => longs!(|a| f64::from_bits(a).sqrt().to_bits()),
        ("neg", []) => longs!(|a| a ^ 1 << 63),
        ("fma", ["rn"]) => longs!(|a, b, c| {
            f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
        }),
        _ => return None,
    })
}

/// a·b + c, rounded once.
fn multiply_add(a: &Words, b: &Words, c: &Words) -> Words {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the machine has both.
        return unsafe { multiply_add_fused(a, b, c) };
    }
    multiply_add_any(a, b, c)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_fused(a: &Words, b: &Words, c: &Words) -> Words {
    multiply_add_any(a, b, c)
}

#[inline(always)]
fn multiply_add_any(a: &Words, b: &Words, c: &Words) -> Words {
    let float = f32::from_bits;
    std::array::from_fn(|l| float(a[l]).mul_add(float(b[l]), float(c[l])).to_bits())
}
