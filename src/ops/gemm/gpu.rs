//! A product on a GPU: one kernel sums both products and rounds once; form and size choose it. Up to some
//! number of rows a four-bit operand is decoded on its way into the product, again for each 64 of them; beyond
//! that it goes through scratch, as a matrix of bf16.

use super::{Content, Dense, Form, Params, Product, Right, Weight};
use crate::device::{Address, Dtype, Grid, Queue, narrow};
use crate::error::Error;
use crate::{ffi, quant};

/// The kernels of one size of block.
struct Kernels {
    /// Rows and columns of the result that a block computes.
    tile: usize,
    /// By [`Form`].
    names: [&'static str; 3],
}

const SMALL: Kernels = Kernels { tile: 64, names: ["matmul_nt", "matmul_nn", "matmul_tn"] };

const LARGE: Kernels =
    Kernels { tile: 128, names: ["matmul_large_nt", "matmul_large_nn", "matmul_large_tn"] };

impl Kernels {
    /// A block of the large kernels brings half as many numbers for each product; more than half of it
    /// must not lie beyond the result.
    fn of(p: &Params) -> &'static Self {
        let fills = |size: u64| size as usize > LARGE.tile / 2;
        if fills(p.rows) && fills(p.cols) { &LARGE } else { &SMALL }
    }

    fn grid(&self, p: &Params) -> Grid {
        let tiles = |size: u64| (size as usize).div_ceil(self.tile);
        Grid([tiles(p.cols), tiles(p.rows), 1])
    }
}

/// # Safety
/// As for [`Kernel::run_on_gpu`](crate::device::Kernel::run_on_gpu).
pub(super) unsafe fn run(p: &Params, queue: &Queue) -> Result<(), Error> {
    queue.require_bf16("matmul", p.compute)?;
    let fits = matches!(p.out.dtype, Dtype::Bf16 | Dtype::F32);
    queue.require("matmul", fits, || format!("to {:?}", p.out.dtype))?;
    if !p.residual.address.is_null() {
        queue.require_bf16("matmul", p.residual.dtype)?;
    }
    // SAFETY: passed on from the caller.
    unsafe {
        match four_bit_kernel(p, queue.capability()) {
            Some(name) => queue_four_bit(p, name, queue),
            None => queue_dense(p, queue),
        }
    }
}

/// Rows up to which decoding on the way is the faster one, by what `scripts/predict_kernels.py` says of both
/// main loops; it has not been measured. GeForce cards and their like wait for their tensor cores, which leaves
/// time to decode at any length of a training step: 0.79 of their peak against 0.80 and the time to decode.
/// Hopper's tensor cores wait for instructions, so that the dense product, twice as fast, wins from 200 rows on.
/// Of other cards nothing is predicted: each number is decoded once.
fn rows_of_four_bits(capability: Option<(i32, i32)>) -> usize {
    match capability {
        Some((8, 6 | 9) | (12, 0)) => 2048,
        Some((9, 0)) => 192,
        _ => SMALL.tile,
    }
}

/// The kernel that decodes the first right operand on its way, where that is faster.
fn four_bit_kernel(p: &Params, capability: Option<(i32, i32)>) -> Option<&'static str> {
    let [first, second] = &p.products;
    let whole_blocks = first.right.weight.cols.is_multiple_of(quant::BLOCK as u64);
    let fits = first.right.content != Content::Dense
        && second.right.content == Content::Dense
        && whole_blocks
        && p.rows as usize <= rows_of_four_bits(capability);
    match p.form {
        Form::Nt if fits => Some("matmul_4bit_nt"),
        Form::Nn if fits => Some("matmul_4bit_nn"),
        _ => None,
    }
}

unsafe fn queue_four_bit(p: &Params, name: &'static str, queue: &Queue) -> Result<(), Error> {
    let Weight { codes, absmax, nested_absmax, map, cols, offset, .. } = p.products[0].right.weight;
    let stored = Dense { address: codes, stride: cols, dtype: Dtype::Bf16 };
    let params = ffi::Matmul4bit {
        product: product_of(p, [stored, p.products[1].right.dense]),
        absmax: absmax.number(),
        nested_absmax: nested_absmax.number(),
        map: map.number(),
        offset,
        book: *p.products[0].right.kind().expect("four bits").values(),
    };
    // SAFETY: passed on from the caller.
    unsafe { queue.launch(name, SMALL.grid(p), &params) }
}

unsafe fn queue_dense(p: &Params, queue: &Queue) -> Result<(), Error> {
    let decoded = p.products.map(|product| product.decoded_bytes());
    let scratch = queue.scratch(decoded.iter().sum())?;
    let places = [scratch, scratch.offset(decoded[0])];
    let mut rights = [Dense::NONE; 2];
    for ((product, place), right) in p.products.iter().zip(places).zip(&mut rights) {
        // SAFETY: passed on from the caller; the place has room for the decoded operand.
        *right = unsafe { product.right_on_gpu(place, queue)? };
    }
    let kernels = Kernels::of(p);
    let name = kernels.names[p.form as usize];
    // SAFETY: passed on from the caller.
    unsafe { queue.launch(name, kernels.grid(p), &product_of(p, rights)) }
}

/// The products with right operands as they are stored.
fn product_of(p: &Params, rights: [Dense; 2]) -> ffi::Matmul {
    let lefts = p.products.map(|product| product.left);
    ffi::Matmul {
        a: lefts.map(|matrix| matrix.address.number()),
        b: rights.map(|matrix| matrix.address.number()),
        out: p.out.address.number(),
        bias: p.bias.number(),
        residual: p.residual.address.number(),
        a_stride: lefts.map(|matrix| matrix.stride),
        b_stride: rights.map(|matrix| matrix.stride),
        out_stride: p.out.stride,
        residual_stride: p.residual.stride,
        k: p.products.map(|product| narrow(product.depth)),
        m: narrow(p.rows),
        n: narrow(p.cols),
        alpha: p.alpha,
        add: p.write as u32,
        wide: u32::from(p.out.dtype == Dtype::F32),
    }
}

impl Product {
    /// Bytes of the right operand as bf16, if it has to be decoded.
    fn decoded_bytes(&self) -> usize {
        let values = self.right.kind().map_or(0, |_| self.right.weight.values as usize);
        (values * 2).next_multiple_of(256)
    }

    /// The right operand as plain numbers, decoded to `place` if need be.
    unsafe fn right_on_gpu(&self, place: Address, queue: &Queue) -> Result<Dense, Error> {
        let Some(kind) = self.right.kind() else { return Ok(self.right.dense) };
        let weight = &self.right.weight;
        // SAFETY: passed on from the caller.
        unsafe { weight.decode_on_gpu(kind, place, queue)? };
        Ok(Dense { address: place, stride: weight.cols, dtype: Dtype::Bf16 })
    }
}

impl Right {
    /// What the codes stand for, if there are codes.
    fn kind(&self) -> Option<quant::Kind> {
        match self.content {
            Content::Dense => None,
            Content::Nf4 => Some(quant::Kind::Nf4),
            Content::Fp4 => Some(quant::Kind::Fp4),
        }
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
        unsafe { queue.launch("dequantize", Grid::row(blocks), &params) }
    }
}
