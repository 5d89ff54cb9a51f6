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
        ("fma", ["rm"]) => words!(|a, b, c| {
            let float = f32::from_bits;
            multiply_add_down(float(a), float(b), float(c)).to_bits()
        }),
        ("div", ["rn" | "full" | "approx"]) => floats!(|a, b| a / b),
        ("min", []) => floats!(|a, b| smaller(a, b)),
        ("max", []) => floats!(|a, b| larger(a, b)),
        ("neg", []) => words!(|a| a ^ 1 << 31),
        ("abs", []) => words!(|a| a & !(1 << 31)),
        ("copysign", []) => words!(|a, b| a & 1 << 31 | b & !(1 << 31)),
        ("rcp", ["rn" | "approx"]) => floats!(|a| 1.0 / a),
        ("sqrt", ["rn" | "approx"]) => floats!(|a| a.sqrt()),
        ("rsqrt", ["approx"]) => floats!(|a| (1.0 / f64::from(a).sqrt()) as f32),
        ("ex2", ["approx"]) => floats!(|a| f64::from(a).exp2() as f32),
        ("ex2", ["approx", "ftz"]) => {
            floats!(|a| flushed(f64::from(flushed(a)).exp2() as f32))
        }
        ("rcp", ["approx", "ftz"]) => floats!(|a| flushed(1.0 / flushed(a))),
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

/// The smaller number, or the one that is a number; of zeros the negative one.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

/// The larger number, or the one that is a number; of zeros the positive one.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

/// Numbers too small for the full precision become zeros of their sign.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// a·b + c, rounded down: the product is exact in f64, and the error of the sum is known.
fn multiply_add_down(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let of_c = sum - product;
    let error = (product - (sum - of_c)) + (c - of_c);
    let nearest = sum as f32;
    let above = f64::from(nearest) > sum || f64::from(nearest) == sum && error < 0.0;
    if above { nearest.next_down() } else { nearest }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_rounded_down_whatever_is_lost() {
        let tiny = 2.0_f32.powi(-80);
        assert_eq!(multiply_add_down(1.0, 1.0, tiny), 1.0);
        assert_eq!(multiply_add_down(1.0, 1.0, -tiny), 1.0_f32.next_down());
        assert_eq!(multiply_add_down(3.0, 0.5, 12_582_912.0), 12_582_913.0);
        assert_eq!(multiply_add_down(-3.0, 0.5, 12_582_912.0), 12_582_910.0);
        assert_eq!(multiply_add_down(2.0, 2.0, 1.0), 5.0);
        assert!(multiply_add_down(f32::NAN, 1.0, 1.0).is_nan());
        assert_eq!(multiply_add_down(f32::INFINITY, 1.0, 1.0), f32::INFINITY);
    }
}
