//! Memory of the device.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

/// Where the memory begins: an address that no host pointer has.
const BASE: u64 = 0x0300_0000_0000;

/// Allocations begin at multiples of this, with as many bytes between them that belong to nobody.
const ZONE: usize = 256;

/// Memory of a device, with what happened to every byte.
///
/// Fresh memory holds 0xff everywhere: not a number in any floating-point type.
pub struct DeviceMemory {
    bytes: Vec<u8>,
    /// Where each allocation begins and ends.
    allocations: BTreeMap<usize, usize>,
    /// The one that was asked for last: mostly it is the next one too.
    last: Cell<(usize, usize)>,
    written: Vec<bool>,
    /// Who wrote a byte last, where blocks of all launches are counted on: those from `launch` on are of
    /// the running one.
    writers: Vec<u32>,
    launch: u32,
    /// Blocks of the running launch.
    blocks: u32,
    limit: usize,
    used: usize,
}

impl DeviceMemory {
    /// A device of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            allocations: BTreeMap::new(),
            last: Cell::default(),
            written: Vec::new(),
            writers: Vec::new(),
            launch: 1,
            blocks: 0,
            limit,
            used: 0,
        }
    }

    /// Takes `len` bytes, if the device has them left.
    pub fn alloc(&mut self, len: usize) -> Option<u64> {
        if self.used + len > self.limit {
            return None;
        }
        self.used += len;
        let start = self.bytes.len().next_multiple_of(ZONE) + ZONE;
        let end = (start + len).next_multiple_of(ZONE) + ZONE;
        self.bytes.resize(end, 0xff);
        self.written.resize(end, false);
        self.writers.resize(end, 0);
        self.allocations.insert(start, start + len);
        Some(BASE + start as u64)
    }

    /// Bytes that were ever handed out, and what is between them.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that are left.
    pub fn room(&self) -> usize {
        self.limit - self.used
    }

    /// Gives the allocation at `address` back, if there is one. It is not handed out again, so that
    /// whoever still uses it is found.
    pub fn free(&mut self, address: u64) -> Option<()> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        let end = self.allocations.remove(&start)?;
        self.last.take();
        self.bytes[start..end].fill(0xff);
        self.used -= end - start;
        Some(())
    }

    /// Copies `from` to `address`.
    ///
    /// # Panics
    /// If there are not as many bytes allocated.
    pub fn write(&mut self, address: u64, from: &[u8]) {
        let range = self.allocated(address, from.len()).expect("an allocation of that length");
        self.put(range, from);
    }

    /// The `len` bytes at `address`.
    ///
    /// # Panics
    /// If there are not as many bytes allocated.
    pub fn read(&self, address: u64, len: usize) -> &[u8] {
        let range = self.allocated(address, len).expect("an allocation of that length");
        &self.bytes[range]
    }

    /// How many of the `len` bytes at `address` were never written.
    ///
    /// # Panics
    /// If there are not as many bytes allocated.
    pub fn fresh(&self, address: u64, len: usize) -> usize {
        let range = self.allocated(address, len).expect("an allocation of that length");
        self.written[range].iter().filter(|written| !**written).count()
    }

    /// Where `len` bytes at `address` are, if all of them belong to somebody.
    #[inline]
    pub(crate) fn allocated(&self, address: u64, len: usize) -> Option<Range<usize>> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        let range = start..start.checked_add(len)?;
        let holds = |(first, end): &(usize, usize)| *first <= range.start && range.end <= *end;
        if !holds(&self.last.get()) {
            let (first, end) = self.allocations.range(..=start).next_back()?;
            self.last.set(Some((*first, *end)).filter(holds)?);
        }
        Some(range)
    }

    /// A launch of `blocks` blocks begins, in which nobody has written anything yet.
    pub(super) fn begin_launch(&mut self, blocks: u32) {
        self.launch = match self.launch.checked_add(self.blocks) {
            Some(launch) if launch.checked_add(blocks).is_some() => launch,
            _ => {
                self.writers.fill(0);
                1
            }
        };
        self.blocks = blocks;
    }

    /// The block `number` of the launch writes.
    pub(super) fn note_writer(&mut self, range: Range<usize>, number: u32) {
        self.writers[range].fill(self.launch + number);
    }

    /// A block of the launch other than `number` that wrote there.
    pub(super) fn other_writer(&self, range: Range<usize>, number: u32) -> Option<u32> {
        let is_other = |writer: &&u32| **writer >= self.launch && **writer != self.launch + number;
        self.writers[range].iter().find(is_other).map(|writer| writer - self.launch)
    }

    pub(super) fn is_written(&self, range: Range<usize>) -> bool {
        self.written[range].iter().all(|written| *written)
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    pub(super) fn put(&mut self, range: Range<usize>, from: &[u8]) {
        copy(&mut self.bytes[range.clone()], from);
        self.written[range].fill(true);
    }
}

/// Copies mostly what one access has: for those lengths no function is called.
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    fn chunk<const N: usize>(to: &mut [u8], from: &[u8]) -> Option<()> {
        *to.first_chunk_mut::<N>()? = *from.first_chunk()?;
        Some(())
    }
    let whole = match from.len() {
        16 => chunk::<16>(to, from),
        8 => chunk::<8>(to, from),
        4 => chunk::<4>(to, from),
        2 => chunk::<2>(to, from),
        _ => None,
    };
    if whole.is_none() {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_have_bounds_and_remember_what_was_written() {
        let mut memory = DeviceMemory::new(100);
        let (a, b) = (memory.alloc(60).unwrap(), memory.alloc(40).unwrap());
        assert_eq!(memory.alloc(1), None);
        assert_eq!((a % 256, memory.read(b, 2)), (0, &[0xff, 0xff][..]));
        memory.write(a + 8, &[1, 2, 3]);
        assert_eq!((memory.read(a + 9, 1), memory.fresh(a, 60)), (&[2][..], 57));
        assert_eq!(memory.allocated(a + 59, 2), None);
        assert_eq!(memory.allocated(0x1000, 1), None);
        memory.free(a).unwrap();
        assert_eq!(memory.allocated(a, 1), None);
        assert!(memory.alloc(60).is_some_and(|c| c != a));
    }
}
