//! Weights that do not stay: parts of files pass through two places of device memory.
//!
//! A [`Conveyor`] has numbered parts, one for each layer. Part i has its place in slot i mod 2, so a
//! buffer in it has one address for good. [`visit`](Conveyor::visit) is all there is to do: the part
//! is *requested* if nobody has asked for it before, *used* until the next visit, and *released* by
//! it; the part that comes next is read into the other slot meanwhile, by a thread of its own. What
//! still lies in its slot is not read again.
//!
//! Parts are read, not mapped: the memory that they take is the memory of the slots, and a file that
//! cannot be read any more is an error with its name and the place in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytemuck::Pod;

use super::buffer::{Memory, Storage};
use super::cuda::{Arrival, Feed};
use super::memory::Booking;
use super::profile::{Lane, Profile};
use super::{Address, Buf, Device, Kind};
use crate::error::Error;

/// Slots: one is used while the other is filled.
const SLOTS: usize = 2;

/// Buffers within a part begin at multiples of as many bytes.
const ALIGN: usize = 256;

/// A file that parts are read from, as it was when it was opened.
#[derive(Debug)]
pub struct Origin {
    path: PathBuf,
    file: File,
    size: u64,
    modified: Option<SystemTime>,
}

/// Bytes of a file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Which.
    pub origin: Arc<Origin>,
    /// Where they begin.
    pub offset: u64,
}

impl Origin {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened.map_err(Error::io(&path))?;
        Ok(Self { size: metadata.len(), modified: metadata.modified().ok(), path, file })
    }

    fn check_unchanged(&self) -> Result<(), Error> {
        let now = self.file.metadata().map_err(Error::io(&self.path))?;
        if (now.len(), now.modified().ok()) == (self.size, self.modified) {
            return Ok(());
        }
        let what = format!(
            "was changed while it was in use ({} bytes, {} at the start): train from a file that \
             nobody writes",
            now.len(),
            self.size
        );
        Err(Error::input(&self.path, what))
    }
}

/// Bytes that belong to a part.
struct Piece {
    source: Source,
    bytes: usize,
    /// Where in the slot.
    at: usize,
}

#[derive(Default)]
struct Part {
    pieces: Vec<Piece>,
    /// Bytes of the slot that it takes.
    bytes: usize,
}

/// A place that parts take in turn.
pub(super) struct Slot {
    memory: OnceLock<Memory>,
    /// The part that may be used.
    holds: AtomicUsize,
}

/// No part.
const NOBODY: usize = usize::MAX;

impl Slot {
    /// Where `part` begins.
    pub(super) fn address(&self, part: usize) -> Address {
        let memory = self.memory.get().expect("a conveyor is loaded before it is used");
        if memory.is_planned() {
            return Address::NULL;
        }
        let holds = self.holds.load(Ordering::Acquire);
        assert_eq!(holds, part, "a part is used while another one has its place");
        memory.address()
    }
}

/// Lays out the parts before memory is taken.
pub struct Layout {
    slots: [Arc<Slot>; SLOTS],
    parts: Vec<Part>,
    label: &'static str,
}

impl Layout {
    /// No parts yet; their memory will be under `label`.
    pub fn new(label: &'static str) -> Self {
        let slot = || Arc::new(Slot { memory: OnceLock::new(), holds: AtomicUsize::new(NOBODY) });
        Self { slots: [slot(), slot()], parts: Vec::new(), label }
    }

    /// Begins the next part.
    pub fn begin_part(&mut self) {
        self.parts.push(Part::default());
    }

    /// `len` numbers of the part begun last, which are at `source`; a plan can do without. They take no
    /// memory of their own.
    pub fn place<T: Pod>(&mut self, device: &Device, source: Option<Source>, len: usize) -> Buf<T> {
        let number = self.parts.len() - 1;
        let part = &mut self.parts[number];
        let (at, bytes) = (part.bytes.next_multiple_of(ALIGN), len * size_of::<T>());
        part.bytes = at + bytes;
        part.pieces.extend(source.map(|source| Piece { source, bytes, at }));
        let slot = self.slots[number % SLOTS].clone();
        let nothing = device.ledger().book(self.label, 0).expect("no bytes always fit");
        Buf::new(Storage::Passing { slot, part: number, at }, len, nothing)
    }

    /// Takes the memory and starts the thread that reads.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn finish(self, device: &Device) -> Result<Conveyor, Error> {
        let largest = self.parts.iter().map(|part| part.bytes).max().unwrap_or(0);
        let booking = device.ledger().book(self.label, (SLOTS * largest) as u64)?;
        for slot in &self.slots {
            let memory = device.take(self.label, largest)?;
            assert!(slot.memory.set(memory).is_ok(), "a layout is finished once");
        }
        let sources = self.parts.iter().flat_map(|part| &part.pieces).map(|piece| &piece.source);
        let mut origins: Vec<_> = sources.map(|source| source.origin.clone()).collect();
        origins.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let parts = Arc::new(self.parts);
        let reader = match &device.kind {
            Kind::Plan(_) => None,
            Kind::Cpu(_) => {
                Some(Reader::start(parts.clone(), self.slots.clone(), Way::Host, device)?)
            }
            Kind::Cuda(cuda) => {
                let way = Way::Cuda(Box::new(Feed::new(cuda.clone())?));
                Some(Reader::start(parts.clone(), self.slots.clone(), way, device)?)
            }
        };
        let (states, slots) = ([State::Empty; SLOTS], self.slots);
        let (device, traffic) = (device.clone(), Traffic::default());
        Ok(Conveyor { device, slots, states, parts, origins, reader, traffic, _booking: booking })
    }
}

