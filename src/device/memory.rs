//! Named allocations: who holds how many bytes of a device, now and at the peak.
//!
//! Every buffer of a [`Device`](super::Device) is booked here under a label. The CPU and the plan
//! keep the same book through the same calls, so that a predicted peak equals a measured one to
//! the byte.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::error::Error;

/// The label of what a GPU's driver takes for itself while a program runs: kernels, graphs, whole pages.
pub const DRIVER: &str = "driver";

/// Bytes that a plan books for it and a GPU keeps free. The kernels are 1.6 MB of machine code at most; a graph of
/// a block's pass takes some tens of KB, of which there are up to 1,024; memory comes in pages of 2 MiB. What it
/// comes to on a card is measured after the first step of a run.
pub const DRIVER_BYTES: u64 = 64 << 20;

/// What the driver of a GPU takes for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverMemory {
    /// Bytes that it has taken.
    pub taken: u64,
    /// Bytes that were booked for it.
    pub planned: u64,
}

/// What one label holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes held now.
    pub current: u64,
    /// Most bytes held at once.
    pub peak: u64,
}

/// The state of a device's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Usage by label.
    pub labels: BTreeMap<&'static str, Usage>,
    /// Usage of all labels together; its peak is at most the sum of theirs.
    pub total: Usage,
}

/// The book of one device.
#[derive(Debug)]
pub struct Ledger {
    device: String,
    limit: u64,
    report: Mutex<Report>,
}

impl Ledger {
    /// An empty book for `device`, which has `limit` bytes.
    pub fn new(device: impl Into<String>, limit: u64) -> Arc<Self> {
        Arc::new(Self { device: device.into(), limit, report: Mutex::default() })
    }

    /// The device whose book it is.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Bytes that it has.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Books `bytes` under `label`, or refuses with [`Error::OutOfMemory`].
    pub fn book(self: &Arc<Self>, label: &'static str, bytes: u64) -> Result<Booking, Error> {
        let mut report = self.report.lock().expect("no panic while booking");
        let available = self.limit - report.total.current;
        if bytes > available {
            let device = self.device.clone();
            return Err(Error::OutOfMemory { device, label, bytes, available });
        }
        report.total.add(bytes);
        report.labels.entry(label).or_default().add(bytes);
        Ok(Booking { ledger: self.clone(), label, bytes })
    }

    /// A copy of the book.
    pub fn report(&self) -> Report {
        self.report.lock().expect("no panic while booking").clone()
    }

    fn release(&self, label: &'static str, bytes: u64) {
        let mut report = self.report.lock().expect("no panic while booking");
        report.total.current -= bytes;
        report.labels.entry(label).or_default().current -= bytes;
    }
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.current += bytes;
        self.peak = self.peak.max(self.current);
    }
}

/// One entry of the book; dropping it gives the bytes back.
#[derive(Debug)]
pub struct Booking {
    ledger: Arc<Ledger>,
    label: &'static str,
    bytes: u64,
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.ledger.release(self.label, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_kept_and_limits_hold() {
        let ledger = Ledger::new("test", 100);
        let a = ledger.book("a", 60).unwrap();
        drop(ledger.book("b", 40).unwrap());
        assert!(matches!(
            ledger.book("b", 41),
            Err(Error::OutOfMemory { label: "b", bytes: 41, available: 40, .. })
        ));
        drop(a);
        let report = ledger.report();
        assert_eq!(report.total, Usage { current: 0, peak: 100 });
        assert_eq!(report.labels["a"], Usage { current: 0, peak: 60 });
        assert_eq!(report.labels["b"], Usage { current: 0, peak: 40 });
    }
}
