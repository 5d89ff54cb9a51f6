//! Causal attention over packed records, flash style: the T × T scores never exist as a whole.
//!
//! Tokens lie flat, one record behind the other; a [`Segment`] says where a record's queries and
//! keys are, and no query sees a key of another segment. With z = scale·q·k, s = z (or
//! cap·tanh(z/cap)) over the keys that a query sees, lse = ln Σ eˢ and P = e^(s−lse), the output is
//! o = Σ P·v. The backward pass computes P again from lse and needs Δ = Σ dO·O of each query:
//!
//! dV = Pᵀ·dO, dS = P ∘ (dO·Vᵀ − Δ) ∘ (1 − (s/cap)²), dQ = scale·dS·K, dK = scale·dSᵀ·Q
//!
//! where dK and dV are sums over the query heads that share a kv head.
//!
//! With bf16 activations P and dS are rounded to bf16 before they are multiplied, as GPUs do it.
//!
//! Here are the parameters and the safe functions. The CPU implementation is in `attention/forward.rs`
//! and `attention/backward.rs`; both are written in the terms of `attention/block.rs` and
//! `attention/math.rs`. `attention/gpu.rs` queues the kernels of a GPU.

mod backward;
mod block;
mod forward;
mod gpu;
mod math;
mod product;
#[cfg(test)]
mod tests;

use backward::{run as backward_on_cpu, scratch as backward_scratch};
use bytemuck::{Pod, Zeroable};
use forward::{run as forward_on_cpu, scratch as forward_scratch};
use half::bf16;
use math::{Pairs, Plain};

use super::slice;
use crate::device::{
    Address, Buf, Cpu, Device, Dtype, Kernel, Mat, MatMut, Queue, Scratch, ScratchMemory, Simd,
};
use crate::error::Error;

/// Where a record's queries and keys are among all rows.
///
/// Query i stands at key position `k_len` − `q_len` + i of its segment and sees the keys up to
/// there. In training both ranges are the same; a cache of earlier keys makes `k_len` the longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Segment {
    /// Row of the first query.
    pub q_start: u32,
    /// Count of queries.
    pub q_len: u32,
    /// Row of the first key.
    pub k_start: u32,
    /// Count of keys, at least `q_len`.
    pub k_len: u32,
}

// SAFETY: four integers; zeros are a segment without tokens.
unsafe impl Zeroable for Segment {}
// SAFETY: `repr(C)`, integers of one size, no padding, any bit pattern allowed.
unsafe impl Pod for Segment {}

/// Heads of the queries, and of the keys and values: `heads` is a multiple of `kv_heads`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// H: query heads.
    pub heads: usize,
    /// K: heads of keys and values, each shared by H/K query heads.
    pub kv_heads: usize,
    /// D: numbers of one head.
    pub head_dim: usize,
}

/// What attention does to any q, k and v.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Heads and their width.
    pub heads: Heads,
    /// Factor of q·k, usually 1/√D.
    pub scale: f32,
    /// A query sees keys less than this many positions back; all, if none.
    pub window: Option<usize>,
    /// Scores are capped: s = cap·tanh(z/cap).
    pub soft_cap: Option<f32>,
    /// The segments in the order of their rows, none sharing a query with another, nor (where
    /// gradients are computed) a key. Rows outside of all of them get no output and no gradient.
    pub segments: &'a Buf<Segment>,
    /// Count of segments in use.
    pub segment_count: usize,
    /// At least the longest `q_len`, and where gradients are computed, the longest `k_len`.
    pub longest: usize,
}

/// What the backward pass needs of the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Queries [Nq, H·D].
    pub q: Mat<'a>,
    /// Keys [Nk, K·D].
    pub k: Mat<'a>,
    /// Values [Nk, K·D].
    pub v: Mat<'a>,
    /// Output [Nq, H·D].
    pub o: Mat<'a>,
    /// Logarithm of the sum of the exponentials of each query's scores, [Nq, H].
    pub lse: Mat<'a>,
}

