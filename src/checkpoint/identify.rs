//! Says what a file really is when it is not what its name claims.
//!
//! A large share of failed loads are not damaged tensor files but other things under that name: a
//! git-LFS pointer, a saved web page, a pickle. Each is recognised by its first bytes and answered
//! with what to do. Nothing here reads more than those first bytes.

use std::path::Path;

/// What the first bytes of a file show, where they are not a tensor file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A git-LFS pointer: the text file that stands for a large file not yet fetched.
    LfsPointer,
    /// A web page, such as a login or error page saved under the file's name.
    WebPage,
    /// llama.cpp's format.
    Gguf,
    /// Python pickle, bare or in PyTorch's zip archive.
    Pickle,
    /// A compressed archive.
    Archive,
    /// HDF5 (Keras).
    Hdf5,
    /// JSON text without the length in front.
    Json,
}

impl Kind {
    /// Recognises `head`, the first bytes of a file (at least 16 where the file has them).
    pub fn of(head: &[u8]) -> Option<Self> {
        // A tensor file begins with a length below 4 GB and a brace; the length may look like
        // anything, so this comes before all magic numbers.
        if matches!(head, [_, _, _, _, 0, 0, 0, 0, b'{', ..]) {
            return None;
        }
        let begins = |magic: &[u8]| head.starts_with(magic);
        let text = match head.contains(&0) {
            true => &[],
            false => head.trim_ascii_start(),
        };
        if begins(b"version https://git-lfs") {
            Some(Self::LfsPointer)
        } else if text.starts_with(b"<") {
            Some(Self::WebPage)
        } else if begins(b"GGUF") {
            Some(Self::Gguf)
        } else if begins(b"PK\x03\x04") || matches!(head, [0x80, 2..=5, ..]) {
            Some(Self::Pickle)
        } else if begins(b"\x1f\x8b") || begins(b"\x28\xb5\x2f\xfd") || begins(b"7z\xbc\xaf") {
            Some(Self::Archive)
        } else if begins(b"\x89HDF") {
            Some(Self::Hdf5)
        } else if text.starts_with(b"{\"") || text.starts_with(b"{\n") {
            Some(Self::Json)
        } else {
            None
        }
    }

    /// What it is and what to do, for an error message that names the file.
    pub fn advice(self) -> &'static str {
        match self {
            Self::LfsPointer => {
                "is a git-LFS pointer, not the file itself: fetch it with `git lfs pull`"
            }
            Self::WebPage => "is a web page, not a tensor file: download it again",
            Self::Gguf => {
                "is a GGUF file: give the model's original Hugging Face folder with safetensors"
            }
            Self::Pickle => {
                "is a PyTorch pickle, which can run code and is never opened: \
                 give a .safetensors version of the model"
            }
            Self::Archive => "is a compressed archive: unpack it and give the model folder",
            Self::Hdf5 => "is an HDF5 file: give a .safetensors version of the model",
            Self::Json => {
                "is JSON text, not a tensor file: give the model folder or its .safetensors file"
            }
        }
    }

    /// What the name of `path` says, for files that need not be opened.
    pub fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "gguf" => Some(Self::Gguf),
            "bin" | "pt" | "pth" | "ckpt" | "pkl" => Some(Self::Pickle),
            "h5" => Some(Self::Hdf5),
            "zip" | "gz" | "tgz" | "tar" | "zst" | "7z" => Some(Self::Archive),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stranger_is_recognised_and_tensor_files_are_not() {
        let cases: [(&[u8], Option<Kind>); 12] = [
            (b"version https://git-lfs.github.com/spec/v1\n", Some(Kind::LfsPointer)),
            (b"\n<!DOCTYPE html><html>", Some(Kind::WebPage)),
            (b"GGUF\x03\0\0\0", Some(Kind::Gguf)),
            (b"PK\x03\x04....", Some(Kind::Pickle)),
            (b"\x80\x02}q\0(X\0\0\0\0", Some(Kind::Pickle)),
            (b"\x80\x02\0\0\0\0\0\0{\"a\"", None),
            (b"<\0\0\0\0\0\0\0{\"a\"", None),
            (b"<\0\0\0\0\0\0\0 {\"a\"", None),
            (b"\x1f\x8b\x08", Some(Kind::Archive)),
            (b"{\"a\":1}", Some(Kind::Json)),
            (b"\x10\0\0\0\0\0\0\0{}", None),
            (b"", None),
        ];
        for (head, kind) in cases {
            assert_eq!(Kind::of(head), kind, "{}", head.escape_ascii());
        }
    }
}
