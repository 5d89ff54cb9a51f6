//! Attention backward on the CPU, in two passes without atomics.
//!
//! The query heads of a kv head are dealt to a few parts. The first pass has a task for each
//! segment, kv head and part: it writes dq of its heads and its own partial sums of dk and dv; the
//! second pass adds the partial sums up in the order of the parts. The count of parts depends on
//! the heads only, so neither the threads nor the other records of a batch change a bit.

use super::block::{Carver, HeadRows, KEYS, QUERIES, Queries, cap, inner, transpose, width};
use super::product::Product;
use super::{BackwardParams, Params, Segment};
use crate::device::{Address, Cpu, Scratch, ScratchMemory};
use crate::ops::element::per_simd;
use crate::ops::{Element, Real, Write, lanes_sum, slice, slice_mut};

/// Tasks to aim for with a single segment; more parts would give more tasks for more memory.
const TASKS: usize = 8;

/// The memory of one task.
struct Work<'a, R> {
    /// Queries, scaled [queries, width].
    q: &'a mut [R],
    /// The same transposed [D, queries].
    qt: &'a mut [R],
    /// Gradient at the output [queries, width].
    d_o: &'a mut [R],
    /// The same transposed [D, queries].
    dot: &'a mut [R],
    /// Gradient at the queries [queries, width].
    dq: &'a mut [R],
    /// Keys [keys, width].
    k: &'a mut [R],
    /// Values [keys, width].
    v: &'a mut [R],
    /// Scores, then probabilities [keys, queries].
    p: &'a mut [R],
    /// Gradient at the probabilities, then at q·k [keys, queries].
    ds: &'a mut [R],
    /// Logarithm of the sum of exponentials, of each query.
    lse: &'a mut [R],
    /// Δ of each query.
    delta: &'a mut [R],
}

impl<R: Real> Work<'_, R> {
    const fn numbers(head_dim: usize) -> usize {
        let rows = width(head_dim) * (5 * QUERIES + 2 * KEYS);
        rows + 2 * KEYS * QUERIES + 2 * QUERIES
    }

    /// # Safety
    /// `memory` is the caller's alone and holds [`numbers`](Self::numbers) numbers.
    unsafe fn carve(memory: Address, head_dim: usize) -> Self {
        let mut carver = Carver::new(memory);
        let mut take = |count| {
            // SAFETY: the counts add up to `numbers`.
            unsafe { carver.take(count) }
        };
        let queries = QUERIES * width(head_dim);
        let keys = KEYS * width(head_dim);
        Self {
            q: take(queries),
            qt: take(queries),
            d_o: take(queries),
            dot: take(queries),
            dq: take(queries),
            k: take(keys),
            v: take(keys),
            p: take(KEYS * QUERIES),
            ds: take(KEYS * QUERIES),
            lse: take(QUERIES),
            delta: take(QUERIES),
        }
    }
}

/// Partial sums of dk and dv: planes [Nk, width], one for each part, kv head and gradient.
#[derive(Clone, Copy)]
struct Partial {
    address: Address,
    parts: usize,
    kv_heads: usize,
    rows: usize,
    width: usize,
}

impl Partial {
    fn new(p: &Params, address: Address) -> Self {
        let group = (p.heads / p.kv_heads) as usize;
        Self {
            address,
            parts: group.min(TASKS.div_ceil(p.kv_heads as usize)),
            kv_heads: p.kv_heads as usize,
            rows: p.k_rows as usize,
            width: width(p.head_dim as usize),
        }
    }

    fn numbers(self) -> usize {
        2 * self.parts * self.kv_heads * self.rows * self.width
    }

    /// The rows of `segment` in the plane of dk (`which` 0) or dv (1).
    ///
    /// # Safety
    /// The rows must be valid and touched by nobody else.
    unsafe fn plane<'a, R: Real>(
        self,
        segment: Segment,
        kv_head: usize,
        part: usize,
        which: usize,
    ) -> &'a mut [R] {
        let plane = (part * self.kv_heads + kv_head) * 2 + which;
        let start = (plane * self.rows + segment.k_start as usize) * self.width;
        // SAFETY: the caller vouches for it.
        unsafe { slice_mut(self.address, start, segment.k_len as usize * self.width) }
    }
}

pub(super) fn scratch<E: Element>(p: &BackwardParams) -> Scratch {
    let numbers = Partial::new(&p.forward, Address::NULL).numbers();
    let work = Work::<E::Real>::numbers(p.forward.head_dim as usize);
    Scratch {
        shared: numbers * size_of::<E::Real>(),
        per_thread: work * size_of::<E::Real>(),
    }
}

