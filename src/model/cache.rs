//! Keys and values of the tokens seen so far, so that generation computes each token once.

use crate::device::{Act, Device, Mat};
use crate::error::Error;
use crate::ops::copy;

/// The cache of one block: [capacity, 2·K·D], a row being all keys, then all values of a token.
pub struct LayerCache {
    rows: Act,
    len: usize,
    capacity: usize,
}

impl LayerCache {
    /// Room for `capacity` tokens of `columns` = 2·K·D numbers.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Device, capacity: usize, columns: usize) -> Result<Self, Error> {
        let rows = device.alloc_act("key-value cache", capacity * columns)?;
        Ok(Self { rows, len: 0, capacity })
    }

    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the keys and values `new` [n, 2·K·D] and gives all of them.
    pub fn extend(&mut self, device: &Device, new: Mat) -> Mat<'_> {
        let end = self.len + new.rows;
        assert!(end <= self.capacity, "{end} tokens in a cache of {}", self.capacity);
        let rows = self.rows.view_mut(self.capacity, new.cols).rows(self.len..end);
        copy::copy(device, new, rows);
        self.len = end;
        self.rows.view(end, new.cols)
    }
}
