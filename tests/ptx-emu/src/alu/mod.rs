//! What arithmetic does to the 32 lanes of registers.
//!
//! An operation is found by its exact name, modifiers and types: rounding to zero is not rounding to
//! nearest, and flushing small numbers to zero is not keeping them. What is not listed does not exist.

/// A function of words, lane by lane.
macro_rules! words {
    (|$a:ident| $value:expr) => {
        $crate::alu::Alu::W1(|x| {
            std::array::from_fn(|lane| {
                let $a: u32 = x[lane];
                $value
            })
        })
    };
    (|$a:ident, $b:ident| $value:expr) => {
        $crate::alu::Alu::W2(|x, y| {
            std::array::from_fn(|lane| {
                let ($a, $b): (u32, u32) = (x[lane], y[lane]);
                $value
            })
        })
    };
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        $crate::alu::Alu::W3(|x, y, z| {
            std::array::from_fn(|lane| {
                let ($a, $b, $c): (u32, u32, u32) = (x[lane], y[lane], z[lane]);
                $value
            })
        })
    };
}

/// A function of longs, lane by lane.
macro_rules! longs {
    (|$a:ident| $value:expr) => {
        $crate::alu::Alu::L1(|x| {
            std::array::from_fn(|lane| {
                let $a: u64 = x[lane];
                $value
            })
        })
    };
    (|$a:ident, $b:ident| $value:expr) => {
        $crate::alu::Alu::L2(|x, y| {
            std::array::from_fn(|lane| {
                let ($a, $b): (u64, u64) = (x[lane], y[lane]);
                $value
            })
        })
    };
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {
        $crate::alu::Alu::L3(|x, y, z| {
            std::array::from_fn(|lane| {
                let ($a, $b, $c): (u64, u64, u64) = (x[lane], y[lane], z[lane]);
                $value
            })
        })
    };
}

mod compare;
mod convert;
mod float;
mod integer;

use crate::ptx::Type;
pub(crate) use convert::SHARED_WINDOW;

/// The lanes of a 32-bit register. Numbers of 16 bits stand in the lower half, the upper is 0.
pub type Words = [u32; 32];

/// The lanes of a 64-bit register.
pub type Longs = [u64; 32];

/// A function of lanes, by what it takes and gives. Predicates are masks of lanes.
#[derive(Debug, Clone, Copy)]
pub enum Alu {
    /// Words to words.
    W1(fn(&Words) -> Words),
    /// Two.
    W2(fn(&Words, &Words) -> Words),
    /// Three.
    W3(fn(&Words, &Words, &Words) -> Words),
    /// Four.
    W4(fn(&Words, &Words, &Words, &Words) -> Words),
    /// Longs to longs.
    L1(fn(&Longs) -> Longs),
    /// Two.
    L2(fn(&Longs, &Longs) -> Longs),
    /// Three.
    L3(fn(&Longs, &Longs, &Longs) -> Longs),
    /// Shifts of longs.
    LongByWord(fn(&Longs, &Words) -> Longs),
    /// Widening.
    WordToLong(fn(&Words) -> Longs),
    /// Narrowing.
    LongToWord(fn(&Longs) -> Words),
    /// Products of double width, and halves put together.
    WordsToLong(fn(&Words, &Words) -> Longs),
    /// The same plus a long.
    WordsAndLong(fn(&Words, &Words, &Longs) -> Longs),
    /// Comparison of words.
    CompareWords(fn(&Words, &Words) -> u32),
    /// Comparison of longs.
    CompareLongs(fn(&Longs, &Longs) -> u32),
    /// The first word where the predicate holds, the second elsewhere.
    SelectWord,
    /// The same of longs.
    SelectLong,
    /// Of predicates.
    P1(fn(u32) -> u32),
    /// Two.
    P2(fn(u32, u32) -> u32),
}

/// A mnemonic, taken apart: `mul.wide.u32` is `mul`, `[wide]`, `[u32]`.
#[derive(Debug)]
pub struct Mnemonic<'a> {
    pub name: &'a str,
    /// In their order.
    pub modifiers: Vec<&'a str>,
    /// In their order: the result's first where there are two.
    pub types: Vec<Type>,
}

impl<'a> Mnemonic<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        let name = parts.next().unwrap_or_default();
        let (mut modifiers, mut types) = (Vec::new(), Vec::new());
        for part in parts {
            match Type::from_name(part) {
                Some(ty) => types.push(ty),
                None => modifiers.push(part),
            }
        }
        Self { name, modifiers, types }
    }

    pub fn has(&self, modifier: &str) -> bool {
        self.modifiers.contains(&modifier)
    }
}

impl Alu {
    /// The function of a mnemonic, if there is one.
    pub fn find(mnemonic: &Mnemonic) -> Option<Self> {
        let Mnemonic { name, modifiers, types } = mnemonic;
        match types.as_slice() {
            [Type::Pred] => predicates(name),
            [to, from] => convert::find(name, modifiers, *to, *from),
            [ty] => match *name {
                "setp" => compare::find(modifiers, *ty),
                "selp" if modifiers.is_empty() => Some(select(*ty)),
                "mov" if modifiers.is_empty() => Some(same(*ty)),
                // To and from addresses of one space.
                "cvta" => convert::address(modifiers, *ty),
                "cvt" => convert::pair(modifiers, *ty),
                _ => integer::find(name, modifiers, *ty)
                    .or_else(|| float::find(name, modifiers, *ty)),
            },
            _ => None,
        }
    }

    /// How many operands it takes.
    pub fn operands(self) -> usize {
        match self {
            Self::W1(_) | Self::L1(_) | Self::WordToLong(_) | Self::LongToWord(_) | Self::P1(_) => {
                1
            }
            Self::W2(_)
            | Self::L2(_)
            | Self::LongByWord(_)
            | Self::WordsToLong(_)
            | Self::CompareWords(_)
            | Self::CompareLongs(_)
            | Self::P2(_) => 2,
            Self::W3(_)
            | Self::L3(_)
            | Self::WordsAndLong(_)
            | Self::SelectWord
            | Self::SelectLong => 3,
            Self::W4(_) => 4,
        }
    }

    /// Two halves of 16 bits as a word, the lower one first.
    pub const PACK_WORD: Self = words!(|low, high| low & 0xffff | high << 16);

    /// The halves of a word.
    pub const UNPACK_WORD: [Self; 2] = [words!(|a| a & 0xffff), words!(|a| a >> 16)];

    /// Two words as a long, the lower one first.
    pub const PACK_LONG: Self = Self::WordsToLong(|low, high| {
        std::array::from_fn(|l| u64::from(low[l]) | u64::from(high[l]) << 32)
    });

    /// The words of a long.
    pub const UNPACK_LONG: [Self; 2] = [
        Self::LongToWord(|a| a.map(|a| a as u32)),
        Self::LongToWord(|a| a.map(|a| (a >> 32) as u32)),
    ];
}

fn predicates(name: &str) -> Option<Alu> {
    Some(match name {
        "mov" => Alu::P1(|a| a),
        "not" => Alu::P1(|a| !a),
        "and" => Alu::P2(|a, b| a & b),
        "or" => Alu::P2(|a, b| a | b),
        "xor" => Alu::P2(|a, b| a ^ b),
        _ => return None,
    })
}

fn select(ty: Type) -> Alu {
    if ty.bytes() == 8 { Alu::SelectLong } else { Alu::SelectWord }
}

fn same(ty: Type) -> Alu {
    if ty.bytes() == 8 { Alu::L1(|a| *a) } else { Alu::W1(|a| *a) }
}
