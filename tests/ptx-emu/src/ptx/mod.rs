//! PTX text as instructions.
//!
//! `text.rs` cuts the text into statements, `module.rs` reads declarations and kernels, `decode.rs`
//! one instruction. What an instruction is stands here.

mod decode;
mod module;
mod operands;
mod text;

pub use module::{Kernel, Module, PtxError};

use crate::alu::Alu;

/// Type of a register, a value in memory, or an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// One bit.
    Pred,
    /// Bits without a meaning, so many bytes of them.
    B(u8),
    /// An unsigned integer of so many bytes.
    U(u8),
    /// A signed integer of so many bytes.
    S(u8),
    /// IEEE half precision.
    F16,
    /// The upper half of f32.
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Type {
    /// From its name without the dot.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B(1),
            "b16" => Self::B(2),
            "b32" => Self::B(4),
            "b64" => Self::B(8),
            "u8" => Self::U(1),
            "u16" => Self::U(2),
            "u32" => Self::U(4),
            "u64" => Self::U(8),
            "s8" => Self::S(1),
            "s16" => Self::S(2),
            "s32" => Self::S(4),
            "s64" => Self::S(8),
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes in memory.
    pub fn bytes(self) -> usize {
        match self {
            Self::Pred => 1,
            Self::B(bytes) | Self::U(bytes) | Self::S(bytes) => usize::from(bytes),
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Where a register is in the file of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// 32 bits or fewer a lane.
    Word(u16),
    /// 64 bits a lane.
    Long(u16),
    /// One bit a lane.
    Predicate(u16),
}

/// What an instruction reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Register(Register),
    /// The same bits in every lane; floating-point numbers in the format of the operation.
    Immediate(u64),
    /// A number that the machine knows.
    Special(Special),
}

/// Numbers that the machine knows: three of each kind, but the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// `%tid`.
    Thread(u8),
    /// `%ctaid`.
    Block(u8),
    /// `%ntid`.
    Threads(u8),
    /// `%nctaid`.
    Blocks(u8),
    /// `%laneid`.
    Lane,
}

/// A kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Of the device.
    Global,
    /// Of a block.
    Shared,
    /// Of the module, read only.
    Const,
    /// Arguments of the kernel.
    Param,
    /// Global or shared, as the address says.
    Generic,
}

/// A place in memory: what a register holds, and a distance in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    /// Where to begin.
    pub base: Operand,
    /// How far from there.
    pub offset: i64,
}

/// One instruction.
#[derive(Debug)]
pub struct Instruction {
    /// What it does.
    pub operation: Operation,
    /// It runs in the lanes whose predicate is this: register, and whether it is negated.
    pub guard: Option<(u16, bool)>,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Line of the source: number of a file, and line.
    pub source: Option<(u32, u32)>,
}

/// How a shuffle chooses its source lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    /// A lane below.
    Up,
    /// A lane above.
    Down,
    /// The lane with some bits flipped.
    Butterfly,
    /// The lane named.
    Index,
}

/// What all lanes of a warp learn from a predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// Whether it holds in all.
    All,
    /// Whether it holds in any.
    Any,
    /// In which it holds.
    Ballot,
}

/// What an instruction does.
#[derive(Debug)]
pub enum Operation {
    /// Computes in every lane by itself.
    Alu {
        /// The function.
        function: Alu,
        /// Result.
        to: Register,
        /// Arguments; as many as the function takes.
        from: [Operand; 4],
    },
    /// Reads memory into one register or several.
    Load {
        /// Of the memory.
        space: Space,
        /// Of a value.
        ty: Type,
        /// Results.
        to: Vec<Register>,
        /// From here on.
        from: Address,
    },
    /// Writes one value or several.
    Store {
        /// Of the memory.
        space: Space,
        /// Of a value.
        ty: Type,
        /// From here on.
        to: Address,
        /// What is written.
        from: Vec<Operand>,
    },
    /// Goes on elsewhere.
    Branch(u32),
    /// Ends the lanes.
    Exit,
    /// Waits for all warps of the block.
    Barrier,
    /// Orders the lanes of a mask.
    WarpBarrier(Operand),
    /// Orders memory for others: nothing to do where nothing is reordered.
    Fence,
    /// Reads a register of another lane.
    Shuffle {
        /// Which lane.
        mode: Shuffle,
        /// What was read.
        to: Register,
        /// Whether the lane was in range.
        in_range: Option<Register>,
        /// Value, lane, clamp, and mask of the lanes that take part.
        from: [Operand; 4],
    },
    /// Asks all lanes.
    Vote {
        /// What about.
        vote: Vote,
        /// The answer.
        to: Register,
        /// The predicate, negated or not.
        from: (u16, bool),
        /// The lanes that take part.
        mask: Operand,
    },
    /// Brings 8 × 8 matrices of 16-bit numbers from shared memory, a row from the address of a lane.
    LoadMatrix {
        /// A register for each matrix.
        to: Vec<Register>,
        /// Addresses of rows.
        from: Address,
        /// Whether each is transposed on the way.
        transposed: bool,
    },
    /// d = a·b + c over 16 × 8 numbers and a depth of 16 bf16.
    MultiplyMatrix {
        /// Results: four.
        d: [Register; 4],
        /// Left: 16 × 16.
        a: [Operand; 4],
        /// Right: 16 × 8.
        b: [Operand; 2],
        /// Sums so far.
        c: [Operand; 4],
    },
    /// Starts a copy from global to shared memory.
    CopyAsync {
        /// In shared memory.
        to: Address,
        /// In global memory.
        from: Address,
        /// Bytes that are written.
        bytes: usize,
        /// Bytes that are read, the rest is zeros; all of them, if none.
        read: Option<Operand>,
    },
    /// Makes one group of the copies started since the last one.
    CopyCommit,
    /// Waits until at most this many groups are in flight.
    CopyWait(usize),
    /// Waits for all copies.
    CopyWaitAll,
}
