//! Integers and bits.

use super::Alu;
use crate::ptx::Type;
use Type::{B, S, U};

/// The function, if integers have one of this name.
pub(super) fn find(name: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (modifiers, ty) {
        ([], U(4) | S(4) | B(4)) => word(name, ty),
        ([], U(8) | S(8) | B(8)) => long(name, ty),
        ([], U(2) | S(2) | B(2)) => half(name, ty),
        (["lo"], U(2) | S(2)) => {
            (name == "mul").then_some(words!(|a, b| a.wrapping_mul(b) & 0xffff))
        }
        (["lo"], U(4) | S(4)) => Some(match name {
            "mul" => words!(|a, b| a.wrapping_mul(b)),
            "mad" => words!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            _ => return None,
        }),
        (["lo"], U(8) | S(8)) => Some(match name {
            "mul" => longs!(|a, b| a.wrapping_mul(b)),
            "mad" => longs!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            _ => return None,
        }),
        (["hi"], U(4)) => {
            (name == "mul").then_some(words!(|a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32))
        }
        (["hi"], S(4)) => (name == "mul")
            .then_some(words!(|a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32)),
        (["hi"], U(8)) => {
            (name == "mul").then_some(longs!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64))
        }
        (["wide"], U(4)) => wide_unsigned(name),
        (["wide"], S(4)) => wide_signed(name),
        (["l", "wrap"], B(4)) => (name == "shf").then_some(words!(|low, high, n| {
            ((u64::from(high) << 32 | u64::from(low)) << (n & 31) >> 32) as u32
        })),
        (["r", "wrap"], B(4)) => (name == "shf").then_some(words!(|low, high, n| {
            ((u64::from(high) << 32 | u64::from(low)) >> (n & 31)) as u32
        })),
        _ => None,
    }
}

