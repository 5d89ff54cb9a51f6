//! Models of any shape with random weights, in four bits: for plans, tests and measurements at sizes
//! that nobody wants to download.
//!
//! The weights are as large as those of a model before training, so that nothing overflows on the way
//! through many layers; they know nothing. Codes and scales are drawn directly: no matrix exists in
//! 16 bits first. All numbers come from a seed, by position.

use std::path::Path;

use half::bf16;
use rayon::prelude::*;

use crate::checkpoint::bitsandbytes::{self, NewScales, NewWeight};
use crate::checkpoint::tensors::DType;
use crate::checkpoint::writer::{Align, TensorSpec, TensorWriter};
use crate::error::Error;
use crate::ops::rmsnorm::Center;
use crate::quant;
use crate::random::{Purpose, Random};

use super::config::Config;
use super::declared::{Declared, Role};
use super::load::{ScaleForm, declared, tables};
use super::quantize::{StoreForm, book_of, scale_kind_of};

/// Standard deviation of a weight: what most models begin with.
const SIZE: f32 = 0.02;

/// Root mean square of an NF4 or FP4 code that is drawn uniformly.
const CODE_SIZE: f32 = 0.55;

/// Writes a model of `config`. `told` hears how many of how many parts are written, and may end it.
///
/// # Errors
/// A file that cannot be written; what `told` fails with.
pub fn write(
    path: &Path,
    config: &Config,
    form: StoreForm,
    seed: u64,
    mut told: impl FnMut(usize, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let tensors = declared(config)?;
    let groups: Vec<&[Declared]> = tensors.chunk_by(|a, b| a.layer() == b.layer()).collect();
    let specs = |group: &&[Declared]| group.iter().flat_map(|t| specs_of(t, form)).collect();
    let mut writer = TensorWriter::create(path, groups.iter().map(specs).collect(), Align::Cache)?;
    let mut number = 0;
    for (done, group) in groups.iter().enumerate() {
        for tensor in *group {
            let draw = Draw(Random::new(seed, Purpose::Synthetic, number));
            draw.write(&mut writer, tensor, config.center, form)?;
            number += 1;
        }
        told(done + 1, groups.len())?;
    }
    writer.finish()
}

fn specs_of(tensor: &Declared, form: StoreForm) -> Vec<TensorSpec> {
    let Declared { name, shape, role } = tensor;
    match (form.takes(*role), shape.as_slice()) {
        (true, &[rows, cols]) => {
            let (book, scales) = (book_of(form.kind), scale_kind_of(form.scales));
            bitsandbytes::parts(name, [rows, cols], DType::BF16, book, scales)
        }
        _ => vec![TensorSpec::new(name, DType::BF16, shape)],
    }
}

/// The random numbers of one tensor.
struct Draw(Random);

impl Draw {
    fn write(
        &self,
        writer: &mut TensorWriter,
        tensor: &Declared,
        center: Center,
        form: StoreForm,
    ) -> Result<(), Error> {
        let Declared { name, shape, role } = tensor;
        let count = shape.iter().product();
        match (role, shape.as_slice()) {
            (role, &[rows, cols]) if form.takes(*role) => {
                self.write_linear(writer, name, [rows, cols], form)
            }
            (Role::Norm, _) => {
                let usual = if center == Center::One { 0.0 } else { 1.0 };
                writer.write(name, &self.bf16_bytes(count, usual))
            }
            _ => writer.write(name, &self.bf16_bytes(count, 0.0)),
        }
    }

    fn write_linear(
        &self,
        writer: &mut TensorWriter,
        name: &str,
        shape: [usize; 2],
        form: StoreForm,
    ) -> Result<(), Error> {
        let count = shape[0] * shape[1];
        let blocks = quant::blocks(count);
        let codes = self.bytes(0, quant::code_bytes(count));
        // Every block has about the same scale; nested, within a fifth of it.
        let scale = SIZE / CODE_SIZE;
        let absmax = self.bytes(codes.len() as u64, blocks);
        let nested_absmax = vec![scale / 5.0; quant::nested_blocks(blocks)];
        let plain = vec![scale; blocks];
        let weight = NewWeight {
            book: book_of(form.kind),
            shape,
            dtype: DType::BF16,
            codes: &codes,
            scales: match form.scales {
                ScaleForm::Plain => NewScales::Plain(&plain),
                ScaleForm::Nested => NewScales::Nested {
                    absmax: &absmax,
                    nested_absmax: &nested_absmax,
                    offset: scale,
                },
            },
        };
        bitsandbytes::write(writer, name, &weight, tables())
    }

    /// `count` bytes, from the one at `first` on: a multiple of four.
    fn bytes(&self, first: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        bytes.par_chunks_mut(PIECE).enumerate().for_each(|(piece, bytes)| {
            let first = first / 4 + (piece * PIECE / 4) as u64;
            for (i, word) in bytes.chunks_mut(4).enumerate() {
                let drawn = self.0.u32_at(first + i as u64).to_le_bytes();
                word.copy_from_slice(&drawn[..word.len()]);
            }
        });
        bytes
    }

    /// Numbers around `center` with the size of weights: uniform ones, as good as any.
    fn bf16_bytes(&self, count: usize, center: f32) -> Vec<u8> {
        let width = SIZE * 12.0_f32.sqrt();
        let mut bytes = vec![0; 2 * count];
        bytes.par_chunks_mut(PIECE).enumerate().for_each(|(piece, bytes)| {
            for (i, number) in bytes.chunks_exact_mut(2).enumerate() {
                let drawn = self.0.uniform_at((piece * PIECE / 2 + i) as u64) - 0.5;
                number.copy_from_slice(&bf16::from_f32(center + width * drawn).to_le_bytes());
            }
        });
        bytes
    }
}

/// Bytes that one task draws.
const PIECE: usize = 1 << 16;
