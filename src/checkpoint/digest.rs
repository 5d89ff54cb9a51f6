//! A digest that finds damage and tells one run from another: FNV-1a of 64 bits.
//!
//! Fast, stable across versions and machines, and no defence against intent.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Error;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 16;

/// The digest of what has been added so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// The digest of a file's bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let (mut digest, mut chunk) = (Self::default(), vec![0; CHUNK]);
        loop {
            match file.read(&mut chunk).map_err(Error::io(path))? {
                0 => return Ok(digest),
                count => digest.add(&chunk[..count]),
            }
        }
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds a part whose length counts, so that parts cannot flow into each other.
    pub fn part(&mut self, bytes: &[u8]) {
        self.add(&(bytes.len() as u64).to_le_bytes());
        self.add(bytes);
    }

    /// The number.
    pub fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_fnv_1a() {
        let mut digest = Digest::default();
        digest.add(b"foo");
        digest.add(b"bar");
        assert_eq!(digest.value(), 0x8594_4171_f739_67e8);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"foobar").unwrap();
        assert_eq!(Digest::of_file(file.path()).unwrap(), digest);
    }
}