pub(super) fn run<E: Element>(p: &BackwardParams, cpu: &Cpu, scratch: ScratchMemory) {
    let f = &p.forward;
    let partial = Partial::new(f, scratch.shared());
    let (segments, kv_heads) = (f.segment_count as usize, f.kv_heads as usize);
    cpu.for_each(segments * kv_heads * partial.parts, |task| {
        let (part, kv_head) = (task % partial.parts, task / partial.parts % kv_heads);
        // SAFETY: the caller of `run_on_cpu` vouches for the segments.
        let segment = unsafe { f.segment(task / partial.parts / kv_heads) };
        let memory = scratch.of_thread(cpu.thread());
        differentiate::<E>(cpu.simd(), p, segment, kv_head, part, partial, memory);
    });
    cpu.for_each(segments * kv_heads, |task| {
        // SAFETY: as above.
        let segment = unsafe { f.segment(task / kv_heads) };
        add_up::<E>(cpu.simd(), p, segment, task % kv_heads, partial);
    });
}

per_simd! {
    fn differentiate<E: Element>(
        p: &BackwardParams, segment: Segment, kv_head: usize, part: usize, partial: Partial,
        memory: Address,
    ) {
        let f = &p.forward;
        // SAFETY: `scratch` has asked for this much; a task owns its planes within the segment,
        // and a thread runs one task at a time.
        let (mut work, dk, dv) = unsafe {
            (
                Work::<E::Real>::carve(memory, f.head_dim as usize),
                partial.plane::<E::Real>(segment, kv_head, part, 0),
                partial.plane::<E::Real>(segment, kv_head, part, 1),
            )
        };
        dk.fill(E::Real::ZERO);
        dv.fill(E::Real::ZERO);
        let group = (f.heads / f.kv_heads) as usize;
        for head in (part..group).step_by(partial.parts).map(|i| kv_head * group + i) {
            for first in (0..segment.q_len as usize).step_by(QUERIES) {
                let queries = Queries::of(f, segment, first);
                work.start::<E>(p, queries, head);
                for (key, keys) in queries.key_blocks() {
                    work.visit::<E>(f, segment, queries, kv_head, key, keys, dk, dv);
                }
                work.finish::<E>(p, queries, head);
            }
        }
    }
}

