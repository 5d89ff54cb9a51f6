//! One frozen matrix on a device: dense, or in four bits.

use std::sync::Arc;

use crate::device::{Act, Buf, Device, Dtype};
use crate::error::Error;
use crate::ops::gemm::{FourBit, Operand, Scales};
use crate::quant::{self, Kind};

/// A frozen matrix [rows, cols], row-major.
pub struct Weight {
    /// Count of rows: outputs.
    pub rows: usize,
    /// Count of columns: inputs.
    pub cols: usize,
    store: Store,
}

enum Store {
    Dense(Act),
    FourBit { kind: Kind, codes: Buf<u8>, scales: BlockScales },
}

/// The scales of 4-bit blocks.
pub enum BlockScales {
    /// One f32 a block.
    Plain(Buf<f32>),
    /// One 8-bit code a block, with a second level.
    Nested {
        /// Codes of the scales.
        absmax: Buf<u8>,
        /// One f32 for each 256 codes.
        nested_absmax: Buf<f32>,
        /// Mean of the scales.
        offset: f32,
        /// What the codes stand for.
        map: Arc<Buf<f32>>,
    },
}

impl Weight {
    /// A dense matrix.
    pub fn dense(rows: usize, cols: usize, values: Act) -> Self {
        assert_eq!(values.len(), rows * cols, "a dense weight of {rows} x {cols}");
        Self { rows, cols, store: Store::Dense(values) }
    }

    /// A matrix of 4-bit codes.
    pub fn four_bit(
        [rows, cols]: [usize; 2],
        kind: Kind,
        codes: Buf<u8>,
        scales: BlockScales,
    ) -> Self {
        assert_eq!(codes.len(), quant::code_bytes(rows * cols), "codes of {rows} x {cols}");
        Self { rows, cols, store: Store::FourBit { kind, codes, scales } }
    }

    /// The matrix as the right operand of a product.
    pub fn operand(&self) -> Operand<'_> {
        match &self.store {
            Store::Dense(values) => Operand::Dense(values.view(self.rows, self.cols)),
            Store::FourBit { kind, codes, scales } => Operand::FourBit(FourBit {
                kind: *kind,
                rows: self.rows,
                cols: self.cols,
                codes,
                scales: scales.view(),
            }),
        }
    }

    /// The dense values, for a table that is looked up; `None` in four bits.
    pub fn table(&self) -> Option<&Act> {
        match &self.store {
            Store::Dense(values) => Some(values),
            Store::FourBit { .. } => None,
        }
    }

    /// Writes all values, dequantized, as f32 [rows · cols].
    pub fn read(&self, device: &Device, out: &mut [f32]) -> Result<(), Error> {
        match &self.store {
            Store::Dense(values) => read_dense(device, values, out),
            Store::FourBit { kind, codes, scales } => {
                let mut host = vec![0; codes.len()];
                device.download(codes, &mut host);
                let scales = scales.download(device, quant::blocks(out.len()));
                quant::decode_f32(*kind, &host, |block| scales[block], 0, out);
            }
        }
        device.synchronize()
    }
}

fn read_dense(device: &Device, values: &Act, out: &mut [f32]) {
    let mut bytes = vec![0; out.len() * values.dtype().size()];
    device.download(values.bytes(), &mut bytes);
    let chunks = bytes.chunks_exact(values.dtype().size());
    for (out, b) in out.iter_mut().zip(chunks) {
        *out = match values.dtype() {
            Dtype::Bf16 => half::bf16::from_ne_bytes([b[0], b[1]]).to_f32(),
            Dtype::F32 => f32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::F64 => unreachable!("no weight is kept in f64"),
        };
    }
}

impl BlockScales {
    fn view(&self) -> Scales<'_> {
        match self {
            Self::Plain(scales) => Scales::Plain(scales),
            Self::Nested { absmax, nested_absmax, offset, map } => {
                Scales::Nested { absmax, nested_absmax, offset: *offset, map }
            }
        }
    }

    fn download(&self, device: &Device, blocks: usize) -> Vec<f32> {
        let mut scales = vec![0.0; blocks];
        match self {
            Self::Plain(plain) => device.download(plain, &mut scales),
            Self::Nested { absmax, nested_absmax, offset, map } => {
                let (mut codes, mut nested) = (vec![0; blocks], vec![0.0; nested_absmax.len()]);
                let mut table = [0.0; 256];
                device.download(absmax, &mut codes);
                device.download(nested_absmax, &mut nested);
                device.download(map, &mut table);
                for (i, scale) in scales.iter_mut().enumerate() {
                    *scale = table[codes[i] as usize] * nested[i / quant::NESTED_BLOCK] + offset;
                }
            }
        }
        scales
    }
}