/// What has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read.
    pub bytes: u64,
    /// Time that the program waited: until they had come; on a GPU, until their copies were queued.
    pub waited: Duration,
}

/// Which part a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Coming(usize),
    Holds(usize),
}

/// Parts of files, of which two at most are in device memory.
pub struct Conveyor {
    device: Device,
    slots: [Arc<Slot>; SLOTS],
    states: [State; SLOTS],
    parts: Arc<Vec<Part>>,
    origins: Vec<Arc<Origin>>,
    /// Absent on a plan.
    reader: Option<Reader>,
    traffic: Traffic,
    _booking: Booking,
}

impl Conveyor {
    /// Makes `part` usable, until the next visit, and has `next` brought meanwhile: a neighbour of
    /// `part`, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read, or that was changed.
    pub fn visit(&mut self, part: usize, next: Option<usize>) -> Result<(), Error> {
        self.request(part)?;
        self.receive(part % SLOTS)?;
        match next {
            Some(next) => {
                assert_ne!(next % SLOTS, part % SLOTS, "part {next} beside part {part}");
                self.request(next)
            }
            None => Ok(()),
        }
    }

    /// Refuses files that are no longer what they were.
    ///
    /// # Errors
    /// The first of them.
    pub fn check_files(&self) -> Result<(), Error> {
        self.origins.iter().try_for_each(|origin| origin.check_unchanged())
    }

    /// What has passed so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(Part::read).sum()
    }

    /// Has `part` brought, if it is neither there nor on its way.
    fn request(&mut self, part: usize) -> Result<(), Error> {
        let slot = part % SLOTS;
        if matches!(self.states[slot], State::Holds(there) | State::Coming(there) if there == part)
        {
            return Ok(());
        }
        self.receive(slot)?;
        let Some(reader) = &self.reader else { return Ok(()) };
        self.slots[slot].holds.store(NOBODY, Ordering::Release);
        let after = self.device.mark()?;
        reader.commands.send(Command { part, after }).expect("the reader waits for commands");
        self.states[slot] = State::Coming(part);
        self.traffic.bytes += self.parts[part].read();
        Ok(())
    }

    /// Waits for what is on its way to a slot.
    fn receive(&mut self, slot: usize) -> Result<(), Error> {
        // Parts arrive in the order in which they were requested, and the other slot's may be first.
        while let (State::Coming(_), Some(reader)) = (self.states[slot], &self.reader) {
            let (begun, profile) = (Instant::now(), self.device.profile());
            let start = profile.map(Profile::now);
            let Answer { part, arrived } = reader.answers.recv().expect("the reader answers");
            self.traffic.waited += begun.elapsed();
            if let (Some(profile), Some(start)) = (profile, start) {
                profile.close(Lane::Waiting, "weights", start, 0);
            }
            self.states[part % SLOTS] = State::Empty;
            self.device.wait_for(arrived?)?;
            self.states[part % SLOTS] = State::Holds(part);
            self.slots[part % SLOTS].holds.store(part, Ordering::Release);
        }
        Ok(())
    }
}

impl Part {
    /// Bytes that are read for it.
    fn read(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes as u64).sum()
    }
}

/// A part to be read, into a slot that is free when what `after` marks is done.
struct Command {
    part: usize,
    after: Option<Arrival>,
}

struct Answer {
    part: usize,
    arrived: Result<Option<Arrival>, Error>,
}

/// How bytes come into a slot.
enum Way {
    Host,
    Cuda(Box<Feed>),
}

/// The thread that reads.
struct Reader {
    commands: SyncSender<Command>,
    answers: Receiver<Answer>,
}

impl Reader {
    fn start(
        parts: Arc<Vec<Part>>,
        slots: [Arc<Slot>; SLOTS],
        mut way: Way,
        device: &Device,
    ) -> Result<Self, Error> {
        let profile = device.profile.clone();
        let (commands, work) = sync_channel::<Command>(SLOTS);
        let (told, answers) = sync_channel(SLOTS);
        let read = move || {
            // Ends when the conveyor is dropped.
            for Command { part, after } in work {
                let to = slots[part % SLOTS].memory.get().expect("a finished layout").address();
                let start = profile.get().map(Profile::now);
                let arrived = way.bring(&parts[part], to, after);
                if let (Some(profile), Some(start)) = (profile.get(), start) {
                    profile.close(Lane::Disk, "weights", start, parts[part].read());
                }
                if told.send(Answer { part, arrived }).is_err() {
                    return;
                }
            }
        };
        let started = thread::Builder::new().name("weights".to_owned()).spawn(read);
        started.map_err(|error| Error::Device {
            device: "cpu".to_owned(),
            what: format!("no thread to read weights with: {error}"),
        })?;
        Ok(Self { commands, answers })
    }
}