fn word(name: &str, ty: Type) -> Option<Alu> {
    let signed = matches!(ty, S(_));
    Some(match (name, signed) {
        ("add", _) => words!(|a, b| a.wrapping_add(b)),
        ("sub", _) => words!(|a, b| a.wrapping_sub(b)),
        ("neg", _) => words!(|a| a.wrapping_neg()),
        ("abs", true) => words!(|a| (a as i32).unsigned_abs()),
        ("min", true) => words!(|a, b| (a as i32).min(b as i32) as u32),
        ("max", true) => words!(|a, b| (a as i32).max(b as i32) as u32),
        ("min", false) => words!(|a, b| a.min(b)),
        ("max", false) => words!(|a, b| a.max(b)),
        // What a GPU gives for a division by zero is all ones.
        ("div", true) => words!(|a, b| (a as i32).checked_div(b as i32).unwrap_or(-1) as u32),
        ("rem", true) => words!(|a, b| (a as i32).checked_rem(b as i32).unwrap_or(0) as u32),
        ("div", false) => words!(|a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        ("rem", false) => words!(|a, b| a.checked_rem(b).unwrap_or(a)),
        ("and", _) => words!(|a, b| a & b),
        ("or", _) => words!(|a, b| a | b),
        ("xor", _) => words!(|a, b| a ^ b),
        ("not", _) => words!(|a| !a),
        ("shl", _) => words!(|a, n| a.checked_shl(n).unwrap_or(0)),
        ("shr", true) => words!(|a, n| (a as i32 >> n.min(31)) as u32),
        ("shr", false) => words!(|a, n| a.checked_shr(n).unwrap_or(0)),
        ("popc", _) => words!(|a| a.count_ones()),
        ("clz", _) => words!(|a| a.leading_zeros()),
        ("brev", _) => words!(|a| a.reverse_bits()),
        ("prmt", _) => words!(|a, b, selector| permute(a, b, selector)),
        ("bfe", false) => words!(|a, start, len| extract(a, start, len)),
        ("bfi", _) => Alu::W4(|a, b, start, len| {
            std::array::from_fn(|l| insert(a[l], b[l], start[l], len[l]))
        }),
        _ => return None,
    })
}

fn long(name: &str, ty: Type) -> Option<Alu> {
    let signed = matches!(ty, S(_));
    Some(match (name, signed) {
        ("add", _) => longs!(|a, b| a.wrapping_add(b)),
        ("sub", _) => longs!(|a, b| a.wrapping_sub(b)),
        ("neg", _) => longs!(|a| a.wrapping_neg()),
        ("min", true) => longs!(|a, b| (a as i64).min(b as i64) as u64),
        ("max", true) => longs!(|a, b| (a as i64).max(b as i64) as u64),
        ("min", false) => longs!(|a, b| a.min(b)),
        ("max", false) => longs!(|a, b| a.max(b)),
        ("div", false) => longs!(|a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        ("rem", false) => longs!(|a, b| a.checked_rem(b).unwrap_or(a)),
        ("div", true) => longs!(|a, b| (a as i64).checked_div(b as i64).unwrap_or(-1) as u64),
        ("rem", true) => longs!(|a, b| (a as i64).checked_rem(b as i64).unwrap_or(0) as u64),
        ("and", _) => longs!(|a, b| a & b),
        ("or", _) => longs!(|a, b| a | b),
        ("xor", _) => longs!(|a, b| a ^ b),
        ("not", _) => longs!(|a| !a),
        ("shl", _) => {
            Alu::LongByWord(|a, n| std::array::from_fn(|l| a[l].checked_shl(n[l]).unwrap_or(0)))
        }
        ("shr", true) => {
            Alu::LongByWord(|a, n| std::array::from_fn(|l| (a[l] as i64 >> n[l].min(63)) as u64))
        }
        ("shr", false) => {
            Alu::LongByWord(|a, n| std::array::from_fn(|l| a[l].checked_shr(n[l]).unwrap_or(0)))
        }
        _ => return None,
    })
}

fn half(name: &str, ty: Type) -> Option<Alu> {
    let signed = matches!(ty, S(_));
    Some(match (name, signed) {
        ("add", _) => words!(|a, b| a.wrapping_add(b) & 0xffff),
        ("sub", _) => words!(|a, b| a.wrapping_sub(b) & 0xffff),
        ("and", _) => words!(|a, b| a & b),
        ("or", _) => words!(|a, b| a | b),
        ("xor", _) => words!(|a, b| a ^ b),
        ("shl", _) => words!(|a, n| a.checked_shl(n).unwrap_or(0) & 0xffff),
        ("shr", false) => words!(|a, n| a.checked_shr(n).unwrap_or(0)),
        ("shr", true) => words!(|a, n| u32::from((a as i16 >> n.min(15)) as u16)),
        _ => return None,
    })
}

fn wide_unsigned(name: &str) -> Option<Alu> {
    Some(match name {
        "mul" => {
            Alu::WordsToLong(|a, b| std::array::from_fn(|l| u64::from(a[l]) * u64::from(b[l])))
        }
        "mad" => Alu::WordsAndLong(|a, b, c| {
            std::array::from_fn(|l| (u64::from(a[l]) * u64::from(b[l])).wrapping_add(c[l]))
        }),
        _ => return None,
    })
}

fn wide_signed(name: &str) -> Option<Alu> {
    fn product(a: u32, b: u32) -> u64 {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    }
    Some(match name {
        "mul" => Alu::WordsToLong(|a, b| std::array::from_fn(|l| product(a[l], b[l]))),
        "mad" => Alu::WordsAndLong(|a, b, c| {
            std::array::from_fn(|l| product(a[l], b[l]).wrapping_add(c[l]))
        }),
        _ => return None,
    })
}

/// Each nibble of `selector` picks a byte of b:a, or (bit 3) fills with its sign.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let byte = |i: u32| {
        let pick = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (pick & 7))) as u8;
        let value = if pick & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        u32::from(value) << (8 * i)
    };
    byte(0) | byte(1) | byte(2) | byte(3)
}

/// `len` bits from bit `start` on.
fn extract(a: u32, start: u32, len: u32) -> u32 {
    let (start, len) = (start & 255, len & 255);
    let shifted = a.checked_shr(start).unwrap_or(0);
    if len >= 32 { shifted } else { shifted & ((1 << len) - 1) }
}

/// b with `len` bits of a put in at bit `start`.
fn insert(a: u32, b: u32, start: u32, len: u32) -> u32 {
    let (start, len) = (start & 255, len & 255);
    let ones = if len >= 32 { u32::MAX } else { (1 << len) - 1 };
    let mask = ones.checked_shl(start).unwrap_or(0);
    b & !mask | a.checked_shl(start).unwrap_or(0) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_permuted_and_their_signs_spread() {
        assert_eq!(permute(0x8877_6655, 0x4433_2211, 0x7410), 0x4411_6655);
        assert_eq!(permute(0x8877_6655, 0x4433_2211, 0x000b), 0x5555_55ff);
    }

    #[test]
    fn fields_of_bits_are_taken_out_and_put_in() {
        assert_eq!(extract(0xabcd_1234, 8, 8), 0x12);
        assert_eq!(extract(0xabcd_1234, 40, 8), 0);
        assert_eq!(extract(0xabcd_1234, 0, 32), 0xabcd_1234);
        assert_eq!(insert(0xf, 0, 4, 4), 0xf0);
        assert_eq!(insert(0, u32::MAX, 8, 8), 0xffff_00ff);
        assert_eq!(insert(7, 1, 32, 4), 1);
    }
}
