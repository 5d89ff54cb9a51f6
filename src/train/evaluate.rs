//! Loss over a data set: running sums only, whatever its size.

use crate::data::Example;
use crate::data::{MicroBatch, Packing, Row, pack};
use crate::error::Error;
use crate::model::tokens::Limits;

use super::session::Session;

/// What one record contributed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RecordLoss {
    /// Ordinal of the record over all files, from 0.
    pub record: usize,
    /// Supervised tokens.
    pub tokens: u64,
    /// Sum of their losses.
    pub loss_sum: f64,
}

/// The losses of a data set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// One for each record that taught something, in their order.
    pub records: Vec<RecordLoss>,
}

impl Evaluation {
    /// Supervised tokens of all records.
    pub fn tokens(&self) -> u64 {
        self.records.iter().map(|record| record.tokens).sum()
    }

    /// Mean loss of the supervised tokens.
    pub fn loss(&self) -> f64 {
        self.records.iter().map(|record| record.loss_sum).sum::<f64>() / self.tokens() as f64
    }

    /// e to the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }
}

/// Rows of an evaluation pass: examples in order, as many as fit `seq_len` tokens.
pub fn rows(examples: &[Example], seq_len: usize) -> Vec<Row> {
    let lengths: Vec<_> = examples.iter().map(|example| example.tokens.len()).collect();
    let order: Vec<_> = (0..examples.len()).collect();
    pack(&lengths, &order, seq_len, Packing::On)
}

/// Most of what a pass of [`evaluate`] has.
pub fn limits(examples: &[Example], seq_len: usize) -> Limits {
    let mut limits = Limits { tokens: 1, sequences: 1, targets: 1 };
    for row in rows(examples, seq_len) {
        limits.include(examples, std::slice::from_ref(&row));
    }
    limits
}

/// The losses of `examples`, none longer than `seq_len`, under the session's present parameters.
///
/// # Errors
/// What the device kept.
pub fn evaluate(
    session: &mut Session,
    examples: &[Example],
    seq_len: usize,
) -> Result<Evaluation, Error> {
    let mut records = Vec::with_capacity(examples.len());
    for row in rows(examples, seq_len) {
        let micro = MicroBatch::new(examples, std::slice::from_ref(&row));
        let record = |index: &usize| examples[*index].origin.record;
        let sums = row.examples.iter().map(record);
        let mut sums: Vec<_> =
            sums.map(|record| RecordLoss { record, ..RecordLoss::default() }).collect();
        for (target, loss) in micro.targets.iter().zip(session.evaluate(&micro)?) {
            let record = &mut sums[target.segment as usize];
            record.tokens += 1;
            record.loss_sum += f64::from(loss);
        }
        session.device.synchronize()?;
        sums.into_iter().for_each(|sum| add(&mut records, sum));
    }
    Ok(Evaluation { records })
}

/// Adds a sequence's losses; the pieces of one long text make one record.
fn add(records: &mut Vec<RecordLoss>, sum: RecordLoss) {
    match records.last_mut() {
        Some(last) if last.record == sum.record => {
            last.tokens += sum.tokens;
            last.loss_sum += sum.loss_sum;
        }
        _ => records.push(sum),
    }
}
