//! Numbers that a kernel has left beside the exact ones, and what is said of those that differ.

use std::fmt::Write as _;

/// Wrong numbers that are told one by one.
const TOLD: usize = 8;

/// Whether bf16 numbers are the exact ones within `roundings` roundings to bf16 of numbers as large as
/// the largest of them.
#[track_caller]
pub(super) fn assert_near(found: &[f32], exact: &[f64], roundings: f64, what: &str) {
    let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    // bf16 has eight bits: half of the last one is 1/256 of a power of two.
    assert_within(found, exact, roundings * largest / 256.0, what);
}

/// Whether numbers are the exact ones within `bound`.
#[track_caller]
pub(super) fn assert_within(found: &[f32], exact: &[f64], bound: f64, what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    let error = |i: usize| (f64::from(found[i]) - exact[i]).abs();
    // An error that is no number is above every bound.
    let is_wrong = |i: &usize| error(*i) > bound || error(*i).is_nan();
    let wrong: Vec<usize> = (0..found.len()).filter(is_wrong).collect();
    assert!(wrong.is_empty(), "{}", told(&wrong, found, exact, bound, what));
}

fn told(wrong: &[usize], found: &[f32], exact: &[f64], bound: f64, what: &str) -> String {
    let (count, all) = (wrong.len(), found.len());
    let mut text = format!("{what}: {count} of {all} numbers are off by more than {bound:e}");
    for i in wrong.iter().take(TOLD) {
        let _ = write!(text, "\n  number {i}: {}, not {}", found[*i], exact[*i]);
    }
    if let (true, Some(last)) = (count > TOLD, wrong.last()) {
        let _ = write!(text, "\n  and {} more, the last one number {last}", count - TOLD);
    }
    text
}

#[test]
fn what_differs_is_told_by_index_and_value() {
    let exact: Vec<f64> = (0..20).map(f64::from).collect();
    let mut found: Vec<f32> = (0..20).map(|i| i as f32).collect();
    assert_within(&found, &exact, 0.0, "all right");
    (found[3], found[7]) = (3.5, f32::NAN);
    let wrong = std::panic::catch_unwind(|| assert_within(&found, &exact, 0.25, "a case"));
    let text = *wrong.unwrap_err().downcast::<String>().unwrap();
    let expected = "a case: 2 of 20 numbers are off by more than 2.5e-1\n  number 3: 3.5, not 3\n  \
                    number 7: NaN, not 7";
    assert_eq!(text, expected);
}