impl<R: Real> Work<'_, R> {
    #[inline(always)]
    fn start<E: Element<Real = R>>(&mut self, p: &BackwardParams, queries: Queries, head: usize) {
        let f = &p.forward;
        let head_dim = f.head_dim as usize;
        let scale = R::from_f64(f64::from(f.scale));
        let q = HeadRows {
            address: f.q,
            stride: f.q_stride,
            head,
            head_dim,
        };
        let d_o = HeadRows {
            address: p.d_o,
            stride: p.d_o_stride,
            head,
            head_dim,
        };
        // SAFETY: the caller of `run_on_cpu` vouches for q and d_o, `segment` for the rows.
        unsafe {
            q.load::<E>(queries.row, queries.count, scale, self.q);
            d_o.load::<E>(queries.row, queries.count, R::ONE, self.d_o);
        }
        transpose(self.q, queries.count, head_dim, self.qt);
        transpose(self.d_o, queries.count, head_dim, self.dot);
        self.dq.fill(R::ZERO);
        self.load_statistics::<E>(f, queries, head);
    }

    /// lse and Δ = Σ dO·O; lanes without a query get 0.
    #[inline(always)]
    fn load_statistics<E: Element<Real = R>>(&mut self, f: &Params, queries: Queries, head: usize) {
        let head_dim = f.head_dim as usize;
        let o = HeadRows {
            address: f.o,
            stride: f.o_stride,
            head,
            head_dim,
        };
        self.lse.fill(R::ZERO);
        self.delta.fill(R::ZERO);
        let rows = self.d_o.chunks_exact(width(head_dim)).take(queries.count);
        for (i, d_o) in rows.enumerate() {
            let row = queries.row + i;
            // SAFETY: the caller of `run_on_cpu` vouches for o and lse, `segment` for the row.
            unsafe {
                let o = o.row::<E>(row);
                self.delta[i] = lanes_sum(head_dim, |d| d_o[d] * o[d].real());
                self.lse[i] = slice::<R>(f.lse, row * f.lse_stride as usize + head, 1)[0];
            }
        }
    }

    /// Adds what a block of keys gives to dq, dk and dv.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn visit<E: Element<Real = R>>(
        &mut self,
        f: &Params,
        segment: Segment,
        queries: Queries,
        kv_head: usize,
        key: usize,
        keys: usize,
        dk: &mut [R],
        dv: &mut [R],
    ) {
        let head_dim = f.head_dim as usize;
        let row = segment.k_start as usize + key;
        let k = HeadRows {
            address: f.k,
            stride: f.k_stride,
            head: kv_head,
            head_dim,
        };
        let v = HeadRows {
            address: f.v,
            stride: f.v_stride,
            head: kv_head,
            head_dim,
        };
        // SAFETY: the caller of `run_on_cpu` vouches for k and v, `segment` for the rows.
        unsafe {
            k.load::<E>(row, keys, R::ONE, self.k);
            v.load::<E>(row, keys, R::ONE, self.v);
        }
        inner(self.k, self.qt, head_dim, keys, queries, self.p);
        inner(self.v, self.dot, head_dim, keys, queries, self.ds);
        self.differentiate_softmax(f, queries, key, keys);
        let width = width(head_dim);
        let [p, ds] = [&*self.p, &*self.ds].map(|a| Product {
            a,
            a_strides: [QUERIES, 1],
            b: self.q,
            b_stride: width,
            rows: keys,
            cols: width,
            depth: queries.count,
        });
        Product { b: self.d_o, ..p }.put(Write::Add, &mut dv[key * width..], width);
        ds.put(Write::Add, &mut dk[key * width..], width);
        let transposed = Product {
            a_strides: [1, QUERIES],
            b: self.k,
            rows: queries.count,
            depth: keys,
            ..ds
        };
        transposed.put(Write::Add, self.dq, width);
    }

    /// From s and dP to P and dS.
    #[inline(always)]
    fn differentiate_softmax(&mut self, f: &Params, queries: Queries, key: usize, keys: usize) {
        let lanes = queries.lanes();
        let rows = self
            .p
            .chunks_exact_mut(QUERIES)
            .zip(self.ds.chunks_exact_mut(QUERIES));
        for (j, (p, ds)) in rows.take(keys).enumerate() {
            let (p, ds) = (&mut p[..lanes], &mut ds[..lanes]);
            cap(p, f.soft_cap);
            for ((ds, s), delta) in ds.iter_mut().zip(&*p).zip(&*self.delta) {
                *ds = (*ds - *delta) * slope(*s, f.soft_cap);
            }
            queries.mask(key + j, p, R::NEG_INFINITY);
            for ((p, ds), lse) in p.iter_mut().zip(ds).zip(&*self.lse) {
                *p = (*p - *lse).exp();
                *ds *= *p;
            }
        }
    }

    #[inline(always)]
    fn finish<E: Element<Real = R>>(&mut self, p: &BackwardParams, queries: Queries, head: usize) {
        let head_dim = p.forward.head_dim as usize;
        let scale = R::from_f64(f64::from(p.forward.scale));
        for (i, dq) in self
            .dq
            .chunks_exact(width(head_dim))
            .take(queries.count)
            .enumerate()
        {
            let start = (queries.row + i) * p.dq_stride as usize + head * head_dim;
            // SAFETY: the caller of `run_on_cpu` vouches for dq, `segment` for the row; a task
            // owns its head of the segment.
            let out = unsafe { slice_mut::<E>(p.dq, start, head_dim) };
            for (out, dq) in out.iter_mut().zip(dq) {
                *out = E::from_real(*dq * scale);
            }
        }
    }
}

/// The derivative of the capped score s at the score before.
#[inline(always)]
fn slope<R: Real>(s: R, soft_cap: f32) -> R {
    if soft_cap == 0.0 {
        return R::ONE;
    }
    let t = s / R::from_f64(f64::from(soft_cap));
    R::ONE - t * t
}

per_simd! {
    /// dk and dv of one kv head of a segment from their partial sums.
    fn add_up<E: Element>(p: &BackwardParams, segment: Segment, kv_head: usize, partial: Partial) {
        let (head_dim, width) = (p.forward.head_dim as usize, partial.width);
        for (which, address, stride) in [(0, p.dk, p.dk_stride), (1, p.dv, p.dv_stride)] {
            // SAFETY: the first pass is over, and only this task touches the planes it reads.
            let plane = |part| unsafe { &*partial.plane::<E::Real>(segment, kv_head, part, which) };
            for i in 0..segment.k_len as usize {
                let row = segment.k_start as usize + i;
                // SAFETY: the caller of `run_on_cpu` vouches for dk and dv, `segment` for the
                // row; a task owns its kv head of the segment.
                let out = unsafe {
                    slice_mut::<E>(address, row * stride as usize + kv_head * head_dim, head_dim)
                };
                for (d, out) in out.iter_mut().enumerate() {
                    let parts = (0..partial.parts).map(|part| plane(part)[i * width + d]);
                    *out = E::from_real(parts.fold(E::Real::ZERO, |sum, x| sum + x));
                }
            }
        }
    }
}
