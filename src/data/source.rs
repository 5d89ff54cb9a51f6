//! A data file as pieces of bytes, one a record, each with the line it starts at.
//!
//! - `.jsonl`: each line that is not blank.
//! - `.json`: each element of the array that the file is. Elements are found by counting brackets,
//!   so that each is parsed alone: in parallel, and with its own line in errors.
//! - `.txt`: the whole file, one text.
//!
//! A byte order mark is dropped, `\r\n` is a line end, the last line needs none. Bytes are UTF-8
//! whatever the locale says; UTF-16 is refused by name. What a piece means is
//! [`super::record`]'s business.

use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Place};

/// Longest record, in bytes: bounds the memory that one line of a damaged file can ask for.
pub(super) const LONGEST_RECORD: usize = 64 << 20;

/// What the pieces of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Each piece is a JSON value.
    Json,
    /// The only piece is plain text.
    Text,
}

/// The bytes of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Line of the file where it starts, from 1.
    pub line: usize,
    /// Where it stands in [`Source::bytes`].
    pub bytes: Range<usize>,
}

/// A file in memory, divided into records.
#[derive(Debug)]
pub(super) struct Source {
    pub kind: Kind,
    pub bytes: Vec<u8>,
    pub pieces: Vec<Piece>,
}

impl Source {
    /// Reads and divides a file by its extension.
    ///
    /// # Errors
    /// [`Error::Input`] for another extension, UTF-16, a file that is not an array though named so,
    /// or a record that is too long.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let extension = extension.unwrap_or_default().to_ascii_lowercase();
        let bytes = || std::fs::read(path).map_err(Error::io(path));
        match extension.as_str() {
            "jsonl" => Self::lines(path, bytes()?),
            "json" => Self::array(path, bytes()?),
            "txt" => Self::text(path, bytes()?),
            _ => Err(Error::input(
                path,
                "data files end in .jsonl, .json (an array) or .txt; rename or convert it",
            )),
        }
    }

    fn lines(path: &Path, bytes: Vec<u8>) -> Result<Self, Error> {
        let start = text_start(path, &bytes)?;
        if first_visible(&bytes[start..]) == Some(b'[') {
            let what = "holds a JSON array, not one record a line; give it the name .json";
            return Err(Error::input(path, what));
        }
        let mut pieces = Vec::new();
        let mut at = start;
        for (index, line) in bytes[start..].split(|&byte| byte == b'\n').enumerate() {
            if !line.trim_ascii().is_empty() {
                pieces.push(Piece { line: index + 1, bytes: at..at + line.len() });
            }
            at += line.len() + 1;
        }
        Self::checked(path, Kind::Json, bytes, pieces)
    }

    fn array(path: &Path, bytes: Vec<u8>) -> Result<Self, Error> {
        let start = text_start(path, &bytes)?;
        if first_visible(&bytes[start..]) != Some(b'[') {
            let what = "is not a JSON array; where every line is a record, give it the name .jsonl";
            return Err(Error::input(path, what));
        }
        let pieces = Elements::of(&bytes, start)
            .map_err(|(line, what)| Error::input(Place::file(path).line(line), what))?;
        Self::checked(path, Kind::Json, bytes, pieces)
    }

    fn text(path: &Path, bytes: Vec<u8>) -> Result<Self, Error> {
        let start = text_start(path, &bytes)?;
        let whole = Piece { line: 1, bytes: start..bytes.len() };
        let pieces = if bytes[start..].trim_ascii().is_empty() { vec![] } else { vec![whole] };
        Ok(Self { kind: Kind::Text, bytes, pieces })
    }

    fn checked(path: &Path, kind: Kind, bytes: Vec<u8>, pieces: Vec<Piece>) -> Result<Self, Error> {
        match pieces.iter().find(|piece| piece.bytes.len() > LONGEST_RECORD) {
            None => Ok(Self { kind, bytes, pieces }),
            Some(piece) => Err(Error::input(
                Place::file(path).line(piece.line),
                format!(
                    "a record of {} bytes; {LONGEST_RECORD} (64 MiB) are allowed: divide it, or \
                     give the text as a .txt file",
                    piece.bytes.len()
                ),
            )),
        }
    }
}

/// Where the text starts, after a byte order mark.
fn text_start(path: &Path, bytes: &[u8]) -> Result<usize, Error> {
    let head = &bytes[..bytes.len().min(64)];
    let utf16 = head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF");
    if utf16 || 2 * head.iter().filter(|&&byte| byte == 0).count() >= head.len().max(4) - 2 {
        return Err(Error::input(path, "is UTF-16 or binary; convert the file to UTF-8"));
    }
    Ok(if bytes.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 })
}

