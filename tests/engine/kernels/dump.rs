//! What a kernel was given and what it left, as files, for whoever looks into a wrong number.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use ptx_emu::Order;
use qlora_train::ffi::Embedding;

use super::near::assert_same;
use super::{Card, Grid, bf16_bytes};

/// Bytes of a failure that are written at most.
const DUMPED: usize = 16 << 20;

/// A buffer of a card.
#[derive(Clone)]
pub(super) struct Copied {
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

/// What a kernel was given.
pub(super) struct Ran {
    /// The kernel, its grid and its parameters.
    pub(super) what: String,
    pub(super) before: Vec<Copied>,
}

impl Ran {
    /// Writes it into a folder within `folder`, and what the kernel has left: raw bytes of each buffer, and
    /// an index of them.
    pub(super) fn dump(&self, folder: &Path, after: &[Copied]) -> io::Result<()> {
        let mut hasher = DefaultHasher::new();
        self.what.hash(&mut hasher);
        let kernel = self.what.split(' ').next().unwrap_or_default();
        let folder = folder.join(format!("{kernel}-{:016x}", hasher.finish()));
        fs::create_dir_all(&folder)?;
        let (mut index, mut room) = (format!("{}\n", self.what), DUMPED);
        for (when, contents) in [("before", self.before.as_slice()), ("after", after)] {
            for Copied { address, bytes } in contents {
                let name = format!("{address:x}-{when}");
                let kept = bytes.len().min(room);
                room -= kept;
                fs::write(folder.join(&name), &bytes[..kept])?;
                index += &format!("{name}: {kept} of {} bytes\n", bytes.len());
            }
        }
        fs::write(folder.join("index.txt"), index)
    }
}

#[test]
fn a_wrong_number_leaves_what_the_kernel_was_given_and_what_it_made_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let fails = || {
        let mut card = Card::new();
        card.dump = Some(folder.path().to_owned());
        let found = doubled(&mut card, &[1.0, 2.0, 3.0]);
        assert_same(&found, &[2.0, 5.0, 6.0], 3, "rows of an embedding");
    };
    let told = std::panic::catch_unwind(fails).unwrap_err().downcast::<String>().unwrap();
    let expected = "rows of an embedding: other bits in 1 of 3 numbers\n  (0, 1): 4.0, not 5.0";
    assert_eq!(*told, expected);
    let dumped = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    assert!(dumped.file_name().unwrap().to_str().unwrap().starts_with("embedding-"));
    let index = fs::read_to_string(dumped.join("index.txt")).unwrap();
    let mut lines = index.lines();
    let what = lines.next().unwrap();
    assert!(what.starts_with("embedding over [1, 1, 1] blocks, Embedding {"), "{what}");
    let bytes = |when: &str| -> Vec<Vec<u8>> {
        let lines = index.lines().filter(|line| line.contains(when));
        let names = lines.map(|line| line.split(':').next().unwrap());
        names.map(|name| fs::read(dumped.join(name)).unwrap()).collect()
    };
    // The table, the token, and the row; only that is another one afterwards.
    let [before, after] = ["-before", "-after"].map(bytes);
    assert_eq!(before[..2], [bf16_bytes(&[1.0, 2.0, 3.0]), vec![0; 4]]);
    assert_eq!(after[..2], before[..2]);
    assert_eq!(after[2], bf16_bytes(&[2.0, 4.0, 6.0]));
}

/// A row of an embedding that is scaled by 2.
fn doubled(card: &mut Card, row: &[f32]) -> Vec<f32> {
    let params = Embedding {
        table: card.upload(&bf16_bytes(row)),
        tokens: card.upload(&[0; 4]),
        out: card.alloc(row.len() * 2),
        table_stride: row.len() as u64,
        out_stride: row.len() as u64,
        cols: row.len() as u32,
        scale: 2.0,
    };
    let (image, kernel) = ("embedding", "embedding");
    let grid = Grid { image, kernel, blocks: [1; 3], threads: 128, shared_bytes: 0 };
    card.run(&grid, &params, Order::Forward);
    card.bf16(params.out, row.len())
}

#[test]
fn of_what_is_written_there_is_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let ran = Ran {
        what: "rope over [1, 1, 1] blocks".to_owned(),
        before: vec![Copied { address: 16, bytes: vec![1; DUMPED] }],
    };
    ran.dump(folder.path(), &[Copied { address: 16, bytes: vec![2; 5] }]).unwrap();
    let dumped = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let index = fs::read_to_string(dumped.join("index.txt")).unwrap();
    assert!(index.ends_with("\n10-after: 0 of 5 bytes\n"), "{index}");
    assert_eq!(fs::read(dumped.join("10-before")).unwrap().len(), DUMPED);
}
