//! A product on a GPU: a four-bit operand is decoded into scratch as a matrix of bf16, and one kernel
//! sums both products and rounds once. The form of the product and its size choose the kernel.

use super::{Content, Dense, Params, Product, Weight};
use crate::device::{Address, Dtype, Grid, Queue, narrow};
use crate::error::Error;
use crate::{ffi, quant};

/// The kernels of one size of block.
struct Kernels {
    /// Rows and columns of the result that a block computes.
    tile: usize,
    threads: u32,
    /// By [`Form`].
    names: [&'static str; 3],
}

const SMALL: Kernels =
    Kernels { tile: 64, threads: 128, names: ["matmul_nt", "matmul_nn", "matmul_tn"] };

const LARGE: Kernels = Kernels {
    tile: 128,
    threads: 256,
    names: ["matmul_large_nt", "matmul_large_nn", "matmul_large_tn"],
};

impl Kernels {
    /// A block of the large kernels brings half as many numbers for each product; more than half of it
    /// must not lie beyond the result.
    fn of(p: &Params) -> &'static Self {
        let fills = |size: u64| size as usize > LARGE.tile / 2;
        if fills(p.rows) && fills(p.cols) { &LARGE } else { &SMALL }
    }

    fn grid(&self, p: &Params) -> Grid {
        let tiles = |size: u64| (size as usize).div_ceil(self.tile);
        // Three stages of both operands, bf16 with a depth of 64.
        let shared = 3 * 2 * self.tile * 64 * 2;
        Grid { blocks: [tiles(p.cols), tiles(p.rows), 1], threads: self.threads, shared }
    }
}

/// # Safety
/// As for [`Kernel::run_on_gpu`](crate::device::Kernel::run_on_gpu).
pub(super) unsafe fn run(p: &Params, queue: &Queue) -> Result<(), Error> {
    queue.require_bf16("matmul", p.compute)?;
    let decoded = p.products.map(|product| product.decoded_bytes());
    let scratch = queue.scratch(decoded.iter().sum())?;
    let places = [scratch, scratch.offset(decoded[0])];
    let mut rights = [Dense::NONE; 2];
    for ((product, place), right) in p.products.iter().zip(places).zip(&mut rights) {
        // SAFETY: passed on from the caller; the place has room for the decoded operand.
        *right = unsafe { product.right_on_gpu(place, queue)? };
    }
    let wide = p.out.dtype == Dtype::F32;
    queue.require("matmul", wide || p.out.dtype == Dtype::Bf16, || {
        format!("to {:?}", p.out.dtype)
    })?;
    if !p.residual.address.is_null() {
        queue.require_bf16("matmul", p.residual.dtype)?;
    }
    let [left, right] = [p.products.map(|product| product.left), rights];
    let params = ffi::Matmul {
        a: left.map(|matrix| matrix.address.number()),
        b: right.map(|matrix| matrix.address.number()),
        out: p.out.address.number(),
        bias: p.bias.number(),
        residual: p.residual.address.number(),
        a_stride: left.map(|matrix| matrix.stride),
        b_stride: right.map(|matrix| matrix.stride),
        out_stride: p.out.stride,
        residual_stride: p.residual.stride,
        k: p.products.map(|product| narrow(product.depth)),
        m: narrow(p.rows),
        n: narrow(p.cols),
        alpha: p.alpha,
        add: p.write as u32,
        wide: u32::from(wide),
    };
    let kernels = Kernels::of(p);
    let name = kernels.names[p.form as usize];
    // SAFETY: passed on from the caller.
    unsafe { queue.launch(name, kernels.grid(p), &params) }
}

impl Product {
    /// Bytes of the right operand as bf16, if it has to be decoded.
    fn decoded_bytes(&self) -> usize {
        match self.right.content {
            Content::Dense => 0,
            Content::Nf4 | Content::Fp4 => {
                (self.right.weight.values as usize * 2).next_multiple_of(256)
            }
        }
    }

    /// The right operand as plain numbers, decoded to `place` if need be.
    unsafe fn right_on_gpu(&self, place: Address, queue: &Queue) -> Result<Dense, Error> {
        let kind = match self.right.content {
            Content::Dense => return Ok(self.right.dense),
            Content::Nf4 => quant::Kind::Nf4,
            Content::Fp4 => quant::Kind::Fp4,
        };
        let weight = &self.right.weight;
        // SAFETY: passed on from the caller.
        unsafe { weight.decode_on_gpu(kind, place, queue)? };
        Ok(Dense { address: place, stride: weight.cols, dtype: Dtype::Bf16 })
    }
}

impl Weight {
    unsafe fn decode_on_gpu(
        &self,
        kind: quant::Kind,
        out: Address,
        queue: &Queue,
    ) -> Result<(), Error> {
        const THREADS: usize = 128;
        let values = self.values;
        queue.require("dequantize", values.is_multiple_of(quant::BLOCK as u64), || {
            format!("a matrix of {values} four-bit numbers ends within a block of 64")
        })?;
        let params = ffi::Dequantize {
            codes: self.codes.number(),
            absmax: self.absmax.number(),
            nested_absmax: self.nested_absmax.number(),
            map: self.map.number(),
            out: out.number(),
            values,
            offset: self.offset,
            book: *kind.values(),
        };
        let blocks = (values as usize / quant::BLOCK).div_ceil(THREADS);
        // SAFETY: passed on from the caller.
        unsafe { queue.launch("dequantize", Grid::row(blocks, THREADS as u32), &params) }
    }
}
