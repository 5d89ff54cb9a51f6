//! The tokens of one pass on the device: ids, sequences, positions and targets.
//!
//! There is no padding. N tokens of several sequences lie one after the other; each sequence is a
//! segment with positions from 0 on, and sees nothing of the others.

use std::ops::Range;

use crate::device::{Buf, Device};
use crate::error::Error;
use crate::ops::attention::Segment;

use super::config::Config;
use super::rope::Rope;

/// Most of what a pass can have, for which memory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of all sequences together.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens with a target.
    pub targets: usize,
}

/// A pass as the host describes it.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids of all sequences.
    pub tokens: &'a [u32],
    /// Where each sequence lies among them.
    pub sequences: &'a [Range<u32>],
    /// Tokens that were seen before these, by a cache; 0 without one.
    pub past: usize,
    /// Which tokens have a target.
    pub rows: &'a [u32],
    /// Their targets.
    pub targets: &'a [u32],
}

/// A pass on the device.
pub struct Tokens {
    /// N: tokens of all sequences.
    pub count: usize,
    /// Count of sequences.
    pub sequences: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// Count of targets.
    pub targets: usize,
    /// Token ids.
    pub ids: Buf<u32>,
    /// Where each sequence lies.
    pub segments: Buf<Segment>,
    /// Rotary tables, one for each kind of layer.
    pub ropes: Vec<RopeTable>,
    /// Which tokens have a target.
    pub rows: Buf<u32>,
    /// Their targets.
    pub target_ids: Buf<u32>,
    staging: Staging,
}

/// What is put together here before it is uploaded.
struct Staging {
    segments: Vec<Segment>,
    rope: Vec<f32>,
}

/// Cosines and sines of a pass.
pub struct RopeTable {
    /// [N, width].
    pub values: Buf<f32>,
    /// Rotated numbers of a head.
    pub width: usize,
}

/// Label of what describes a pass.
const LABEL: &str = "data";

impl Tokens {
    /// Room for passes within `limits`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Device, config: &Config, limits: Limits) -> Result<Self, Error> {
        let widest = config.ropes.iter().map(Rope::width).max().unwrap_or(0);
        let table = |rope: &Rope| {
            let values = device.alloc(LABEL, limits.tokens * rope.width())?;
            Ok(RopeTable { values, width: rope.width() })
        };
        Ok(Self {
            count: limits.tokens,
            sequences: limits.sequences,
            longest: limits.tokens,
            targets: limits.targets,
            ids: device.alloc(LABEL, limits.tokens)?,
            segments: device.alloc(LABEL, limits.sequences)?,
            ropes: config.ropes.iter().map(table).collect::<Result<_, Error>>()?,
            rows: device.alloc(LABEL, limits.targets)?,
            target_ids: device.alloc(LABEL, limits.targets)?,
            staging: Staging {
                segments: Vec::with_capacity(limits.sequences),
                rope: Vec::with_capacity(limits.tokens * widest),
            },
        })
    }

    /// Brings `batch` to the device.
    pub fn upload(&mut self, device: &Device, config: &Config, batch: &Batch) {
        self.count = batch.tokens.len();
        self.sequences = batch.sequences.len();
        self.longest = batch.sequences.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        self.targets = batch.targets.len();
        if device.is_plan() {
            return;
        }
        device.upload(batch.tokens, &mut self.ids);
        device.upload(batch.rows, &mut self.rows);
        device.upload(batch.targets, &mut self.target_ids);
        let Staging { segments, rope: angles } = &mut self.staging;
        segments.clear();
        segments.extend(batch.sequences.iter().map(|sequence| segment(sequence, batch.past)));
        device.upload(segments, &mut self.segments);
        for (rope, table) in config.ropes.iter().zip(&mut self.ropes) {
            angles.resize(self.count * table.width, 0.0);
            fill(rope, batch, angles);
            device.upload(angles, &mut table.values);
        }
    }
}

fn segment(sequence: &Range<u32>, past: usize) -> Segment {
    let len = sequence.end - sequence.start;
    let (k_start, k_len) = (sequence.start, len + past as u32);
    Segment { q_start: sequence.start, q_len: len, k_start, k_len }
}

fn fill(rope: &Rope, batch: &Batch, out: &mut [f32]) {
    for sequence in batch.sequences {
        let rows = sequence.start as usize * rope.width()..sequence.end as usize * rope.width();
        let (past, len) = (batch.past as u32, sequence.end - sequence.start);
        rope.fill(past..past + len, (past + len) as usize, &mut out[rows]);
    }
}
