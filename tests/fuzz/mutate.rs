//! Changes to bytes, the same for the same seed.

/// Random numbers (xorshift).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Texts that parsers meet at their edges.
const WORDS: [&str; 24] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "4294967295",
    "9223372036854775807",
    "18446744073709551616",
    "1e400",
    "0.5",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[[[[[[[[",
    "}}}}",
    ",",
    ":",
    "NaN",
    "\u{feff}",
    "{%- for i in range(99999) %}",
];

/// `bytes` with one to eight changes; `other` is where pieces are taken from.
pub fn mutate(bytes: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + dice.below(8) {
        change(&mut bytes, other, dice);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    let end = (at + 1 + dice.below(16)).min(bytes.len());
    match dice.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        1 if at < bytes.len() => bytes[at] = dice.below(256) as u8,
        2 => drop(bytes.drain(at..end)),
        3 => bytes.truncate(at),
        4 => {
            let piece = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            bytes.splice(to..to, piece);
        }
        5 => {
            let word = WORDS[dice.below(WORDS.len())].bytes();
            bytes.splice(at..at, word);
        }
        // A number, or whatever stands between two marks, becomes another.
        6 | 7 => {
            let is_mark = |byte: &u8| b",:[]{}\" \n".contains(byte);
            let start = bytes[..at].iter().rposition(is_mark).map_or(0, |mark| mark + 1);
            let rest = bytes[at..].iter().position(is_mark);
            let stop = rest.map_or(bytes.len(), |mark| at + mark);
            let word = WORDS[dice.below(WORDS.len())].bytes();
            bytes.splice(start..stop, word);
        }
        _ if !other.is_empty() => {
            let start = dice.below(other.len());
            let stop = (start + 1 + dice.below(64)).min(other.len());
            bytes.splice(at..end, other[start..stop].iter().copied());
        }
        _ => (),
    }
}
