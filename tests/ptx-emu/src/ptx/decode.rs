//! One statement as an instruction.

use super::operands::Names;
use super::text::list;
use super::{Address, Operand, Operation, Register, Shuffle, Space, Type, Vote};
use crate::alu::{Alu, Mnemonic};

/// The operations of the instruction `text` (without its guard): one, or two that unpack a register.
/// Labels are looked up by `target`. None if this crate does not know the instruction.
pub(super) fn operations(
    text: &str,
    names: &Names,
    target: &mut dyn FnMut(&str) -> u32,
) -> Option<Vec<Operation>> {
    let (mnemonic, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let line = Line { mnemonic: Mnemonic::new(mnemonic), operands: list(operands), names };
    if let Some(unpacked) = line.unpack() {
        return Some(unpacked);
    }
    let operation = match line.mnemonic.name {
        "bra" => Operation::Branch(target(line.operands.first()?)),
        "ret" | "exit" => Operation::Exit,
        "bar" | "barrier" => line.barrier()?,
        "membar" | "fence" => Operation::Fence,
        "shfl" => line.shuffle()?,
        "vote" => line.vote()?,
        "ld" => line.load()?,
        "st" => line.store()?,
        "ldmatrix" => line.load_matrix()?,
        "mma" => line.multiply_matrix()?,
        "cp" => line.copy()?,
        _ => line.alu()?,
    };
    Some(vec![operation])
}

struct Line<'a> {
    mnemonic: Mnemonic<'a>,
    operands: Vec<&'a str>,
    names: &'a Names,
}

