//! The number types of CPU kernels, and functions compiled once per instruction set.
//!
//! A kernel is generic over its [`Element`] (how activations are stored) and computes in the
//! element's [`Real`]. bf16 and f32 compute in f32; f64 computes in f64, which is how the same code
//! is checked against finite differences.

use bytemuck::Pod;
use half::bf16;

use crate::device::Dtype;

/// A stored number.
pub trait Element: Pod + Send + Sync {
    /// The type that it is computed in.
    type Real: Real;
    /// The element's name at run time.
    const DTYPE: Dtype;
    /// Widens; exact.
    fn real(self) -> Self::Real;
    /// Rounds to nearest, ties to even.
    fn from_real(value: Self::Real) -> Self;
}

/// A number to compute with.
pub trait Real:
    Pod
    + Send
    + Sync
    + PartialOrd
    + std::iter::Sum
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// From f64, rounded.
    fn from_f64(value: f64) -> Self;
    /// To f64.
    fn to_f64(self) -> f64;
    /// `self · a + b`, rounded once if `FUSED`.
    fn multiply_add<const FUSED: bool>(self, a: Self, b: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// eˣ, without a branch, so that loops over it are vectorized; error below 2 ulp.
    fn exp<const FUSED: bool>(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// The greater one.
    fn max(self, other: Self) -> Self;

    /// tanh x = 1 − 2 / (e²ˣ + 1).
    #[inline(always)]
    fn tanh<const FUSED: bool>(self) -> Self {
        let two = Self::ONE + Self::ONE;
        Self::ONE - two / ((two * self).exp::<FUSED>() + Self::ONE)
    }
}

impl Element for bf16 {
    type Real = f32;
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn real(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_real(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let kept = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((kept >> 16) as u16)
    }
}

impl Element for f32 {
    type Real = f32;
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn real(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_real(value: f32) -> Self {
        value
    }
}

impl Element for f64 {
    type Real = f64;
    const DTYPE: Dtype = Dtype::F64;

    #[inline(always)]
    fn real(self) -> f64 {
        self
    }

    #[inline(always)]
    fn from_real(value: f64) -> Self {
        value
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn multiply_add<const FUSED: bool>(self, a: Self, b: Self) -> Self {
        if FUSED { self.mul_add(a, b) } else { self * a + b }
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    /// eˣ = 2ⁿ · eʳ with n = round(x / ln 2): r by Cody and Waite's two-part ln 2, eʳ by a polynomial
    /// of degree 6 (|r| ≤ 0.347, largest relative error 3e-9). Below −87.3 it gives 0, above 88.72
    /// infinity.
    #[inline(always)]
    fn exp<const FUSED: bool>(self) -> Self {
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        const LEAST: f32 = -87.3;
        const MOST: f32 = 88.72;
        /// Adding and subtracting 1.5 · 2²³ rounds to an integer.
        const ROUND: f32 = 12_582_912.0;
        /// Of r⁶ to 1.
        const POLYNOMIAL: [f32; 7] =
            [1.381_454e-3, 8.368_745e-3, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0, 1.0];
        // Not `clamp`, which takes more instructions.
        let x = if LEAST > self { LEAST } else { self };
        let x = if MOST < x { MOST } else { x };
        let shifted = x.multiply_add::<FUSED>(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = n.multiply_add::<FUSED>(-LN2_HIGH, x);
        let r = n.multiply_add::<FUSED>(-LN2_LOW, r);
        let [mut p, rest @ ..] = POLYNOMIAL;
        for c in rest {
            p = p.multiply_add::<FUSED>(r, c);
        }
        // n stands in the last bits of the shifted number and is added to the exponent of eʳ, which
        // stays one of a finite, normal number within the bounds of x.
        let y = Self::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
        let y = if self < LEAST { 0.0 } else { y };
        // Infinity times x is infinity, and NaN if x is.
        if self <= MOST { y } else { self * Self::INFINITY }
    }

    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;

    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn multiply_add<const FUSED: bool>(self, a: Self, b: Self) -> Self {
        self * a + b
    }

    fn sqrt(self) -> Self {
        self.sqrt()
    }

    fn exp<const FUSED: bool>(self) -> Self {
        self.exp()
    }

    fn ln(self) -> Self {
        self.ln()
    }

    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

/// Compiles a function once for each instruction set and calls the one of `$level`.
///
/// The body must consist of `#[inline(always)]` code for the wider sets to reach it.
///
/// ```text
/// per_simd! { fn add<E: Element>(a: &[E], out: &mut [E]) { … } }
/// add(cpu.simd(), a, out);
/// ```
///
/// A second parameter `const FUSED: bool` tells the body whether the set has fused multiply-adds,
/// which the caller does not see.
macro_rules! per_simd {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<
        $E:ident : $Bound:path $(, const $FUSED:ident : bool)?
    >($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$E: $Bound>(level: crate::device::Simd, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<$E: $Bound $(, const $FUSED: bool)?>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2<$E: $Bound>($($arg: $ty),*) $(-> $ret)? {
                $(const $FUSED: bool = true;)?
                body::<$E $(, $FUSED)?>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512<$E: $Bound>($($arg: $ty),*) $(-> $ret)? {
                $(const $FUSED: bool = true;)?
                body::<$E $(, $FUSED)?>($($arg),*)
            }

            #[allow(clippy::too_many_arguments)]
            fn portable<$E: $Bound>($($arg: $ty),*) $(-> $ret)? {
                $(const $FUSED: bool = cfg!(target_feature = "fma");)?
                body::<$E $(, $FUSED)?>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            match level {
                crate::device::Simd::Portable => portable::<$E>($($arg),*),
                // SAFETY: a device has a level only where the machine has its instructions.
                crate::device::Simd::Avx2 => unsafe { avx2::<$E>($($arg),*) },
                // SAFETY: as above.
                _ => unsafe { avx512::<$E>($($arg),*) },
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                portable::<$E>($($arg),*)
            }
        }
    };
}
pub(crate) use per_simd;

/// Calls `$run::<E>($args)` with the element type of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $run:ident($($arg:expr),* $(,)?)) => {
        match $dtype {
            crate::device::Dtype::Bf16 => $run::<half::bf16>($($arg),*),
            crate::device::Dtype::F32 => $run::<f32>($($arg),*),
            crate::device::Dtype::F64 => $run::<f64>($($arg),*),
        }
    };
}
pub(crate) use with_element;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_library() {
        let mut worst = 0.0f64;
        for i in -87_300..=88_720 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            for found in [Real::exp::<true>(x), Real::exp::<false>(x)] {
                worst = worst.max((f64::from(found) - exact).abs() / exact);
            }
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst}");
        assert_eq!(Real::exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp::<true>(100.0f32), f32::INFINITY);
        assert_eq!(Real::exp::<true>(f32::INFINITY), f32::INFINITY);
        assert!(Real::exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_rounding_equals_the_reference_crate() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let (ours, theirs) = (<bf16 as Element>::from_real(x), bf16::from_f32(x));
            assert!(ours == theirs || x.is_nan() && ours.is_nan(), "{x}: {ours} for {theirs}");
        }
    }
}
