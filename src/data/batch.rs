//! Examples are put into rows, rows into batches. There is no padding anywhere.
//!
//! A row holds one example, or several behind each other ([`Packing`]); a micro-batch is the rows
//! laid end to end as one flat list of tokens. Every example is a segment of its own: attention
//! stays inside it and positions restart, so packing never changes a loss. A target belongs to the
//! row of the flat list whose logits predict it: the one before it, in the same segment.
//!
//! The order is a pure function of seed and epoch. Windows (one optimizer step each) do not cross
//! epochs; the last one of an epoch may be smaller, and the loss divides by what it holds.

use std::ops::Range;

use super::dataset::Example;
use crate::random::{Purpose, Random};

/// Whether a row may hold several examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Examples fill a row up to the sequence length.
    On,
    /// One example a row.
    Off,
}

/// The order of the examples in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As in the files.
    File,
    /// Another order each epoch.
    Shuffled {
        /// Seed of the run.
        seed: u64,
    },
}

/// How examples are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batching {
    /// Most tokens in a row.
    pub seq_len: usize,
    /// Rows of a micro-batch, at least 1.
    pub batch_size: usize,
    /// Micro-batches of a window, at least 1.
    pub grad_accum: usize,
    /// Whether rows hold several examples.
    pub packing: Packing,
    /// Order of the examples.
    pub order: Order,
}

/// Examples that share a row, by their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Indices of examples, in order.
    pub examples: Vec<usize>,
}

/// What one optimizer step learns from: micro-batches of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// At most `grad_accum` micro-batches of at most `batch_size` rows each.
    pub micro_batches: Vec<Vec<Row>>,
}

/// The rows of `examples` in the order `order`: each row is filled until the next example does not
/// fit. An example longer than `seq_len` is the caller's mistake.
pub fn pack(lengths: &[usize], order: &[usize], seq_len: usize, packing: Packing) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut room = 0;
    for &index in order {
        let length = lengths[index];
        assert!(length <= seq_len, "example {index} has {length} tokens, a row {seq_len}");
        match rows.last_mut() {
            Some(row) if packing == Packing::On && length <= room => row.examples.push(index),
            _ => {
                rows.push(Row { examples: vec![index] });
                room = seq_len;
            }
        }
        room -= length;
    }
    rows
}

/// The windows of an epoch (from 0) over examples of these lengths.
pub fn epoch_windows(lengths: &[usize], batching: &Batching, epoch: u32) -> Vec<Window> {
    let order = match batching.order {
        Order::File => (0..lengths.len()).collect(),
        Order::Shuffled { seed } => {
            Random::new(seed, Purpose::Shuffle, epoch).permutation(lengths.len())
        }
    };
    let rows = pack(lengths, &order, batching.seq_len, batching.packing);
    let window = |rows: &[Row]| Window {
        micro_batches: rows.chunks(batching.batch_size).map(<[Row]>::to_vec).collect(),
    };
    rows.chunks(batching.batch_size * batching.grad_accum).map(window).collect()
}

/// A token to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the flat list whose logits predict it.
    pub row: u32,
    /// The token that is right.
    pub id: u32,
    /// Index of the segment.
    pub segment: u32,
}

/// Tokens of one forward and backward pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// All tokens, N of them, segment after segment.
    pub tokens: Vec<u32>,
    /// Position of each token in its segment, from 0.
    pub positions: Vec<u32>,
    /// For each example its range of the flat list.
    pub segments: Vec<Range<u32>>,
    /// What is to be predicted, in the order of the tokens.
    pub targets: Vec<Target>,
}

impl MicroBatch {
    /// Lays the examples of `rows` end to end.
    pub fn new(examples: &[Example], rows: &[Row]) -> Self {
        let mut batch = Self::default();
        for &index in rows.iter().flat_map(|row| &row.examples) {
            batch.push(&examples[index]);
        }
        batch
    }

    fn push(&mut self, example: &Example) {
        let start = to_u32(self.tokens.len());
        let length = to_u32(example.tokens.len());
        let segment = to_u32(self.segments.len());
        to_u32(self.tokens.len() + example.tokens.len());
        self.tokens.extend(&example.tokens);
        self.positions.extend(0..length);
        self.segments.push(start..start + length);
        let targets = example.tokens.iter().zip(&example.supervised).enumerate().skip(1);
        let target = |(index, (&id, &supervised)): (usize, (&u32, &bool))| {
            let row = start + to_u32(index) - 1;
            supervised.then_some(Target { row, id, segment })
        };
        self.targets.extend(targets.filter_map(target));
    }
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or_else(|_| panic!("a micro-batch of {count} tokens, 2³² at most"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;

    fn example(tokens: &[u32], supervised: &[bool]) -> Example {
        Example {
            tokens: tokens.to_vec(),
            supervised: supervised.to_vec(),
            origin: Origin { file: 0, line: 1, record: 0 },
        }
    }

    #[test]
    fn no_target_crosses_from_one_example_into_the_next() {
        let examples = [
            example(&[1, 5, 6, 1], &[false, false, true, true]),
            example(&[1, 7], &[false, true]),
            example(&[9, 8, 7], &[false, true, false]),
        ];
        let rows = [Row { examples: vec![0, 2] }, Row { examples: vec![1] }];
        let batch = MicroBatch::new(&examples, &rows);
        assert_eq!(batch.tokens, [1, 5, 6, 1, 9, 8, 7, 1, 7]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1, 2, 0, 1]);
        assert_eq!(batch.segments, [0..4, 4..7, 7..9]);
        let targets: Vec<_> = batch.targets.iter().map(|t| (t.row, t.id, t.segment)).collect();
        assert_eq!(targets, [(1, 6, 0), (2, 1, 0), (4, 8, 1), (7, 7, 2)]);
    }

    #[test]
    fn packing_loses_and_repeats_no_example() {
        let lengths: Vec<usize> = (0..500).map(|i| 1 + (i * 7919) % 40).collect();
        for packing in [Packing::On, Packing::Off] {
            let batching = Batching {
                seq_len: 40,
                batch_size: 3,
                grad_accum: 4,
                packing,
                order: Order::Shuffled { seed: 3 },
            };
            let windows = epoch_windows(&lengths, &batching, 1);
            let rows: Vec<&Row> =
                windows.iter().flat_map(|w| w.micro_batches.iter().flatten()).collect();
            let length = |row: &&Row| row.examples.iter().map(|&i| lengths[i]).sum::<usize>();
            assert!(rows.iter().all(|row| length(row) <= 40));
            let mut seen: Vec<usize> = rows.iter().flat_map(|row| row.examples.clone()).collect();
            let in_order = seen.is_sorted();
            seen.sort_unstable();
            assert_eq!(seen, (0..500).collect::<Vec<_>>());
            assert!(!in_order);
            assert!(windows.iter().rev().skip(1).all(|w| w.micro_batches.len() == 4));
            let want = if packing == Packing::Off { 500_usize.div_ceil(12) } else { windows.len() };
            assert_eq!(windows.len(), want);
            assert_eq!(windows, epoch_windows(&lengths, &batching, 1));
            assert_ne!(windows, epoch_windows(&lengths, &batching, 2));
        }
    }

    #[test]
    fn a_row_takes_the_next_example_as_long_as_it_fits() {
        let rows = pack(&[3, 4, 2, 7, 1], &[0, 1, 2, 3, 4], 8, Packing::On);
        let rows: Vec<_> = rows.into_iter().map(|row| row.examples).collect();
        assert_eq!(rows, [vec![0, 1], vec![2], vec![3, 4]]);
    }
}