fn first_visible(bytes: &[u8]) -> Option<u8> {
    bytes.trim_ascii_start().first().copied()
}

/// Finds the elements of a JSON array without understanding them.
struct Elements {
    pieces: Vec<Piece>,
    line: usize,
    depth: usize,
    /// Line and start of the element that is being read, once its first visible byte came.
    element: Option<(usize, usize)>,
}

impl Elements {
    fn of(bytes: &[u8], start: usize) -> Result<Vec<Piece>, (usize, String)> {
        let mut elements = Self { pieces: Vec::new(), line: 1, depth: 0, element: None };
        let (mut in_string, mut escaped) = (false, false);
        for (at, &byte) in bytes.iter().enumerate().skip(start) {
            if byte == b'\n' {
                elements.line += 1;
            }
            if in_string {
                in_string = escaped || byte != b'"';
                escaped = byte == b'\\' && !escaped;
            } else {
                in_string = byte == b'"';
                elements.structure(byte, at)?;
            }
        }
        if elements.depth > 0 {
            return Err((elements.line, "the JSON array is not closed; is the file cut?".into()));
        }
        Ok(elements.pieces)
    }

    /// Takes one byte outside of strings.
    fn structure(&mut self, byte: u8, at: usize) -> Result<(), (usize, String)> {
        let outside = self.depth == 0;
        match byte {
            b'[' if outside && self.pieces.is_empty() => self.depth = 1,
            _ if byte.is_ascii_whitespace() => {}
            _ if outside => {
                return Err((self.line, "text after the end of the JSON array".into()));
            }
            b',' if self.depth == 1 => self.close(at, b',')?,
            b']' if self.depth == 1 => {
                self.close(at, b']')?;
                self.depth = 0;
            }
            _ => {
                self.element.get_or_insert((self.line, at));
                match byte {
                    b'[' | b'{' => self.depth += 1,
                    b']' | b'}' => self.depth = self.depth.max(2) - 1,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn close(&mut self, end: usize, by: u8) -> Result<(), (usize, String)> {
        match self.element.take() {
            Some((line, start)) => self.pieces.push(Piece { line, bytes: start..end }),
            None if by == b']' && self.pieces.is_empty() => {}
            None => {
                return Err((self.line, "not valid JSON: a comma without an element".into()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(name: &str, bytes: &[u8]) -> Result<Vec<(usize, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let source = Source::read(&path)
            .map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), ""))?;
        let text = |p: &Piece| String::from_utf8_lossy(&source.bytes[p.bytes.clone()]).into_owned();
        Ok(source.pieces.iter().map(|p| (p.line, text(p))).collect())
    }

    #[test]
    fn lines_count_physically_whatever_their_ends() {
        let pieces = split("a.jsonl", b"\xEF\xBB\xBF{1}\r\n\r\n  \n{2}\n{3}").unwrap();
        let want = [(1, "{1}\r"), (4, "{2}"), (5, "{3}")].map(|(l, t)| (l, t.to_string()));
        assert_eq!(pieces, want);
    }

    #[test]
    fn elements_of_an_array_are_found_around_strings_with_brackets() {
        let pieces =
            split("a.json", b"[\n {\"a\": \"]\\\"},[\"},\n\n\"x\\\\\", [1,2] ]\n").unwrap();
        let want = [(2, "{\"a\": \"]\\\"},[\"}"), (4, "\"x\\\\\""), (4, "[1,2] ")];
        assert_eq!(pieces, want.map(|(l, t)| (l, t.to_string())));
        assert_eq!(split("b.json", b" [ ]").unwrap(), []);
    }

    #[test]
    fn wrong_files_are_refused_by_name() {
        let utf16: Vec<u8> = "{\"text\":\"a\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(split("a.jsonl", &utf16).unwrap_err().contains("UTF-16"));
        assert!(split("a.jsonl", b"\xFF\xFE{").unwrap_err().contains("UTF-16"));
        assert!(split("a.jsonl", b"[{}]").unwrap_err().contains(".json"));
        assert!(split("a.json", b"{}").unwrap_err().contains(".jsonl"));
        assert!(split("a.json", b"[{},\n").unwrap_err().contains("line 2: the JSON array is not"));
        assert!(split("a.json", b"[{},]").unwrap_err().contains("comma"));
        assert!(split("a.json", b"[{}]\n[{}]").unwrap_err().contains("line 2: text after"));
        assert!(split("a.csv", b"").unwrap_err().contains(".jsonl"));
    }
}
