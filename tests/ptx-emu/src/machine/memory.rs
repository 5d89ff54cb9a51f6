//! Memory of the device.
//!
//! Blocks run on several threads, and memory is what they share: words that every thread may load and
//! store. Where two blocks race, a word is torn here as it would be on a device, and nothing worse.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Where the memory begins: an address that no host pointer has.
const BASE: u64 = 0x0300_0000_0000;

/// Allocations begin at multiples of this, with as many bytes between them that belong to nobody.
const ZONE: usize = 256;

/// Memory of a device, with what happened to every byte.
///
/// Fresh memory holds 0xff everywhere: not a number in any floating-point type.
pub struct DeviceMemory {
    words: Vec<AtomicU32>,
    /// Where each allocation begins and ends.
    allocations: BTreeMap<usize, usize>,
    /// A bit for each byte that was written.
    written: Vec<AtomicU32>,
    /// Who wrote a byte last, where blocks of all launches are counted on: those from `launch` on are of
    /// the running one.
    writers: Vec<AtomicU32>,
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
            words: Vec::new(),
            allocations: BTreeMap::new(),
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
        let start = self.len() + ZONE;
        let end = (start + len).next_multiple_of(ZONE) + ZONE;
        self.words.resize_with(end / 4, || AtomicU32::new(u32::MAX));
        self.written.resize_with(end / 32, AtomicU32::default);
        self.writers.resize_with(end, AtomicU32::default);
        self.allocations.insert(start, start + len);
        Some(BASE + start as u64)
    }

    /// Bytes that were ever handed out, and what is between them.
    pub(super) fn len(&self) -> usize {
        self.writers.len()
    }

    /// Bytes that are left.
    pub fn room(&self) -> usize {
        self.limit - self.used
    }

    /// Gives the allocation at `address` back, if there is one. It is not handed out again, so that
    /// whoever still uses it is found.
    pub fn free(&mut self, address: u64) -> Option<()> {
        let start = start_of(address)?;
        let end = self.allocations.remove(&start)?;
        for word in &mut self.words[start / 4..end.div_ceil(4)] {
            *word.get_mut() = u32::MAX;
        }
        self.used -= end - start;
        Some(())
    }

    /// Copies `from` to `address`.
    ///
    /// # Panics
    /// If there are not as many bytes allocated.
    pub fn write(&mut self, address: u64, from: &[u8]) {
        let range = self.allocated(address, from.len()).expect("an allocation of that length");
        self.put(range.start, from);
    }

    /// The `len` bytes at `address`.
    ///
    /// # Panics
    /// If there are not as many bytes allocated.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let range = self.allocated(address, len).expect("an allocation of that length");
        let mut bytes = vec![0; len];
        self.get(range.start, &mut bytes);
        bytes
    }

    /// How many of the `len` bytes at `address` were never written.
    ///
    /// # Panics
    /// If there are not as many bytes allocated.
    pub fn fresh(&self, address: u64, len: usize) -> usize {
        let range = self.allocated(address, len).expect("an allocation of that length");
        let written = flags(range)
            .map(|(group, mask)| (self.written[group].load(Relaxed) & mask).count_ones());
        len - written.sum::<u32>() as usize
    }

    /// A digest of all bytes.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.words.iter().for_each(|word| hasher.write_u32(word.load(Relaxed)));
        hasher.finish()
    }

    /// Where `len` bytes at `address` are, if all of them belong to one allocation.
    pub(crate) fn allocated(&self, address: u64, len: usize) -> Option<Range<usize>> {
        let start = start_of(address)?;
        let range = start..start.checked_add(len)?;
        self.allocation(start).filter(|all| range.end <= all.end).and(Some(range))
    }

    /// The last allocation that begins at or before a place.
    pub(super) fn allocation(&self, place: usize) -> Option<Range<usize>> {
        self.allocations.range(..=place).next_back().map(|(start, end)| *start..*end)
    }

    /// A launch of `blocks` blocks begins, in which nobody has written anything yet.
    pub(super) fn begin_launch(&mut self, blocks: u32) {
        self.launch = match self.launch.checked_add(self.blocks) {
            Some(launch) if launch.checked_add(blocks).is_some() => launch,
            _ => {
                self.writers.iter_mut().for_each(|writer| *writer.get_mut() = 0);
                1
            }
        };
        self.blocks = blocks;
    }

    /// The block `number` of the launch writes; a block other than that which has written there.
    pub(super) fn note_writer(&self, range: Range<usize>, number: u32) -> Option<u32> {
        let before = |writer: &AtomicU32| writer.swap(self.launch + number, Relaxed);
        let others = self.writers[range].iter().map(before);
        others.fold(None, |other, writer| other.or(self.other(writer, number)))
    }

    /// A block of the launch other than `number` that wrote there.
    pub(super) fn other_writer(&self, range: Range<usize>, number: u32) -> Option<u32> {
        self.writers[range].iter().find_map(|writer| self.other(writer.load(Relaxed), number))
    }

    fn other(&self, writer: u32, number: u32) -> Option<u32> {
        writer.checked_sub(self.launch).filter(|other| *other != number)
    }

    pub(super) fn is_written(&self, range: Range<usize>) -> bool {
        flags(range).all(|(group, mask)| self.written[group].load(Relaxed) & mask == mask)
    }

    /// Copies what is at `start` to `to`.
    #[inline]
    pub(super) fn get(&self, start: usize, to: &mut [u8]) {
        for (word, first, bytes) in parts(start, to.len()) {
            let word = self.words[word].load(Relaxed).to_le_bytes();
            let offset = (start + first) % 4;
            to[first..first + bytes].copy_from_slice(&word[offset..offset + bytes]);
        }
    }

    /// Copies `from` to `start`.
    #[inline]
    pub(super) fn put(&self, start: usize, from: &[u8]) {
        for (word, first, bytes) in parts(start, from.len()) {
            let (word, from) = (&self.words[word], &from[first..first + bytes]);
            if let Some(whole) = from.first_chunk() {
                word.store(u32::from_le_bytes(*whole), Relaxed);
                continue;
            }
            let offset = (start + first) % 4;
            let mut old = word.load(Relaxed);
            loop {
                let mut new = old.to_le_bytes();
                new[offset..offset + bytes].copy_from_slice(from);
                match word.compare_exchange_weak(old, u32::from_le_bytes(new), Relaxed, Relaxed) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
        }
        for (group, mask) in flags(start..start + from.len()) {
            if self.written[group].load(Relaxed) & mask != mask {
                self.written[group].fetch_or(mask, Relaxed);
            }
        }
    }
}

