//! Who of a block touched each byte of a memory, and whether that was ordered.
//!
//! Two accesses are ordered if they are of one thread, if a barrier of the block lies between them, or
//! if a `bar.warp.sync` does and both threads are of one warp. Shuffles order nothing. That lanes run in
//! step here is no excuse: on a GPU they need not.

use std::ops::Range;

/// An access: by which thread, and after how many barriers of the block and of its warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub thread: u32,
    pub block_epoch: u32,
    pub warp_epoch: u32,
}

impl Access {
    fn warp(self) -> u32 {
        self.thread / 32
    }

    fn is_before(self, other: Self) -> bool {
        self.thread == other.thread
            || self.block_epoch != other.block_epoch
            || self.warp() == other.warp() && self.warp_epoch != other.warp_epoch
    }
}

/// Threads that read a byte since it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readers {
    Nobody,
    One(Access),
    /// Several of one warp; the last of them.
    OneWarp(Access),
    /// Several warps, after this many barriers.
    Warps(u32),
}

impl Readers {
    fn with(self, new: Access) -> Self {
        match self {
            Self::Warps(epoch) if epoch == new.block_epoch => self,
            Self::One(old) | Self::OneWarp(old) if old.block_epoch == new.block_epoch => {
                if old.thread == new.thread && matches!(self, Self::One(_)) {
                    Self::One(new)
                } else if old.warp() == new.warp() {
                    Self::OneWarp(new)
                } else {
                    Self::Warps(new.block_epoch)
                }
            }
            _ => Self::One(new),
        }
    }

    /// Whether all reads come before a write.
    fn are_before(self, write: Access) -> bool {
        match self {
            Self::Nobody => true,
            Self::One(read) => read.is_before(write),
            Self::OneWarp(read) => {
                read.block_epoch != write.block_epoch
                    || read.warp() == write.warp() && read.warp_epoch != write.warp_epoch
            }
            Self::Warps(epoch) => epoch != write.block_epoch,
        }
    }
}

/// What is known of a byte.
#[derive(Debug, Clone, Copy)]
struct Cell {
    writer: Option<Access>,
    readers: Readers,
    in_flight: bool,
}

/// What is wrong with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    Fresh,
    Race,
    InFlight,
}

const UNTOUCHED: Cell = Cell { writer: None, readers: Readers::Nobody, in_flight: false };

/// The cells of a block: pages of them, from when they are first touched.
pub(super) struct Shadow {
    pages: Vec<Option<Box<[Cell; PAGE]>>>,
    /// Numbers of the pages that are there.
    touched: Vec<usize>,
    /// Pages of earlier blocks.
    spare: Vec<Box<[Cell; PAGE]>>,
}

/// Cells of a page: no access reaches over its end.
const PAGE: usize = 512;

impl Shadow {
    pub(super) fn new(bytes: usize) -> Self {
        let pages = std::iter::repeat_with(|| None).take(bytes.div_ceil(PAGE)).collect();
        Self { pages, touched: Vec::new(), spare: Vec::new() }
    }

    /// Forgets everything, for the next block.
    pub(super) fn renew(&mut self) {
        self.spare.extend(self.touched.drain(..).filter_map(|page| self.pages[page].take()));
    }

    fn touch(&mut self, start: usize, len: usize) -> &mut [Cell] {
        let Self { pages, touched, spare } = self;
        let cells = pages[start / PAGE].get_or_insert_with(|| {
            touched.push(start / PAGE);
            let mut page = spare.pop().unwrap_or_else(|| Box::new([UNTOUCHED; PAGE]));
            page.fill(UNTOUCHED);
            page
        });
        &mut cells[start % PAGE..start % PAGE + len]
    }

    /// What is wrong with an access, which is remembered.
    pub(super) fn note(
        &mut self,
        range: Range<usize>,
        access: Access,
        writes: bool,
    ) -> Option<Wrong> {
        match writes {
            true => self.write(range.start, range.len(), access),
            false => self.read(range.start, range.len(), access),
        }
    }

    fn read(&mut self, start: usize, len: usize, access: Access) -> Option<Wrong> {
        let mut wrong = None;
        for cell in self.touch(start, len) {
            let found = match cell.writer {
                _ if cell.in_flight => Some(Wrong::InFlight),
                None => Some(Wrong::Fresh),
                Some(writer) if !writer.is_before(access) => Some(Wrong::Race),
                Some(_) => None,
            };
            wrong = wrong.or(found);
            cell.readers = cell.readers.with(access);
        }
        wrong
    }

    fn write(&mut self, start: usize, len: usize, access: Access) -> Option<Wrong> {
        let mut wrong = None;
        for cell in self.touch(start, len) {
            let ordered = cell.writer.is_none_or(|writer| writer.is_before(access));
            if cell.in_flight {
                wrong = wrong.or(Some(Wrong::InFlight));
            } else if !ordered || !cell.readers.are_before(access) {
                wrong = wrong.or(Some(Wrong::Race));
            }
            (cell.writer, cell.readers) = (Some(access), Readers::Nobody);
        }
        wrong
    }

    /// A copy is on its way, or has arrived.
    pub(super) fn set_in_flight(&mut self, start: usize, len: usize, in_flight: bool) {
        self.touch(start, len).iter_mut().for_each(|cell| cell.in_flight = in_flight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(thread: u32, block_epoch: u32, warp_epoch: u32) -> Access {
        Access { thread, block_epoch, warp_epoch }
    }

    #[test]
    fn a_barrier_orders_threads_and_a_warp_barrier_those_of_a_warp() {
        let mut shadow = Shadow::new(4);
        assert_eq!(shadow.read(0, 4, at(0, 0, 0)), Some(Wrong::Fresh));
        let mut shadow = Shadow::new(4);
        assert_eq!(shadow.write(0, 4, at(3, 0, 0)), None);
        assert_eq!(shadow.read(0, 4, at(3, 0, 0)), None);
        assert_eq!(shadow.read(0, 4, at(4, 0, 0)), Some(Wrong::Race));
        assert_eq!(shadow.read(0, 4, at(4, 0, 1)), None);
        assert_eq!(shadow.read(0, 4, at(40, 0, 1)), Some(Wrong::Race));
        assert_eq!(shadow.read(0, 4, at(40, 1, 1)), None);
    }

    #[test]
    fn a_write_comes_after_all_reads() {
        let readers = |reads: &[Access], write| {
            let mut shadow = Shadow::new(1);
            shadow.write(0, 1, at(0, 0, 0));
            for read in reads {
                shadow.read(0, 1, *read);
            }
            shadow.write(0, 1, write)
        };
        assert_eq!(readers(&[at(1, 1, 0)], at(1, 1, 0)), None);
        assert_eq!(readers(&[at(1, 1, 0)], at(2, 1, 0)), Some(Wrong::Race));
        assert_eq!(readers(&[at(1, 1, 0)], at(2, 1, 1)), None);
        assert_eq!(readers(&[at(1, 1, 0), at(2, 1, 0)], at(2, 1, 0)), Some(Wrong::Race));
        assert_eq!(readers(&[at(1, 1, 0), at(2, 1, 0)], at(2, 1, 1)), None);
        assert_eq!(readers(&[at(1, 1, 0), at(40, 1, 0)], at(1, 1, 1)), Some(Wrong::Race));
        assert_eq!(readers(&[at(1, 1, 0), at(40, 1, 0)], at(1, 2, 1)), None);
        assert_eq!(readers(&[at(1, 1, 0), at(2, 1, 0)], at(50, 1, 1)), Some(Wrong::Race));
    }
}