/// Parameters of the kernel `attention`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    q: Address,
    k: Address,
    v: Address,
    o: Address,
    lse: Address,
    segments: Address,
    q_stride: u64,
    k_stride: u64,
    v_stride: u64,
    o_stride: u64,
    lse_stride: u64,
    q_rows: u64,
    k_rows: u64,
    segment_count: u64,
    longest: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    /// `u64::MAX` for none.
    window: u64,
    scale: f32,
    /// 0 for none.
    soft_cap: f32,
    dtype: Dtype,
}

/// Parameters of the kernel `attention_backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct BackwardParams {
    forward: Params,
    d_o: Address,
    dq: Address,
    dk: Address,
    dv: Address,
    d_o_stride: u64,
    dq_stride: u64,
    dk_stride: u64,
    dv_stride: u64,
}

/// The element of `lse` where activations are `act`: f32, or f64 with f64.
pub const fn lse_dtype(act: Dtype) -> Dtype {
    match act {
        Dtype::Bf16 | Dtype::F32 => Dtype::F32,
        Dtype::F64 => Dtype::F64,
    }
}

/// o [Nq, H·D] and lse [Nq, H] from q [Nq, H·D], k and v [Nk, K·D].
pub fn forward(
    device: &Device,
    attention: &Attention,
    q: Mat,
    k: Mat,
    v: Mat,
    o: MatMut,
    lse: MatMut,
) {
    let [o, lse] = [o.view(), lse.view()];
    // SAFETY: `params` has checked that all shapes agree, and the borrows keep them valid.
    unsafe { device.launch(params(attention, Saved { q, k, v, o, lse })) }
}

/// dq [Nq, H·D], dk and dv [Nk, K·D] from what the forward pass saved and d_o [Nq, H·D].
pub fn backward(
    device: &Device,
    attention: &Attention,
    saved: Saved,
    d_o: Mat,
    dq: MatMut,
    dk: MatMut,
    dv: MatMut,
) {
    for (gradient, of) in
        [(d_o, saved.o), (dq.view(), saved.q), (dk.view(), saved.k), (dv.view(), saved.v)]
    {
        assert_eq!(shape(gradient), shape(of), "a gradient is like what it belongs to");
    }
    let kernel = BackwardParams {
        forward: params(attention, saved),
        d_o: d_o.address,
        dq: dq.address,
        dk: dk.address,
        dv: dv.address,
        d_o_stride: d_o.stride as u64,
        dq_stride: dq.stride as u64,
        dk_stride: dk.stride as u64,
        dv_stride: dv.stride as u64,
    };
    // SAFETY: as in `forward`; the gradients have the shapes of what they belong to.
    unsafe { device.launch(kernel) }
}

fn shape(mat: Mat) -> (usize, usize, Dtype) {
    (mat.rows, mat.cols, mat.dtype)
}

fn params(attention: &Attention, mats: Saved) -> Params {
    let Attention { heads, segments, segment_count, .. } = *attention;
    check(heads, mats);
    assert!(segment_count <= segments.len(), "{segment_count} of {} segments", segments.len());
    let Saved { q, k, v, o, lse } = mats;
    Params {
        q: q.address,
        k: k.address,
        v: v.address,
        o: o.address,
        lse: lse.address,
        segments: segments.address(),
        q_stride: q.stride as u64,
        k_stride: k.stride as u64,
        v_stride: v.stride as u64,
        o_stride: o.stride as u64,
        lse_stride: lse.stride as u64,
        q_rows: q.rows as u64,
        k_rows: k.rows as u64,
        segment_count: segment_count as u64,
        longest: attention.longest as u64,
        heads: heads.heads as u64,
        kv_heads: heads.kv_heads as u64,
        head_dim: heads.head_dim as u64,
        window: attention.window.map_or(u64::MAX, |window| window as u64),
        scale: attention.scale,
        soft_cap: attention.soft_cap.unwrap_or(0.0),
        dtype: q.dtype,
    }
}