impl Line<'_> {
    fn text(&self, index: usize) -> Option<&str> {
        self.operands.get(index).copied()
    }

    fn operand(&self, index: usize) -> Option<Operand> {
        self.names.operand(self.text(index)?)
    }

    fn operands<const N: usize>(&self, index: usize) -> Option<[Operand; N]> {
        self.names.operands(self.text(index)?)?.try_into().ok()
    }

    fn registers(&self, index: usize) -> Option<Vec<Register>> {
        self.names.registers(self.text(index)?)
    }

    fn address(&self, index: usize) -> Option<Address> {
        self.names.address(self.text(index)?)
    }

    fn ty(&self) -> Option<Type> {
        self.mnemonic.types.last().copied()
    }

    fn is(&self, modifiers: &[&str]) -> bool {
        self.mnemonic.modifiers == modifiers
    }

    fn alu(&self) -> Option<Operation> {
        if let Some(packed) = self.pack() {
            return Some(packed);
        }
        let function = Alu::find(&self.mnemonic)?;
        if self.operands.len() != 1 + function.operands() {
            return None;
        }
        let to = self.names.register(self.text(0)?)?;
        let mut from = [Operand::Immediate(0); 4];
        for (i, from) in from.iter_mut().enumerate().take(function.operands()) {
            *from = self.operand(1 + i)?;
        }
        Some(Operation::Alu { function, to, from })
    }

    /// `mov` of two registers into one.
    fn pack(&self) -> Option<Operation> {
        let packs = self.mnemonic.name == "mov" && self.text(1)?.starts_with('{');
        let function = match self.ty()?.bytes() {
            8 => Alu::PACK_LONG,
            _ => Alu::PACK_WORD,
        };
        let [low, high] = packs.then(|| self.operands(1)).flatten()?;
        let (to, zero) = (self.names.register(self.text(0)?)?, Operand::Immediate(0));
        Some(Operation::Alu { function, to, from: [low, high, zero, zero] })
    }

    /// `mov` of one register into two.
    fn unpack(&self) -> Option<Vec<Operation>> {
        if self.mnemonic.name != "mov" || !self.text(0)?.starts_with('{') {
            return None;
        }
        let functions = match self.ty()?.bytes() {
            8 => Alu::UNPACK_LONG,
            _ => Alu::UNPACK_WORD,
        };
        let (to, from) = (self.registers(0)?, self.operand(1)?);
        let from = [from, Operand::Immediate(0), Operand::Immediate(0), Operand::Immediate(0)];
        let halves = functions.into_iter().zip(to);
        Some(halves.map(|(function, to)| Operation::Alu { function, to, from }).collect())
    }

    fn barrier(&self) -> Option<Operation> {
        match self.mnemonic.modifiers.as_slice() {
            ["warp", "sync"] => Some(Operation::WarpBarrier(self.operand(0)?)),
            ["sync"] if self.operands == ["0"] => Some(Operation::Barrier),
            _ => None,
        }
    }

    fn shuffle(&self) -> Option<Operation> {
        let mode = match self.mnemonic.modifiers.as_slice() {
            ["sync", "up"] => Shuffle::Up,
            ["sync", "down"] => Shuffle::Down,
            ["sync", "bfly"] => Shuffle::Butterfly,
            ["sync", "idx"] => Shuffle::Index,
            _ => return None,
        };
        let (to, in_range) = match self.text(0)?.split_once('|') {
            Some((to, in_range)) => (to, Some(self.names.register(in_range)?)),
            None => (self.text(0)?, None),
        };
        let from = [self.operand(1)?, self.operand(2)?, self.operand(3)?, self.operand(4)?];
        Some(Operation::Shuffle { mode, to: self.names.register(to)?, in_range, from })
    }

    fn vote(&self) -> Option<Operation> {
        let vote = match self.mnemonic.modifiers.as_slice() {
            ["sync", "all"] => Vote::All,
            ["sync", "any"] => Vote::Any,
            ["sync", "ballot"] => Vote::Ballot,
            _ => return None,
        };
        let text = self.text(1)?;
        let negated = text.starts_with('!');
        let Register::Predicate(from) = self.names.register(text.trim_start_matches('!'))? else {
            return None;
        };
        let to = self.names.register(self.text(0)?)?;
        Some(Operation::Vote { vote, to, from: (from, negated), mask: self.operand(2)? })
    }

    /// The space that a load or store names, and how many values it moves. Caching hints change no
    /// value.
    fn access(&self) -> Option<(Space, usize)> {
        let (mut space, mut count) = (Space::Generic, 1);
        for modifier in &self.mnemonic.modifiers {
            match *modifier {
                "global" => space = Space::Global,
                "shared" => space = Space::Shared,
                "const" => space = Space::Const,
                "param" => space = Space::Param,
                "v2" => count = 2,
                "v4" => count = 4,
                "nc" | "volatile" | "L1::no_allocate" | "L1::evict_last" | "L2::128B" => (),
                _ => return None,
            }
        }
        Some((space, count))
    }

    fn load(&self) -> Option<Operation> {
        let ((space, count), to) = (self.access()?, self.registers(0)?);
        let (ty, from) = (self.ty()?, self.address(1)?);
        (to.len() == count).then_some(Operation::Load { space, ty, to, from })
    }

    fn store(&self) -> Option<Operation> {
        let ((space, count), to) = (self.access()?, self.address(0)?);
        let (ty, from) = (self.ty()?, self.names.operands(self.text(1)?)?);
        (from.len() == count).then_some(Operation::Store { space, ty, to, from })
    }

    fn load_matrix(&self) -> Option<Operation> {
        let modifiers = &self.mnemonic.modifiers;
        let ["sync", "aligned", "m8n8", count, rest @ ..] = modifiers.as_slice() else {
            return None;
        };
        let transposed = match rest {
            ["shared"] => false,
            ["trans", "shared"] => true,
            _ => return None,
        };
        let (to, from) = (self.registers(0)?, self.address(1)?);
        let agrees = *count == format!("x{}", to.len()) && self.mnemonic.types == [Type::B(2)];
        agrees.then_some(Operation::LoadMatrix { to, from, transposed })
    }

    fn multiply_matrix(&self) -> Option<Operation> {
        let types = [Type::F32, Type::Bf16, Type::Bf16, Type::F32];
        if !self.is(&["sync", "aligned", "m16n8k16", "row", "col"]) || self.mnemonic.types != types
        {
            return None;
        }
        let d = self.registers(0)?.try_into().ok()?;
        let (a, b, c) = (self.operands(1)?, self.operands(2)?, self.operands(3)?);
        Some(Operation::MultiplyMatrix { d, a, b, c })
    }

    fn copy(&self) -> Option<Operation> {
        let constant = |operand| match operand {
            Operand::Immediate(number) => Some(number as usize),
            _ => None,
        };
        match self.mnemonic.modifiers.as_slice() {
            ["async", "commit_group"] => Some(Operation::CopyCommit),
            ["async", "wait_group"] => Some(Operation::CopyWait(constant(self.operand(0)?)?)),
            ["async", "wait_all"] => Some(Operation::CopyWaitAll),
            ["async", "cg" | "ca", "shared", "global"]
            | ["async", "cg" | "ca", "shared", "global", "L2::128B"] => {
                let read = if self.operands.len() > 3 { Some(self.operand(3)?) } else { None };
                let (to, from) = (self.address(0)?, self.address(1)?);
                Some(Operation::CopyAsync { to, from, bytes: constant(self.operand(2)?)?, read })
            }
            _ => None,
        }
    }
}
