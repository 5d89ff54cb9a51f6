//! What a kernel has left beside what it should have left, and what is said of numbers that differ.

use std::fmt::{Debug, Write as _};

use bytemuck::NoUninit;

/// Wrong numbers that are told one by one.
const TOLD: usize = 8;

/// Whether bf16 numbers in rows of `cols` are the exact ones within `roundings` roundings to bf16 of numbers as
/// large as the largest of them.
#[track_caller]
pub(super) fn assert_near(found: &[f32], exact: &[f64], roundings: f64, cols: usize, what: &str) {
    let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    // bf16 has eight bits: half of the last one is 1/256 of a power of two.
    assert_within(found, exact, roundings * largest / 256.0, cols, what);
}

/// Whether numbers in rows of `cols` are the exact ones within `bound`.
#[track_caller]
pub(super) fn assert_within(found: &[f32], exact: &[f64], bound: f64, cols: usize, what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    // An error that is no number is above every bound.
    let is_wrong = |(found, exact): (&f32, &f64)| {
        let error = (f64::from(*found) - exact).abs();
        error > bound || error.is_nan()
    };
    let wrong = found.iter().zip(exact).map(is_wrong);
    let said = format!("off by more than {bound:e}");
    fail_if_any(&places(wrong), (found, exact), cols, &format!("{what}: {said}"));
}

/// Whether numbers in rows of `cols` are the expected ones, bit for bit.
#[track_caller]
pub(super) fn assert_same<T: NoUninit + Debug>(
    found: &[T],
    expected: &[T],
    cols: usize,
    what: &str,
) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let is_wrong = |(a, b)| bytemuck::bytes_of::<T>(a) != bytemuck::bytes_of::<T>(b);
    let wrong = found.iter().zip(expected).map(is_wrong);
    fail_if_any(&places(wrong), (found, expected), cols, &format!("{what}: other bits"));
}

fn places(wrong: impl Iterator<Item = bool>) -> Vec<usize> {
    wrong.enumerate().filter_map(|(at, is_wrong)| is_wrong.then_some(at)).collect()
}

#[track_caller]
fn fail_if_any<T: Debug, E: Debug>(
    wrong: &[usize],
    (found, expected): (&[T], &[E]),
    cols: usize,
    what: &str,
) {
    let Some(last) = wrong.last() else { return };
    let place = |at: usize| format!("({}, {})", at / cols, at % cols);
    let mut text = format!("{what} in {} of {} numbers", wrong.len(), found.len());
    for at in wrong.iter().take(TOLD) {
        let _ = write!(text, "\n  {}: {:?}, not {:?}", place(*at), found[*at], expected[*at]);
    }
    if wrong.len() > TOLD {
        let _ = write!(text, "\n  and {} more, up to {}", wrong.len() - TOLD, place(*last));
    }
    panic!("{text}");
}

/// What an assertion says.
fn said(assertion: impl FnOnce() + std::panic::UnwindSafe) -> String {
    *std::panic::catch_unwind(assertion).unwrap_err().downcast::<String>().unwrap()
}

#[test]
fn what_differs_is_told_by_row_and_column_and_values() {
    let exact: Vec<f64> = (0..20).map(f64::from).collect();
    let mut found: Vec<f32> = (0..20).map(|i| i as f32).collect();
    assert_within(&found, &exact, 0.0, 5, "all right");
    (found[3], found[7]) = (3.5, f32::NAN);
    let text = said(|| assert_within(&found, &exact, 0.25, 5, "a case"));
    let expected = "a case: off by more than 2.5e-1 in 2 of 20 numbers\n  (0, 3): 3.5, not 3.0\n  \
                    (1, 2): NaN, not 7.0";
    assert_eq!(text, expected);
}

#[test]
fn of_many_that_differ_the_first_are_told_and_where_the_last_one_is() {
    let text = said(|| assert_same(&[0_u8; 12], &[1_u8; 12], 4, "a case"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "a case: other bits in 12 of 12 numbers");
    assert_eq!(lines[8], "  (1, 3): 0, not 1");
    assert_eq!(lines[9], "  and 4 more, up to (2, 3)");
    // Zeros of two signs are equal, but not the same.
    assert!(
        said(|| assert_same(&[0.0_f32], &[-0.0], 1, "zeros")).ends_with("(0, 0): 0.0, not -0.0")
    );
}
