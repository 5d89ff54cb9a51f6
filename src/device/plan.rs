//! A device that allocates nothing and computes nothing: it books what a CPU or a GPU would.
//!
//! A plan is made by running the very calls of a training step on this device and reading the
//! book afterwards.

use std::sync::{Arc, Mutex};

use super::cpu::SCRATCH;
use super::memory::{Booking, DRIVER, DRIVER_BYTES, Ledger};
use super::{Dtype, Hardware};
use crate::error::Error;

/// The book of a device that is only thought of.
pub struct Plan {
    pub(super) hardware: Hardware,
    pub(super) dtype: Dtype,
    pub(super) ledger: Arc<Ledger>,
    scratch: Mutex<(usize, Option<Booking>)>,
    /// What the driver of a GPU takes.
    _driver: Option<Booking>,
}

impl Plan {
    /// A plan for `hardware`.
    ///
    /// # Panics
    /// If the book has no room for what the driver of a GPU takes.
    pub fn new(hardware: Hardware, dtype: Dtype, ledger: Arc<Ledger>) -> Self {
        let driver = || ledger.book(DRIVER, DRIVER_BYTES).expect("room for the driver of a GPU");
        let driver = matches!(hardware, Hardware::Cuda { .. }).then(driver);
        Self { hardware, dtype, ledger, scratch: Mutex::default(), _driver: driver }
    }

    /// Books what a launch would take, as the arena of a device does.
    pub(super) fn note_scratch(&self, bytes: usize) -> Result<(), Error> {
        let mut scratch = self.scratch.lock().expect("no panic while booking");
        if bytes > scratch.0 {
            scratch.1 = None;
            *scratch = (bytes, Some(self.ledger.book(SCRATCH, bytes as u64)?));
        }
        Ok(())
    }
}
