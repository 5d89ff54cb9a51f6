//! The one rule by which numbers are called equal to a reference, for every device and test.
//!
//! - f32: the scaled maximum error, max|a − exact| / max|exact|, is at most 1e-5.
//! - bf16: the error against f64 is at most 2 times (gradients 3 times) that of plain bf16
//!   arithmetic on the same problem, growing with the square root of the summed rows.
//! - f64 against finite differences: the scaled maximum error is at most 1e-7.
//! - On a user's own model, where there is no f64 reference: f32 gradients are within 5e-3 of finite
//!   differences of f32 losses, and bf16 gradients within a tenth of the norm of those in f32.
//!
//! A scaled error compares with the largest number of the exact result, so noise near zero is
//! excused and a wrong result never is.

/// Largest scaled error of f32 arithmetic.
pub const F32: f64 = 1e-5;
/// Largest scaled error of f64 gradients against central differences.
pub const FINITE_DIFFERENCES: f64 = 1e-7;
/// Largest error of f32 gradients against central differences of f32 losses.
pub const FINITE_DIFFERENCES_F32: f64 = 5e-3;
/// Largest distance of a bf16 gradient from that in f32, as a share of its norm.
pub const BF16_OF_F32: f64 = 0.1;
/// Error of a bf16 result, as a multiple of plain bf16 arithmetic's.
pub const BF16: f64 = 2.0;
/// The same for gradients.
pub const BF16_GRADIENT: f64 = 3.0;

/// max|a − exact|; infinite where a number is not finite.
///
/// # Panics
/// If the lengths differ.
pub fn max_error(a: &[f32], exact: &[f32]) -> f64 {
    assert_eq!(a.len(), exact.len(), "numbers to compare");
    let error = |(a, exact): (&f32, &f32)| match a.is_finite() {
        true => (f64::from(*a) - f64::from(*exact)).abs(),
        false => f64::INFINITY,
    };
    a.iter().zip(exact).map(error).fold(0.0, f64::max)
}

/// max|a − exact| / max|exact|.
///
/// # Panics
/// If the lengths differ.
pub fn scaled_error(a: &[f32], exact: &[f32]) -> f64 {
    let scale = exact.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
    let error = max_error(a, exact);
    if error == 0.0 { 0.0 } else { error / scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_scaled_by_the_largest_exact_number() {
        assert_eq!(scaled_error(&[1.0, 2.5], &[1.0, 2.0]), 0.25);
        assert_eq!(scaled_error(&[0.0], &[0.0]), 0.0);
        assert_eq!(scaled_error(&[1e-9], &[0.0]), f64::INFINITY);
        assert_eq!(max_error(&[f32::NAN], &[0.0]), f64::INFINITY);
    }
}
