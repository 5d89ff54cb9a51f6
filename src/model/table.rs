//! The embedding table: on the device, or in its file, of which only the rows that a batch names pass
//! to the device.

use crate::device::{Act, Buf, Device, Dtype, HostBytes};
use crate::ops::embedding;

use super::weight::Weight;

/// Token embeddings [V, C].
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub enum Table {
    /// On the device, where the head may be the same matrix.
    Resident(Weight),
    /// In a file, in bf16.
    Streamed(Rows),
}

/// Rows of a file.
pub struct Rows {
    /// C.
    pub cols: usize,
    /// V · C numbers; absent on a plan.
    pub bytes: Option<HostBytes>,
}

/// Bytes of rows that are gathered before they are sent.
const PIECE: usize = 1 << 20;

impl Table {
    /// The matrix, where it is on the device.
    pub fn resident(&self) -> Option<&Weight> {
        match self {
            Self::Resident(weight) => Some(weight),
            Self::Streamed(_) => None,
        }
    }

    /// The first rows of `out` [n, C] = `scale` times the rows that `tokens` name. `ids` holds the tokens
    /// on the device; `room` is another [n, C].
    pub fn lookup(
        &self,
        device: &Device,
        tokens: &[u32],
        ids: &mut Buf<u32>,
        scale: f32,
        [room, out]: [&mut Act; 2],
    ) {
        let n = tokens.len();
        match self {
            Self::Resident(weight) => {
                let table = weight.table().expect("embeddings are dense");
                let table = table.view(weight.rows, weight.cols);
                embedding::lookup(device, table, ids, scale, out.view_mut(n, weight.cols));
            }
            Self::Streamed(rows) => {
                rows.send(device, tokens, room);
                // Row i is that of token i now.
                let numbers: Vec<u32> = (0..n as u32).collect();
                device.upload(&numbers, ids);
                let sent = room.view(n, rows.cols);
                embedding::lookup(device, sent, ids, scale, out.view_mut(n, rows.cols));
            }
        }
    }
}

impl Rows {
    /// Copies the rows of `tokens` to the start of `room`, a piece at a time.
    fn send(&self, device: &Device, tokens: &[u32], room: &mut Act) {
        let Some(bytes) = &self.bytes else { return };
        let (table, width) = ((**bytes).as_ref(), self.cols * Dtype::Bf16.size());
        let in_piece = (PIECE / width).max(1);
        let mut piece = Vec::with_capacity(in_piece * width);
        for (i, tokens) in tokens.chunks(in_piece).enumerate() {
            piece.clear();
            for token in tokens {
                let start = *token as usize * width;
                piece.extend_from_slice(&table[start..start + width]);
            }
            device.upload_at(&piece, room.bytes_mut(), i * in_piece * width);
        }
    }
}
