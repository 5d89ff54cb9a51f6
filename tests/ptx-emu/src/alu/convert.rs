//! Conversions.

use super::Alu;
use crate::ptx::Type::{self, B, Bf16, F16, F32, F64, S, U};

/// `cvt.to.from`.
pub(super) fn find(name: &str, modifiers: &[&str], to: Type, from: Type) -> Option<Alu> {
    if name != "cvt" {
        return None;
    }
    match modifiers {
        [] => exact(to, from),
        ["rn"] => rounded(to, from),
        ["rzi"] => toward_zero(to, from),
        // To 0 to 1, and what is no number to 0.
        ["sat"] => {
            (to == F32 && from == F32).then_some(words!(|a| saturated(f32::from_bits(a)).to_bits()))
        }
        ["rni"] => (to == F32 && from == F32)
            .then_some(words!(|a| f32::from_bits(a).round_ties_even().to_bits())),
        _ => None,
    }
}

#[inline(always)]
fn saturated(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

fn exact(to: Type, from: Type) -> Option<Alu> {
    Some(match (to, from) {
        (U(8) | S(8) | B(8), U(4) | U(2) | U(1)) => Alu::WordToLong(|a| a.map(u64::from)),
        (U(8) | S(8), S(4)) => Alu::WordToLong(|a| a.map(|a| i64::from(a as i32) as u64)),
        (U(8) | S(8), S(2)) => Alu::WordToLong(|a| a.map(|a| i64::from(a as i16) as u64)),
        (U(4) | S(4), U(8) | S(8)) => Alu::LongToWord(|a| a.map(|a| a as u32)),
        (U(2) | S(2), U(8) | S(8)) => Alu::LongToWord(|a| a.map(|a| a as u32 & 0xffff)),
        (U(4) | S(4), S(2)) => words!(|a| i32::from(a as i16) as u32),
        (U(4) | S(4), S(1)) => words!(|a| i32::from(a as i8) as u32),
        (U(2) | S(2), S(1)) => words!(|a| u32::from(i16::from(a as i8) as u16)),
        (U(4) | S(4) | U(2) | S(2), U(1)) | (U(1), _) => words!(|a| a & 0xff),
        (U(4) | S(4), U(2)) | (U(2) | S(2), U(4) | S(4)) => words!(|a| a & 0xffff),
        (F32, Bf16) => words!(|a| a << 16),
        (F32, F16) => words!(|a| half_to_single(a as u16)),
        (F64, F32) => Alu::WordToLong(|a| a.map(|a| f64::from(f32::from_bits(a)).to_bits())),
        _ => return None,
    })
}

fn rounded(to: Type, from: Type) -> Option<Alu> {
    Some(match (to, from) {
        (F32, S(4)) => words!(|a| (a as i32 as f32).to_bits()),
        (F32, U(4) | U(2)) => words!(|a| (a as f32).to_bits()),
        (F32, U(8)) => Alu::LongToWord(|a| a.map(|a| (a as f32).to_bits())),
        (F32, S(8)) => Alu::LongToWord(|a| a.map(|a| (a as i64 as f32).to_bits())),
        (F32, F64) => Alu::LongToWord(|a| a.map(|a| (f64::from_bits(a) as f32).to_bits())),
        (F64, S(4)) => Alu::WordToLong(|a| a.map(|a| f64::from(a as i32).to_bits())),
        (F64, U(4)) => Alu::WordToLong(|a| a.map(|a| f64::from(a).to_bits())),
        (Bf16, F32) => words!(|a| to_bf16(a)),
        _ => return None,
    })
}

fn toward_zero(to: Type, from: Type) -> Option<Alu> {
    Some(match (to, from) {
        (S(4), F32) => words!(|a| f32::from_bits(a) as i32 as u32),
        (U(4), F32) => words!(|a| f32::from_bits(a) as u32),
        (F32, F32) => words!(|a| f32::from_bits(a).trunc().to_bits()),
        _ => return None,
    })
}

/// `cvt.rn.bf16x2.f32`: the first number goes to the upper half.
pub(super) fn pair(modifiers: &[&str], from: Type) -> Option<Alu> {
    let known = modifiers == ["rn", "bf16x2"] && from == F32;
    known.then_some(words!(|high, low| to_bf16(high) << 16 | to_bf16(low)))
}

/// Where the window of shared memory begins in generic addresses.
pub(crate) const SHARED_WINDOW: u64 = 0x7f00_0000_0000;

/// `cvta` from a space to generic addresses, and with `to` back.
pub(super) fn address(modifiers: &[&str], ty: Type) -> Option<Alu> {
    if ty != U(8) {
        return None;
    }
    Some(match modifiers {
        ["global"] | ["to", "global"] | ["const"] | ["param"] => Alu::L1(|a| *a),
        ["shared"] => Alu::L1(|a| a.map(|a| a + SHARED_WINDOW)),
        ["to", "shared"] => Alu::L1(|a| a.map(|a| a.wrapping_sub(SHARED_WINDOW))),
        _ => return None,
    })
}

/// To nearest, ties to even; NaN becomes the GPU's.
fn to_bf16(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() {
        return 0x7fff;
    }
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

fn half_to_single(half: u16) -> u32 {
    let (sign, exponent, fraction) =
        (u32::from(half >> 15) << 31, u32::from(half >> 10 & 31), u32::from(half & 0x3ff));
    match exponent {
        0 => sign | (fraction as f32 / 16_777_216.0).to_bits(),
        31 => sign | 0x7f80_0000 | fraction << 13,
        _ => sign | (exponent + 112) << 23 | fraction << 13,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_to_nearest_even() {
        for (bits, expected) in [
            (0x3f80_0000, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f81_8000, 0x3f82),
            (0x3f80_8001, 0x3f81),
            (0x7f7f_ffff, 0x7f80),
            (0x7f80_0001, 0x7fff),
        ] {
            assert_eq!(to_bf16(bits), expected, "{bits:#x}");
        }
    }

    #[test]
    fn half_precision_is_widened_exactly() {
        for (half, expected) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 5.960_464_5e-8), (0x7bff, 65504.0)]
        {
            assert_eq!(f32::from_bits(half_to_single(half)), expected, "{half:#x}");
        }
        assert_eq!(half_to_single(0x7c00), f32::INFINITY.to_bits());
    }
}
