//! Matrix products: out (=|+=) α·Σ left·right + bias + residual, where the time goes.
//!
//! The right operand may be dense or stored in four-bit blocks, which are decoded on the way into
//! the product and never exist as a matrix. One or two products are summed before anything is
//! rounded: LoRA rides in the product of the weight as a few more columns of K,
//! y = [x | s·xa]·[W | B]ᵀ.
//!
//! # What the numbers are
//! The operands decide in which type the products are taken, never the instruction set: f64 if any
//! operand or result is f64; else f32 if an operand is f32; else bf16. A four-bit weight is
//! `code · scale` in f32, and one rounding more where the products are taken in bf16. Sums are f32
//! (f64 with f64), so the product of two bf16 numbers is exact in them. An element of the result
//! depends on its own row and column alone: not on the threads, nor on how many rows come along.
//!
//! # Where to read next
//! `gemm/blocks.rs` cuts the product into blocks, `gemm/pack.rs` brings operands into the order in
//! which `gemm/tile.rs` multiplies them.

mod blocks;
mod finish;
mod gpu;
mod pack;
mod panel;
mod sides;
#[cfg(test)]
mod tests;
mod tile;
mod transpose;

use super::Write;
#[cfg(target_arch = "x86_64")]
use crate::device::Simd;
use crate::device::{
    Address, Buf, Cpu, Device, Dtype, Kernel, Mat, MatMut, Queue, Scratch, ScratchMemory,
};
use crate::error::Error;
use crate::quant;
use blocks::Blocks;
use tile::Portable;

/// Which of the operands are transposed: left and right as they are stored, M rows and N columns of
/// the result, K summed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Form {
    /// [M, K] · [N, K]ᵀ: y = x·Wᵀ.
    Nt = 0,
    /// [M, K] · [K, N]: dx = dy·W.
    Nn = 1,
    /// [K, M]ᵀ · [K, N]: dW = dyᵀ·x.
    Tn = 2,
}

/// The right operand of a product.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// A matrix of plain numbers.
    Dense(Mat<'a>),
    /// A matrix in four-bit blocks.
    FourBit(FourBit<'a>),
}

impl<'a> From<Mat<'a>> for Operand<'a> {
    fn from(matrix: Mat<'a>) -> Self {
        Self::Dense(matrix)
    }
}

impl Operand<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(matrix) => (matrix.rows, matrix.cols),
            Self::FourBit(weight) => (weight.rows, weight.cols),
        }
    }
}

/// A matrix in four-bit blocks: 64 consecutive values of the row-major matrix share a scale, so a
/// block may end within a row.
#[derive(Clone, Copy)]
pub struct FourBit<'a> {
    /// What the codes stand for.
    pub kind: quant::Kind,
    /// Count of rows.
    pub rows: usize,
    /// Count of columns.
    pub cols: usize,
    /// Two codes per byte, the first one in the high half.
    pub codes: &'a Buf<u8>,
    /// One scale per block.
    pub scales: Scales<'a>,
}

/// How the scales of four-bit blocks are stored.
#[derive(Clone, Copy)]
pub enum Scales<'a> {
    /// As they are.
    Plain(&'a Buf<f32>),
    /// Quantized themselves: scale = map\[absmax\[b\]\] · nested_absmax\[b / 256\] + offset.
    Nested {
        /// One code per block.
        absmax: &'a Buf<u8>,
        /// One scale per 256 blocks.
        nested_absmax: &'a Buf<f32>,
        /// What was subtracted from all scales.
        offset: f32,
        /// The value of each of the 256 codes.
        map: &'a Buf<f32>,
    },
}

/// One product of the sum; its shapes follow from the [`Form`].
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// [M, K], or [K, M] in [`Form::Tn`].
    pub left: Mat<'a>,
    /// [K, N], or [N, K] in [`Form::Nt`].
    pub right: Operand<'a>,
}

/// What happens to the sum before it is rounded.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// Factor of the sum.
    pub alpha: f32,
    /// `[N]`, added to every row.
    pub bias: Option<&'a Buf<f32>>,
    /// [M, N], added.
    pub residual: Option<Mat<'a>>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { alpha: 1.0, bias: None, residual: None }
    }
}