impl Way {
    /// Brings all of `part` to `to`, which nobody else touches until it has arrived.
    fn bring(
        &mut self,
        part: &Part,
        to: Address,
        after: Option<Arrival>,
    ) -> Result<Option<Arrival>, Error> {
        if let (Self::Cuda(feed), Some(after)) = (&*self, after) {
            feed.wait_for(&after)?;
        }
        for Piece { source, bytes, at } in &part.pieces {
            source.origin.check_unchanged()?;
            let mut done = 0;
            while done < *bytes {
                let count = PORTION.min(bytes - done);
                let (to, from) = (to.offset(at + done), source.offset + done as u64);
                let read = |buffer: &mut [u8]| source.origin.read(from, buffer);
                match self {
                    Self::Host => {
                        // SAFETY: the slot is as long as its longest part, and belongs to this
                        // thread until the answer is sent.
                        read(unsafe { std::slice::from_raw_parts_mut(to.cast(), count) })?;
                    }
                    // SAFETY: as above, until the arrival has come.
                    Self::Cuda(feed) => unsafe { feed.portion(count, to, read)? },
                }
                done += count;
            }
        }
        match self {
            Self::Host => Ok(None),
            Self::Cuda(feed) => feed.arrival().map(Some),
        }
    }
}

/// Bytes that are read at once.
pub(super) const PORTION: usize = 4 << 20;

impl Origin {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(to, offset).map_err(|error| {
            let what = format!("{} bytes at {offset} cannot be read: {error}", to.len());
            Error::io(&self.path)(std::io::Error::new(error.kind(), what))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Dtype;

    /// Parts of 8 numbers each, one behind the other in a file of `bytes` bytes that counts.
    fn conveyor(parts: usize, bytes: usize) -> (tempfile::TempDir, Device, Vec<Buf<u8>>, Conveyor) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, (0..bytes).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
        let origin = Arc::new(Origin::open(&path).unwrap());
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let mut layout = Layout::new("test");
        let place = |part: usize| {
            layout.begin_part();
            let source = Source { origin: origin.clone(), offset: 8 * part as u64 };
            layout.place(&device, Some(source), 8)
        };
        let bufs = (0..parts).map(place).collect();
        let conveyor = layout.finish(&device).unwrap();
        (folder, device, bufs, conveyor)
    }

    fn numbers(buf: &Buf<u8>) -> Vec<u8> {
        // SAFETY: the part was visited and nothing else has been since.
        unsafe { std::slice::from_raw_parts(buf.address().cast::<u8>(), buf.len()) }.to_vec()
    }

    #[test]
    fn parts_come_in_any_order_and_what_lies_there_is_not_read_again() {
        let (_folder, device, bufs, mut conveyor) = conveyor(5, 40);
        assert_eq!(device.report().labels["test"].peak, 16);
        let expected = |part: usize| (8 * part as u8..8 * part as u8 + 8).collect::<Vec<_>>();
        for (part, next) in [(0, Some(1)), (1, Some(2)), (2, Some(3)), (3, Some(4)), (4, None)] {
            conveyor.visit(part, next).unwrap();
            assert_eq!(numbers(&bufs[part]), expected(part));
        }
        assert_eq!(conveyor.traffic().bytes, 40);
        // Back: parts 4 and 3 are still there.
        for (part, next) in [(4, Some(3)), (3, Some(2)), (2, None), (4, None), (1, None)] {
            conveyor.visit(part, next).unwrap();
            assert_eq!(numbers(&bufs[part]), expected(part));
        }
        assert_eq!(conveyor.traffic().bytes, 40 + 3 * 8);
        assert_eq!(conveyor.bytes(), 40);
    }

    #[test]
    fn a_part_that_cannot_be_read_is_named_with_its_place_and_the_others_still_come() {
        let (_folder, _, bufs, mut conveyor) = conveyor(4, 29);
        conveyor.visit(2, Some(3)).unwrap();
        let message = conveyor.visit(3, None).unwrap_err().to_string();
        assert!(message.contains("weights: 8 bytes at 24 cannot be read"), "{message}");
        conveyor.visit(1, None).unwrap();
        assert_eq!(numbers(&bufs[1]), [8, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    #[should_panic(expected = "a part is used while another one has its place")]
    fn a_part_whose_place_is_taken_cannot_be_used() {
        let (_folder, _, bufs, mut conveyor) = conveyor(4, 32);
        conveyor.visit(0, None).unwrap();
        conveyor.visit(2, None).unwrap();
        bufs[0].address();
    }
}