/// The place of an address.
pub(super) fn start_of(address: u64) -> Option<usize> {
    usize::try_from(address.checked_sub(BASE)?).ok()
}

/// The words that bytes from `start` on lie in: number, which byte comes first, and how many.
#[inline]
fn parts(start: usize, len: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let at = start + first;
        let bytes = (4 - at % 4).min(len - first);
        let part = (at / 4, first, bytes);
        first += bytes;
        (bytes > 0).then_some(part)
    })
}

/// The flags of a range of bytes: 32 at a time, number and mask.
#[inline]
fn flags(range: Range<usize>) -> impl Iterator<Item = (usize, u32)> {
    (range.start / 32..range.end.div_ceil(32)).map(move |group| {
        let first = range.start.saturating_sub(group * 32);
        let end = (range.end - group * 32).min(32);
        (group, u32::MAX >> (32 - (end - first)) << first)
    })
}

/// Copies mostly what one access has: for those lengths no function is called.
#[inline]
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
        assert_eq!((a % 256, memory.read(b, 2)), (0, vec![0xff, 0xff]));
        memory.write(a + 7, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(memory.read(a + 6, 8), [0xff, 1, 2, 3, 4, 5, 6, 0xff]);
        assert_eq!((memory.read(a + 9, 1), memory.fresh(a, 60)), (vec![3], 54));
        assert_eq!(memory.allocated(a + 59, 2), None);
        assert_eq!(memory.allocated(0x1000, 1), None);
        memory.free(a).unwrap();
        assert_eq!(memory.allocated(a, 1), None);
        assert!(memory.alloc(60).is_some_and(|c| c != a));
    }

    #[test]
    fn a_range_of_bytes_has_its_flags() {
        let all = |range| flags(range).collect::<Vec<_>>();
        assert_eq!(all(0..32), [(0, u32::MAX)]);
        assert_eq!(all(30..66), [(0, 3 << 30), (1, u32::MAX), (2, 3)]);
        assert_eq!(all(33..35), [(1, 0b110)]);
        assert_eq!(all(64..64), []);
    }
}