/// out [M, N] (=|+=) α·Σ left·right + bias + residual, for one or two `terms`.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul(
    device: &Device,
    form: Form,
    terms: &[Term],
    epilogue: Epilogue,
    out: MatMut,
    write: Write,
) {
    let params = Params::new(form, terms, epilogue, &out, write);
    // SAFETY: `Params::new` has checked that all shapes agree, and the borrows keep them valid.
    unsafe { device.launch(params) }
}

/// Parameters of the kernel `gemm`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    /// The second one has depth 0 where there is one term.
    products: [Product; 2],
    rows: u64,
    cols: u64,
    /// Null for none.
    bias: Address,
    /// Null for none.
    residual: Dense,
    out: Dense,
    alpha: f32,
    form: Form,
    write: Write,
    /// The type in which products are taken.
    compute: Dtype,
}

/// One product: operands and their K.
#[derive(Clone, Copy)]
#[repr(C)]
struct Product {
    left: Dense,
    right: Right,
    depth: u64,
}

/// A matrix of plain numbers.
#[derive(Clone, Copy)]
#[repr(C)]
struct Dense {
    address: Address,
    stride: u64,
    dtype: Dtype,
}

/// The right operand: `dense` or `weight`, as `content` says.
#[derive(Clone, Copy)]
#[repr(C)]
struct Right {
    dense: Dense,
    weight: Weight,
    content: Content,
}

/// A matrix of `values` numbers in four-bit blocks, `cols` to a row.
#[derive(Clone, Copy)]
#[repr(C)]
struct Weight {
    codes: Address,
    absmax: Address,
    /// Null where `absmax` holds the scales themselves.
    nested_absmax: Address,
    map: Address,
    values: u64,
    cols: u64,
    offset: f32,
}

/// What the right operand is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Content {
    Dense = 0,
    Nf4 = 1,
    Fp4 = 2,
}

impl Params {
    fn new(form: Form, terms: &[Term], epilogue: Epilogue, out: &MatMut, write: Write) -> Self {
        assert!(matches!(terms.len(), 1 | 2), "{} terms, not 1 or 2", terms.len());
        let product = |term: &Term| Product::new(form, term, (out.rows, out.cols));
        if let Some(bias) = epilogue.bias {
            assert_eq!(bias.len(), out.cols, "numbers of bias for the columns");
        }
        let residual = epilogue.residual;
        if let Some(residual) = residual {
            let shape = (residual.rows, residual.cols);
            assert_eq!(shape, (out.rows, out.cols), "shape of the residual");
        }
        Self {
            products: [product(&terms[0]), terms.get(1).map_or(Product::NONE, product)],
            rows: out.rows as u64,
            cols: out.cols as u64,
            bias: epilogue.bias.map_or(Address::NULL, Buf::address),
            residual: residual.map_or(Dense::NONE, Dense::new),
            out: Dense::new(out.view()),
            alpha: epilogue.alpha,
            form,
            write,
            compute: compute_type(terms, residual, out.dtype),
        }
    }
}

/// See the module documentation.
fn compute_type(terms: &[Term], residual: Option<Mat>, out: Dtype) -> Dtype {
    let right = |term: &Term| match term.right {
        Operand::Dense(matrix) => matrix.dtype,
        Operand::FourBit(_) => Dtype::Bf16,
    };
    let operands = || terms.iter().flat_map(|term| [term.left.dtype, right(term)]);
    let results = [out, residual.map_or(out, |residual| residual.dtype)];
    if operands().chain(results).any(|dtype| dtype == Dtype::F64) {
        Dtype::F64
    } else if operands().any(|dtype| dtype == Dtype::F32) {
        Dtype::F32
    } else {
        Dtype::Bf16
    }
}

impl Product {
    const NONE: Self = Self {
        left: Dense::NONE,
        right: Right { dense: Dense::NONE, weight: Weight::NONE, content: Content::Dense },
        depth: 0,
    };

