//! One matrix of a file into four bits, in pieces on all cores.

use rayon::prelude::*;

use crate::checkpoint::bitsandbytes::{CodeBook, ScaleKind};
use crate::checkpoint::tensors::Tensor;
use crate::error::Error;
use crate::quant::{self, Kind};

use super::declared::Role;
use super::load::ScaleForm;

/// Which tensors of a model are in four bits in a file, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreForm {
    /// Their codes.
    pub kind: Kind,
    /// Their scales.
    pub scales: ScaleForm,
    /// Whether the head is among them.
    pub head: bool,
}

impl StoreForm {
    /// Whether a tensor of `role` is in four bits.
    pub fn takes(self, role: Role) -> bool {
        role == Role::Linear || role == Role::Head && self.head
    }
}

/// The name that a file gives to a kind of codes.
pub fn book_of(kind: Kind) -> CodeBook {
    match kind {
        Kind::Nf4 => CodeBook::Nf4,
        Kind::Fp4 => CodeBook::Fp4,
    }
}

/// The name that a file gives to a form of scales.
pub fn scale_kind_of(form: ScaleForm) -> ScaleKind {
    match form {
        ScaleForm::Plain => ScaleKind::Plain,
        ScaleForm::Nested => ScaleKind::Nested,
    }
}

/// Codes and f32 scales of one matrix.
pub struct Encoded {
    /// Two codes a byte.
    pub codes: Vec<u8>,
    /// One scale a block.
    pub scales: Vec<f32>,
}

/// The second level of scales.
pub struct NestedScales {
    /// One code a block.
    pub codes: Vec<u8>,
    /// One f32 for each 256 codes.
    pub absmax: Vec<f32>,
    /// Mean of the scales.
    pub offset: f32,
}

impl NestedScales {
    /// Quantizes the scales of one matrix.
    pub fn of(scales: &[f32]) -> Self {
        let offset = quant::mean(scales);
        let mut codes = vec![0; scales.len()];
        let mut absmax = vec![0.0; quant::nested_blocks(scales.len())];
        quant::encode_scales(scales, offset, &mut codes, &mut absmax);
        Self { codes, absmax, offset }
    }
}

/// Values that one task takes: whole blocks, and few enough to stay in a core's cache.
const PIECE: usize = 64 * 256;

/// Quantizes one matrix in pieces on all cores.
///
/// # Errors
/// Numbers that are not finite, or no float type.
pub fn encode(tensor: &Tensor, kind: Kind) -> Result<Encoded, Error> {
    tensor.expect_float()?;
    let count = tensor.elements();
    let mut codes = vec![0; quant::code_bytes(count)];
    let mut scales = vec![0.0; quant::blocks(count)];
    codes
        .par_chunks_mut(PIECE / 2)
        .zip(scales.par_chunks_mut(PIECE / quant::BLOCK))
        .enumerate()
        .try_for_each_init(
            || vec![0.0; PIECE],
            |values, (piece, (codes, scales))| {
                let first = piece * PIECE;
                let values = &mut values[..PIECE.min(count - first)];
                tensor.to_f32_at(first, values)?;
                tensor.check_finite(first, values)?;
                quant::encode(kind, values, codes, scales);
                Ok(())
            },
        )?;
    Ok(Encoded { codes, scales })
}

/// Refuses numbers that are not finite, on all cores.
///
/// # Errors
/// The first of them.
pub fn check_finite(tensor: &Tensor) -> Result<(), Error> {
    let count = tensor.elements();
    (0..count.div_ceil(PIECE)).into_par_iter().try_for_each_init(
        || vec![0.0; PIECE],
        |values, piece| {
            let first = piece * PIECE;
            let values = &mut values[..PIECE.min(count - first)];
            tensor.to_f32_at(first, values)?;
            tensor.check_finite(first, values)
        },
    )
}
