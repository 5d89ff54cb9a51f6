//! The flat array of all trainable numbers.
//!
//! Values, gradients and what the optimizer keeps lie in arrays of one layout, indexed by
//! [`Entry`]: name (PEFT's, from birth), shape and range. Optimizer, clipping, checkpoint and
//! export are each one loop over the index. Values and gradients are f32; products take a copy of
//! the values in the element of activations, made once a step by [`Params::refresh`].

use std::ops::Range;

use crate::device::{Act, Buf, Device, Dtype, Mat, MatMut};
use crate::error::Error;
use crate::ops;

/// One trainable matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name in an adapter file.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Where its numbers lie in the flat arrays, row-major.
    pub range: Range<usize>,
}

/// The number of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamId(usize);

/// The index alone: what is trained and where it lies, before memory is taken.
#[derive(Debug, Clone, Default)]
pub struct Index {
    entries: Vec<Entry>,
    len: usize,
}

impl Index {
    /// Adds a matrix behind all others.
    pub fn push(&mut self, name: String, shape: [usize; 2]) -> ParamId {
        let range = self.len..self.len + shape[0] * shape[1];
        self.len = range.end;
        self.entries.push(Entry { name, shape, range });
        ParamId(self.entries.len() - 1)
    }

    /// The entries in the order of their ranges.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of that number.
    pub fn entry(&self, id: ParamId) -> &Entry {
        &self.entries[id.0]
    }

    /// Count of all trainable numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Values and gradients on a device.
pub struct Params {
    /// What lies where.
    pub index: Index,
    /// Master values.
    pub values: Buf<f32>,
    /// Gradients of the current step.
    pub grads: Buf<f32>,
    operand: Option<Act>,
}

impl Params {
    /// Takes the memory; values and gradients are zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Device, index: Index) -> Result<Self, Error> {
        let len = index.len();
        let operand = match device.dtype() {
            Dtype::F32 => None,
            _ => Some(device.alloc_act("adapter operands", len)?),
        };
        Ok(Self {
            values: device.alloc("adapter values", len)?,
            grads: device.alloc("adapter gradients", len)?,
            operand,
            index,
        })
    }

    /// What lies where.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Brings the operands up to date with the values.
    pub fn refresh(&mut self, device: &Device) {
        let len = self.index.len();
        if let (Some(operand), true) = (&mut self.operand, len > 0) {
            ops::copy::copy(device, self.values.matrix(0..len, len), operand.view_mut(1, len));
        }
    }

    /// The matrix `id` as an operand of products.
    pub fn operand(&self, id: ParamId) -> Mat<'_> {
        let Entry { shape: [rows, cols], range, .. } = self.index.entry(id);
        match &self.operand {
            Some(operand) => operand.view_at(range.start, *rows, *cols),
            None => self.values.matrix(range.clone(), *cols),
        }
    }

    /// The gradient of the matrix `id`.
    pub fn grad_mut(&mut self, id: ParamId) -> MatMut<'_> {
        let Entry { shape, range, .. } = &self.index.entries[id.0];
        self.grads.matrix_mut(range.clone(), shape[1])
    }
}
