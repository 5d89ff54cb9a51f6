//! Names of a kernel and what they stand for.

use std::collections::HashMap;

use super::text::list;
use super::{Address, Operand, Register, Special, Type};

/// Names that instructions may use.
#[derive(Default, Clone)]
pub(super) struct Names {
    registers: HashMap<String, Register>,
    /// Parameters, and variables in shared or constant memory: their addresses there.
    pub(super) places: HashMap<String, u64>,
    pub(super) words: u16,
    pub(super) longs: u16,
    pub(super) predicates: u16,
}

impl Names {
    /// Reads what follows `.reg`: a type, and names, each with a count or without.
    pub(super) fn declare(&mut self, text: &str) -> Option<()> {
        let (ty, names) = text.trim().split_once(char::is_whitespace)?;
        let ty = Type::from_name(ty.strip_prefix('.')?)?;
        for name in list(names) {
            match name.split_once('<') {
                None => self.add(ty, name.to_owned()),
                Some((stem, count)) => {
                    let count: usize = count.strip_suffix('>')?.parse().ok()?;
                    (0..count).for_each(|i| self.add(ty, format!("{stem}{i}")));
                }
            }
        }
        Some(())
    }

    fn add(&mut self, ty: Type, name: String) {
        let (counter, kind): (_, fn(u16) -> Register) = match ty {
            Type::Pred => (&mut self.predicates, Register::Predicate),
            ty if ty.bytes() == 8 => (&mut self.longs, Register::Long),
            _ => (&mut self.words, Register::Word),
        };
        self.registers.insert(name, kind(*counter));
        *counter += 1;
    }

    pub(super) fn register(&self, text: &str) -> Option<Register> {
        self.registers.get(text).copied()
    }

    pub(super) fn operand(&self, text: &str) -> Option<Operand> {
        if let Some(register) = self.register(text) {
            return Some(Operand::Register(register));
        }
        if let Some(special) = special(text) {
            return Some(Operand::Special(special));
        }
        number(text).or_else(|| self.places.get(text).copied()).map(Operand::Immediate)
    }

    /// One operand, or several in braces.
    pub(super) fn operands(&self, text: &str) -> Option<Vec<Operand>> {
        elements(text).into_iter().map(|text| self.operand(text)).collect()
    }

    /// One register, or several in braces.
    pub(super) fn registers(&self, text: &str) -> Option<Vec<Register>> {
        elements(text).into_iter().map(|text| self.register(text)).collect()
    }

    /// `[base]`, `[base+distance]`.
    pub(super) fn address(&self, text: &str) -> Option<Address> {
        let text = text.strip_prefix('[')?.strip_suffix(']')?;
        let (base, offset) = match text.split_once('+') {
            Some((base, offset)) => (base, offset.trim().parse().ok()?),
            None => (text, 0),
        };
        Some(Address { base: self.operand(base.trim())?, offset })
    }
}

fn elements(text: &str) -> Vec<&str> {
    match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        Some(inner) => list(inner),
        None => vec![text],
    }
}

fn special(text: &str) -> Option<Special> {
    if text == "%laneid" {
        return Some(Special::Lane);
    }
    let (name, axis) = text.split_once('.')?;
    let axis = ["x", "y", "z"].iter().position(|known| *known == axis)? as u8;
    Some(match name {
        "%tid" => Special::Thread(axis),
        "%ctaid" => Special::Block(axis),
        "%ntid" => Special::Threads(axis),
        "%nctaid" => Special::Blocks(axis),
        _ => return None,
    })
}

/// `0f` and eight, `0d` and sixteen hexadecimal digits are bits of floating-point numbers.
fn number(text: &str) -> Option<u64> {
    for prefix in ["0f", "0d", "0x"] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return u64::from_str_radix(digits.trim_end_matches('U'), 16).ok();
        }
    }
    text.trim_end_matches('U').parse::<i64>().map(|number| number as u64).ok()
}
