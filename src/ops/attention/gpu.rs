//! Attention on a GPU: which kernel a head's width takes, and what it is given.

use super::{BackwardParams, Params};
use crate::device::{Address, Grid, Queue, has_aligned_rows, narrow};
use crate::error::Error;
use crate::ffi;

/// Rows of a block: queries, or keys.
const ROWS: usize = 64;

/// The kernels for heads of up to a width.
struct Kernels {
    width: usize,
    forward: &'static str,
    of_queries: &'static str,
    of_keys: &'static str,
}

const KERNELS: [Kernels; 3] = [
    Kernels {
        width: 64,
        forward: "attention_64",
        of_queries: "attention_backward_q_64",
        of_keys: "attention_backward_kv_64",
    },
    Kernels {
        width: 128,
        forward: "attention_128",
        of_queries: "attention_backward_q_128",
        of_keys: "attention_backward_kv_128",
    },
    Kernels {
        width: 256,
        forward: "attention_256",
        of_queries: "attention_backward_q_256",
        of_keys: "attention_backward_kv_256",
    },
];

fn kernels_for(p: &Params, queue: &Queue) -> Result<&'static Kernels, Error> {
    queue.require_bf16("attention", p.dtype)?;
    let (dim, rows) = (p.head_dim, [(p.q, p.q_stride), (p.k, p.k_stride), (p.v, p.v_stride)]);
    let aligned =
        dim.is_multiple_of(8) && rows.iter().all(|(at, stride)| has_aligned_rows(*at, *stride));
    queue.require("attention", aligned, || {
        format!("heads of {dim} numbers do not all begin at multiples of 16 bytes")
    })?;
    let found = KERNELS.iter().find(|kernels| dim as usize <= kernels.width);
    queue.require("attention", found.is_some(), || {
        format!("heads of {dim} numbers are longer than 256")
    })?;
    Ok(found.expect("required above"))
}

/// `window` as the kernels have it.
fn window(p: &Params) -> u32 {
    u32::try_from(p.window).unwrap_or(u32::MAX)
}

/// # Safety
/// As for [`Kernel::run_on_gpu`](crate::device::Kernel::run_on_gpu).
pub(super) unsafe fn forward(p: &Params, queue: &Queue) -> Result<(), Error> {
    let kernels = kernels_for(p, queue)?;
    let params = ffi::Attention {
        q: p.q.number(),
        k: p.k.number(),
        v: p.v.number(),
        o: p.o.number(),
        lse: p.lse.number(),
        segments: p.segments.number(),
        q_stride: p.q_stride,
        k_stride: p.k_stride,
        v_stride: p.v_stride,
        o_stride: p.o_stride,
        lse_stride: p.lse_stride,
        heads: narrow(p.heads),
        kv_heads: narrow(p.kv_heads),
        head_dim: narrow(p.head_dim),
        window: window(p),
        scale: p.scale,
        soft_cap: p.soft_cap,
    };
    // SAFETY: passed on from the caller.
    unsafe { queue.launch(kernels.forward, blocks(p, p.heads), &params) }
}

/// # Safety
/// As for [`Kernel::run_on_gpu`](crate::device::Kernel::run_on_gpu).
pub(super) unsafe fn backward(p: &BackwardParams, queue: &Queue) -> Result<(), Error> {
    let forward = &p.forward;
    let kernels = kernels_for(forward, queue)?;
    let (rows, heads) = (forward.q_rows as usize, forward.heads as usize);
    let delta = queue.scratch(rows * heads * size_of::<f32>())?;
    let params = backward_params(p, delta);
    // SAFETY: passed on from the caller; delta has a number for each query and head.
    unsafe {
        queue.launch("attention_delta", Grid([rows, heads, 1]), &params)?;
        queue.launch(kernels.of_queries, blocks(forward, forward.heads), &params)?;
        queue.launch(kernels.of_keys, blocks(forward, forward.kv_heads), &params)
    }
}

fn backward_params(p: &BackwardParams, delta: Address) -> ffi::AttentionBackward {
    let forward = &p.forward;
    ffi::AttentionBackward {
        q: forward.q.number(),
        k: forward.k.number(),
        v: forward.v.number(),
        o: forward.o.number(),
        d_o: p.d_o.number(),
        lse: forward.lse.number(),
        delta: delta.number(),
        segments: forward.segments.number(),
        dq: p.dq.number(),
        dk: p.dk.number(),
        dv: p.dv.number(),
        q_stride: forward.q_stride,
        k_stride: forward.k_stride,
        v_stride: forward.v_stride,
        o_stride: forward.o_stride,
        d_o_stride: p.d_o_stride,
        lse_stride: forward.lse_stride,
        dq_stride: p.dq_stride,
        dk_stride: p.dk_stride,
        dv_stride: p.dv_stride,
        heads: narrow(forward.heads),
        kv_heads: narrow(forward.kv_heads),
        head_dim: narrow(forward.head_dim),
        window: window(forward),
        scale: forward.scale,
        soft_cap: forward.soft_cap,
    }
}

/// Blocks of rows, heads, segments. A block beyond the end of its segment has nothing to do.
fn blocks(p: &Params, heads: u64) -> Grid {
    Grid([(p.longest as usize).div_ceil(ROWS), heads as usize, p.segment_count as usize])
}
