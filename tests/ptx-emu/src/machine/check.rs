//! What can be wrong with a kernel.

use std::fmt;

/// A kind of mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A global address outside of every allocation.
    GlobalBounds,
    /// An address outside of the shared memory of the block, or of arguments or constants.
    Bounds,
    /// An address that is no multiple of the access.
    Alignment,
    /// Global memory read that nobody wrote.
    GlobalFresh,
    /// Shared memory read that nobody wrote.
    SharedFresh,
    /// Two blocks of a launch at one byte of global memory, or two threads of a block without a barrier
    /// between, one of them writing.
    GlobalRace,
    /// Two threads at one byte of shared memory without a barrier between, one of them writing.
    SharedRace,
    /// Shared memory touched while a copy to it is in flight.
    CopyRace,
    /// Copies in flight when the thread ends.
    CopyAtExit,
    /// A warp-wide instruction without all of the lanes that it names.
    WarpMask,
    /// A lane reads one that does not take part.
    InactiveLane,
    /// A barrier that not all lanes of a warp reach together.
    DivergentBarrier,
    /// A barrier that some warps wait at while others have ended.
    ExitedBarrier,
    /// A launch that no device takes.
    Launch,
}

/// A mistake, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of.
    pub kind: Kind,
    /// The instruction: file and line of the source where they are known.
    pub place: String,
    /// The block where it was first seen.
    pub block: [u32; 3],
    /// What happened.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { kind, place, block, message } = self;
        write!(f, "{kind:?} at {place}, block {block:?}: {message}")
    }
}