    fn new(form: Form, term: &Term, (m, n): (usize, usize)) -> Self {
        let (left, right) = ((term.left.rows, term.left.cols), term.right.shape());
        let k = if form == Form::Tn { left.0 } else { left.1 };
        let expected = match form {
            Form::Nt => ((m, k), (n, k)),
            Form::Nn => ((m, k), (k, n)),
            Form::Tn => ((k, m), (k, n)),
        };
        assert_eq!((left, right), expected, "operands of a {m} x {n} {form:?}");
        Self { left: Dense::new(term.left), right: Right::new(&term.right), depth: k as u64 }
    }
}

impl Dense {
    const NONE: Self = Self { address: Address::NULL, stride: 0, dtype: Dtype::Bf16 };

    fn new(matrix: Mat) -> Self {
        Self { address: matrix.address, stride: matrix.stride as u64, dtype: matrix.dtype }
    }
}

impl Right {
    fn new(operand: &Operand) -> Self {
        match operand {
            Operand::Dense(matrix) => Self { dense: Dense::new(*matrix), ..Product::NONE.right },
            Operand::FourBit(weight) => Self {
                weight: Weight::new(weight),
                content: match weight.kind {
                    quant::Kind::Nf4 => Content::Nf4,
                    quant::Kind::Fp4 => Content::Fp4,
                },
                ..Product::NONE.right
            },
        }
    }
}

impl Weight {
    const NONE: Self = Self {
        codes: Address::NULL,
        absmax: Address::NULL,
        nested_absmax: Address::NULL,
        map: Address::NULL,
        values: 0,
        cols: 0,
        offset: 0.0,
    };

    fn new(weight: &FourBit) -> Self {
        let values = weight.rows * weight.cols;
        let blocks = quant::blocks(values);
        assert_at_least("bytes of codes", weight.codes.len(), quant::code_bytes(values));
        let stored = Self {
            codes: weight.codes.address(),
            values: values as u64,
            cols: weight.cols as u64,
            ..Self::NONE
        };
        match weight.scales {
            Scales::Plain(scales) => {
                assert_at_least("scales", scales.len(), blocks);
                Self { absmax: scales.address(), ..stored }
            }
            Scales::Nested { absmax, nested_absmax, offset, map } => {
                assert_at_least("codes of scales", absmax.len(), blocks);
                let nested = quant::nested_blocks(blocks);
                assert_at_least("nested scales", nested_absmax.len(), nested);
                assert_at_least("entries of the map", map.len(), 256);
                Self {
                    absmax: absmax.address(),
                    nested_absmax: nested_absmax.address(),
                    map: map.address(),
                    offset,
                    ..stored
                }
            }
        }
    }
}

fn assert_at_least(what: &str, len: usize, needed: usize) {
    assert!(len >= needed, "{len} {what}, {needed} needed");
}

// SAFETY: touches operands, bias, residual and result within the stated shapes only; a task owns
// its rectangle of the result, and every element is summed in the order of K.
unsafe impl Kernel for Params {
    const NAME: &'static str = "gemm";

    fn scratch(&self) -> Scratch {
        blocks::scratch(self)
    }

    fn flops(&self) -> f64 {
        let depth: u64 = self.products.iter().map(|product| product.depth).sum();
        2.0 * self.rows as f64 * self.cols as f64 * depth as f64
    }

    unsafe fn run_on_cpu(&self, cpu: &Cpu, scratch: ScratchMemory) {
        // SAFETY: the caller vouches for all addresses, and a device has an instruction set only
        // where the machine has it.
        unsafe {
            match (self.compute, cpu.simd()) {
                (Dtype::F64, _) => Blocks::<Portable<f64>>::run(self, cpu, scratch),
                #[cfg(target_arch = "x86_64")]
                (Dtype::Bf16, Simd::Avx512Bf16) => {
                    Blocks::<tile::Avx512Bf16>::run(self, cpu, scratch);
                }
                #[cfg(target_arch = "x86_64")]
                (_, Simd::Avx512 | Simd::Avx512Bf16) => {
                    Blocks::<tile::Avx512>::run(self, cpu, scratch);
                }
                #[cfg(target_arch = "x86_64")]
                (_, Simd::Avx2) => Blocks::<tile::Avx2>::run(self, cpu, scratch),
                _ => Blocks::<Portable<f32>>::run(self, cpu, scratch),
            }
        }
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        // SAFETY: passed on from the caller.
        unsafe { gpu::run(self, queue) }
    }
}
