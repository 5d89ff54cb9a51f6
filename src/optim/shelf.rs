//! State of the optimizer: all of it on the device, or page by page in host memory.
//!
//! A page holds the state of whole matrices. Paged, the device has room for one page of each kind: it is
//! brought before its matrices take their step, and put back behind it. Everything is an explicit copy,
//! in the order of what is computed; what is on the device and what is not follows from the plan, never
//! from a page fault.

use std::ops::Range;

use bytemuck::Pod;

use crate::device::parking::{Parked, When};
use crate::device::{Buf, Device};
use crate::error::Error;

/// Where moments are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// On the device.
    Resident,
    /// In host memory, but for one page.
    Paged {
        /// Numbers of a page, unless one matrix has more.
        numbers: usize,
    },
}

impl Paging {
    /// Pages that are worth a copy: 4 MiB in f32.
    pub const PAGED: Self = Self::Paged { numbers: 1 << 20 };
}

/// Numbers of a piece of those that are not in pages.
const PIECE: usize = 1 << 20;

/// Label of the moments.
pub(super) const LABEL: &str = "optimizer moments";

/// An array of state.
pub struct Shelf<T> {
    /// Which numbers are in each page.
    pages: Vec<Range<usize>>,
    /// The pages, unless all of it is in `room`.
    parked: Vec<Parked>,
    room: Buf<T>,
}

impl<T: Pod> Shelf<T> {
    /// Zeros for `pages`, which follow each other from 0 on.
    pub(super) fn new(
        device: &Device,
        pages: Vec<Range<usize>>,
        paging: Paging,
    ) -> Result<Self, Error> {
        let len = pages.last().map_or(0, |page| page.end);
        let (room, parked) = match paging {
            Paging::Resident => (len, Vec::new()),
            Paging::Paged { .. } => {
                let park =
                    |page: &Range<usize>| device.alloc_parked(LABEL, page.len() * size_of::<T>());
                let largest = pages.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
                (largest, pages.iter().map(park).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { room: device.alloc(LABEL, room)?, pages, parked })
    }

    /// Count of numbers.
    pub fn len(&self) -> usize {
        self.pages.last().map_or(0, |page| page.end)
    }

    /// Whether there is no number at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Brings page `page`: where it is, and which number of that is its first.
    pub(super) fn open(&mut self, device: &Device, page: usize) -> (&mut Buf<T>, usize) {
        let Range { start, end } = self.pages[page];
        match self.parked.get(page) {
            None => (&mut self.room, start),
            Some(parked) => {
                device.unpark(parked, end - start, &mut self.room, When::InOrder);
                (&mut self.room, 0)
            }
        }
    }

    /// Puts page `page` back.
    pub(super) fn close(&mut self, device: &Device, page: usize) {
        let len = self.pages[page].len();
        if let Some(parked) = self.parked.get_mut(page) {
            device.park(&self.room, len, parked, When::InOrder);
        }
    }

    /// Gives all numbers to `take` in their order, a piece at a time.
    ///
    /// # Errors
    /// What `take` fails with.
    pub fn download<E>(
        &self,
        device: &Device,
        mut take: impl FnMut(&[T]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut piece = Vec::new();
        for (parked, page) in self.parked.iter().zip(&self.pages) {
            piece.resize(page.len(), T::zeroed());
            device.read_parked(parked, &mut piece);
            take(&piece)?;
        }
        let resident = if self.parked.is_empty() { self.len() } else { 0 };
        for start in (0..resident).step_by(PIECE) {
            piece.resize(PIECE.min(resident - start), T::zeroed());
            device.download_at(&self.room, start, &mut piece);
            take(&piece)?;
        }
        Ok(())
    }

    /// Takes all numbers from `give`, which fills a piece at a time: those from its first argument on.
    ///
    /// # Errors
    /// What `give` fails with.
    pub fn upload<E>(
        &mut self,
        device: &Device,
        mut give: impl FnMut(usize, &mut [T]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut piece, len) = (Vec::new(), self.len());
        for (parked, page) in self.parked.iter_mut().zip(&self.pages) {
            piece.resize(page.len(), T::zeroed());
            give(page.start, &mut piece)?;
            device.write_parked(&piece, parked);
        }
        let resident = if self.parked.is_empty() { len } else { 0 };
        for start in (0..resident).step_by(PIECE) {
            piece.resize(PIECE.min(resident - start), T::zeroed());
            give(start, &mut piece)?;
            device.upload_at(&piece, &mut self.room, start);
        }
        Ok(())
    }
}