fn check(heads: Heads, Saved { q, k, v, o, lse }: Saved) {
    let Heads { heads, kv_heads, head_dim } = heads;
    assert_eq!(heads % kv_heads, 0, "{heads} heads share {kv_heads} kv heads");
    assert_eq!(q.cols, heads * head_dim, "columns of q");
    assert_eq!(shape(k), (k.rows, kv_heads * head_dim, q.dtype), "shape of k");
    assert_eq!(shape(v), shape(k), "v must be like k");
    assert_eq!(shape(o), shape(q), "o must be like q");
    assert_eq!(shape(lse), (q.rows, heads, lse_dtype(q.dtype)), "shape of lse");
}

impl Params {
    /// The segments, known to lie within the rows and not to share a query.
    ///
    /// # Safety
    /// They are valid for reads and not written meanwhile.
    unsafe fn segments<'a>(&self) -> &'a [Segment] {
        // SAFETY: the caller vouches for it.
        let segments = unsafe { slice::<Segment>(self.segments, 0, self.segment_count as usize) };
        for segment in segments {
            assert!(
                segment.q_end() <= self.q_rows
                    && segment.k_end() <= self.k_rows
                    && segment.q_len <= segment.k_len
                    && u64::from(segment.q_len) <= self.longest,
                "{segment:?} of {} queries and {} keys, the longest of {}",
                self.q_rows,
                self.k_rows,
                self.longest
            );
        }
        for pair in segments.windows(2) {
            assert!(pair[0].q_end() <= u64::from(pair[1].q_start), "{pair:?} share queries");
        }
        segments
    }
}

impl Segment {
    fn q_end(self) -> u64 {
        u64::from(self.q_start) + u64::from(self.q_len)
    }

    fn k_end(self) -> u64 {
        u64::from(self.k_start) + u64::from(self.k_len)
    }
}

/// Calls `$run::<M>($args)` with the [`Math`](math::Math) of an element on an instruction set.
macro_rules! with_math {
    ($dtype:expr, $simd:expr, $run:ident($($arg:expr),*)) => {
        match ($dtype, $simd) {
            (Dtype::Bf16, Simd::Avx512Bf16) => $run::<Pairs>($($arg),*),
            (Dtype::Bf16, _) => $run::<Plain<bf16>>($($arg),*),
            (Dtype::F32, _) => $run::<Plain<f32>>($($arg),*),
            (Dtype::F64, _) => $run::<Plain<f64>>($($arg),*),
        }
    };
}

/// The scratch of `$run`, enough for any instruction set: a plan does not know which it will be. Pairs
/// take less than the plain numbers.
macro_rules! with_any_math {
    ($dtype:expr, $run:ident($($arg:expr),*)) => {
        with_math!($dtype, Simd::Portable, $run($($arg),*))
    };
}

// SAFETY: reads rows of the stated widths and strides, within ranges that `segments` has checked;
// writes o and lse, where a task owns its queries and its head.
unsafe impl Kernel for Params {
    const NAME: &'static str = "attention";

    fn scratch(&self) -> Scratch {
        with_any_math!(self.dtype, forward_scratch(self))
    }

    unsafe fn run_on_cpu(&self, cpu: &Cpu, scratch: ScratchMemory) {
        with_math!(self.dtype, cpu.simd(), forward_on_cpu(self, cpu, scratch));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        // SAFETY: passed on from the caller.
        unsafe { gpu::forward(self, queue) }
    }
}

// SAFETY: as above; a task of the first pass owns the dq of its queries and heads and its plane of
// partial sums, a task of the second the dk and dv of its keys and its kv head.
unsafe impl Kernel for BackwardParams {
    const NAME: &'static str = "attention_backward";

    fn scratch(&self) -> Scratch {
        with_any_math!(self.forward.dtype, backward_scratch(self))
    }

    unsafe fn run_on_cpu(&self, cpu: &Cpu, scratch: ScratchMemory) {
        with_math!(self.forward.dtype, cpu.simd(), backward_on_cpu(self, cpu, scratch));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        // SAFETY: passed on from the caller.
        unsafe { gpu::backward(self, queue) }
    }
}
