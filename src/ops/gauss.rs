//! The standard normal distribution, without a branch, so that loops over it are vectorized.
//!
//! With y = |x|/√2, the smaller tail is Φ(−|x|) = ½·e^(−x²/2)·e^(y²)·erfc(y), and
//! (1 + 2y)·e^(y²)·erfc(y) is a smooth function of s = (y − 3)/(y + 3) on [−1, 1]: a short
//! Chebyshev series (the form of Shepherd and Laframboise, Math. Comp. 36, 1981). Both tails keep
//! their relative accuracy, which ½·(1 + erf) would not.

use super::Real;

/// The Chebyshev coefficients of (1 + 2y)·e^(y²)·erfc(y) over s, from a cosine transform of its
/// values at 80 nodes in 60 digits. The first one left out is 6e-19.
const SERIES: [f64; 28] = [
    1.177_562_574_196_56,
    0.005_353_904_539_615_675_5,
    -0.093_775_503_422_842_09,
    0.054_366_525_557_443_22,
    -0.018_976_596_707_845_208,
    0.004_453_426_061_462_712,
    -0.000_633_553_171_055_314_7,
    1.766_171_952_317_159_3e-5,
    1.284_153_286_405_667_1e-5,
    -2.007_228_565_905_991_3e-6,
    -1.807_522_790_414_837e-7,
    7.549_828_343_825_093e-8,
    1.885_668_523_838_603e-9,
    -2.699_519_049_798_364e-9,
    -1.460_079_119_939_105e-11,
    1.036_160_744_596_948_9e-10,
    1.475_715_976_623_473e-12,
    -4.277_340_064_396_911e-12,
    -2.079_224_928_597_99e-13,
    1.813_450_200_317_696_3e-13,
    1.973_425_574_544_739e-14,
    -7.287_943_757_592_673e-15,
    -1.516_987_869_022_811_6e-15,
    2.351_411_225_878_140_3e-16,
    1.000_611_169_182_166_7e-16,
    -2.057_252_816_953_854_6e-18,
    -5.608_608_218_863_183e-18,
    -5.546_884_725_994_431e-19,
];

/// Terms that f32 needs: the rest sums up to 1e-10.
const F32_TERMS: usize = 15;

/// The distribution function Φ(x) and the density φ(x).
#[inline(always)]
pub fn distribution_and_density<R: Real, const FUSED: bool>(x: R) -> (R, R) {
    let half = R::from_f64(0.5);
    let bell = (-(half * x * x)).exp::<FUSED>();
    let tail = half * bell * scaled_erfc(x.max(-x) * R::from_f64(std::f64::consts::FRAC_1_SQRT_2));
    let distribution = if x < R::ZERO { tail } else { R::ONE - tail };
    let density =
        bell * R::from_f64(std::f64::consts::FRAC_2_SQRT_PI / (2.0 * std::f64::consts::SQRT_2));
    (distribution, density)
}

/// e^(y²)·erfc(y) for y ≥ 0.
#[inline(always)]
fn scaled_erfc<R: Real>(y: R) -> R {
    let s = R::ONE - R::from_f64(6.0) / (y + R::from_f64(3.0));
    let series = if size_of::<R>() == 4 {
        clenshaw::<R, F32_TERMS>(s)
    } else {
        clenshaw::<R, { SERIES.len() }>(s)
    };
    series / (R::ONE + y + y)
}

/// The first `N` terms of [`SERIES`] at s, by Clenshaw's recurrence; `N` is constant so that the
/// loop is unrolled, without which no loop around it is vectorized.
#[inline(always)]
fn clenshaw<R: Real, const N: usize>(s: R) -> R {
    let twice = s + s;
    let (mut b1, mut b2) = (R::ZERO, R::ZERO);
    let mut i = N - 1;
    while i > 0 {
        (b1, b2) = (twice * b1 - b2 + R::from_f64(SERIES[i]), b1);
        i -= 1;
    }
    s * b1 - b2 + R::from_f64(SERIES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Φ(x), computed with 60 digits.
    const KNOWN: [(f64, f64); 10] = [
        (-30.0, 4.906713927148187e-198),
        (-11.5, 6.595771446113675e-31),
        (-5.25, 7.604960516488715e-08),
        (-3.0, 0.001_349_898_031_630_094_6),
        (-1.0, 0.158_655_253_931_457_05),
        (-0.125, 0.450_261_775_169_887_1),
        (0.0, 0.5),
        (0.75, 0.773_372_647_623_131_8),
        (2.5, 0.993_790_334_674_223_8),
        (6.5, 0.999_999_999_959_84),
    ];

    #[test]
    fn both_tails_of_the_distribution_keep_their_digits() {
        for (x, expected) in KNOWN {
            let error = distribution_and_density::<_, true>(x).0 / expected - 1.0;
            assert!(error.abs() < 1e-14, "f64 {x}: relative error {error:e}");
        }
        for (x, expected) in KNOWN.iter().filter(|(x, _)| *x > -12.0) {
            let error =
                f64::from(distribution_and_density::<_, true>(*x as f32).0) / expected - 1.0;
            let rounding_of_the_exponent = x * x / 2.0;
            let allowed = f64::from(f32::EPSILON) * (4.0 + rounding_of_the_exponent);
            assert!(error.abs() < allowed, "f32 {x}: relative error {error:e}");
        }
    }

    #[test]
    fn the_density_is_the_slope_of_the_distribution() {
        for i in -80..=80 {
            let (x, step) = (f64::from(i) * 0.1, 1e-5);
            let cdf = |x: f64| distribution_and_density::<_, true>(x).0;
            let slope = (cdf(x + step) - cdf(x - step)) / (2.0 * step);
            let density = distribution_and_density::<_, true>(x).1;
            assert!((slope - density).abs() < 1e-10, "{x}: {slope} for {density}");
        }
    }

    #[test]
    fn infinities_and_nan_pass_through() {
        assert_eq!(distribution_and_density::<_, true>(f32::NEG_INFINITY), (0.0, 0.0));
        assert_eq!(distribution_and_density::<_, true>(f32::INFINITY), (1.0, 0.0));
        assert!(distribution_and_density::<_, true>(f32::NAN).0.is_nan());
    }
}
