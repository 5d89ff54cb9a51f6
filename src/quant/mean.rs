//! The mean of an f32 slice, in the order in which torch adds on a CPU.
//!
//! The offset of double quantization is such a mean, and every scale read back depends on its last
//! bit, so the order of the additions is part of the format. Thirty-two running sums (4 rows of 8
//! lanes) are folded upwards through four levels; then come the rows, then the lanes.
//!
//! torch with one thread gives these bits for every length, and with any number of threads for fewer
//! than 32,768 values. From there on it splits the sum by its thread count, so its own result
//! changes from machine to machine; this one does not.

const LANES: usize = 8;
const ROWS: usize = 4;
const LEVELS: usize = 4;

/// One running sum per row and lane.
const WIDTH: usize = ROWS * LANES;

/// The mean; NaN for no values.
pub fn mean(values: &[f32]) -> f32 {
    sum(values) / values.len() as f32
}

fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        return narrow_sum(values);
    }
    let (steps, rest) = values.as_chunks::<WIDTH>();
    let mut sums = cascade(steps);
    let (vectors, rest) = rest.as_chunks::<LANES>();
    for vector in vectors {
        add(&mut sums[..LANES], vector);
    }
    let (first, others) = sums.split_at_mut(LANES);
    for row in others.chunks_exact(LANES) {
        add(first, row);
    }
    first.iter().fold(rest.iter().sum(), |sum: f32, lane| sum + lane)
}

/// Fewer values than lanes: four running sums of single values.
fn narrow_sum(values: &[f32]) -> f32 {
    let (steps, rest) = values.as_chunks::<ROWS>();
    let mut sums = [0.0; ROWS];
    for step in steps {
        add(&mut sums, step);
    }
    sums[0] = rest.iter().fold(sums[0], |sum, x| sum + x);
    sums[0] + sums[1] + sums[2] + sums[3]
}

/// Sums columns: after every 2^p steps level 0 is emptied into level 1, after every 2^2p level 1 into
/// level 2, and so on, so that only numbers of like size meet.
fn cascade(steps: &[[f32; WIDTH]]) -> [f32; WIDTH] {
    let power = (ceil_log2(steps.len()) / LEVELS).max(4);
    let mut levels = [[0.0; WIDTH]; LEVELS];
    let (groups, rest) = steps.split_at(steps.len() >> power << power);
    for (i, group) in groups.chunks_exact(1 << power).enumerate() {
        group.iter().for_each(|step| add(&mut levels[0], step));
        // The low levels that are full after i + 1 groups.
        let full = ((i + 1).trailing_zeros() as usize / power + 1).min(LEVELS - 1);
        for level in 0..full {
            let sums = std::mem::replace(&mut levels[level], [0.0; WIDTH]);
            add(&mut levels[level + 1], &sums);
        }
    }
    rest.iter().for_each(|step| add(&mut levels[0], step));
    let [mut sums, upper @ ..] = levels;
    upper.iter().for_each(|level| add(&mut sums, level));
    sums
}

fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(values) {
        *sum += x;
    }
}

fn ceil_log2(n: usize) -> usize {
    n.max(1).next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_small_integers_are_exact_for_every_length() {
        let values: Vec<f32> = (0..3000).map(|i| (i % 13) as f32).collect();
        let mut exact = 0.0;
        for (n, value) in values.iter().enumerate() {
            assert_eq!(sum(&values[..n]), exact, "{n} values");
            exact += value;
        }
    }

    #[test]
    fn long_sums_lose_no_more_than_the_levels_do() {
        let values = vec![0.1_f32; 1 << 20];
        let error = (f64::from(mean(&values)) - f64::from(0.1_f32)).abs();
        assert!(error < 1e-7, "{error:e}");
    }

    #[test]
    fn no_values_have_no_mean() {
        assert!(mean(&[]).is_nan());
    }
}
