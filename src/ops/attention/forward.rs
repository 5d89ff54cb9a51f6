//! Attention forward on the CPU: a task for each segment, block of queries and head.
//!
//! Keys go by in blocks. For every query the greatest score m and the sum l of e^(s−m) so far are
//! kept, and the output so far is scaled down whenever m grows (the online softmax of Milakov and
//! Gimelshein, 2018; flash attention, Dao et al., 2022).

use super::block::{
    Carver, HeadRows, KEYS, QUERIES, Queries, cap, inner, outer, scale, soft_cap, transpose, width,
};
use super::math::Math;
use super::{Params, Segment};
use crate::device::{Address, Cpu, Scratch, ScratchMemory, Simd};
use crate::ops::element::per_simd;
use crate::ops::{Element, Real, Write, slice_mut};

/// The memory of one task.
struct Work<'a, M: Math> {
    simd: Simd,
    /// Queries transposed, a right factor of depth D.
    qt: &'a mut [M::Factor],
    /// Queries, later keys, a left factor of depth D.
    k: &'a mut [M::Factor],
    /// Values, a right factor of depth `keys`.
    v: &'a mut [M::Factor],
    /// Exponentials as a left factor, where they are not one as they are.
    p: &'a mut [M::Factor],
    /// The output [queries, width].
    o: &'a mut [M::Real],
    /// Scores, then their exponentials [keys, queries].
    s: &'a mut [M::Real],
    /// Greatest score of each query.
    max: &'a mut [M::Real],
    /// Sum of e^(s−max) of each query.
    sum: &'a mut [M::Real],
    /// Factor of what each query has so far.
    shrink: &'a mut [M::Real],
}

impl<M: Math> Work<'_, M> {
    /// Factors and numbers.
    const fn counts(head_dim: usize) -> (usize, usize) {
        let rows = width(head_dim) * QUERIES;
        (3 * rows + KEYS * QUERIES, rows + KEYS * QUERIES + 3 * QUERIES)
    }

    /// # Safety
    /// `memory` is the caller's alone and holds [`counts`](Self::counts).
    unsafe fn carve(simd: Simd, memory: Address, head_dim: usize) -> Self {
        let (mut carver, rows) = (Carver::new(memory), QUERIES * width(head_dim));
        // SAFETY: the counts add up to `counts`.
        unsafe {
            Self {
                simd,
                qt: carver.take(rows),
                k: carver.take(rows),
                v: carver.take(rows),
                p: carver.take(KEYS * QUERIES),
                o: carver.take(rows),
                s: carver.take(KEYS * QUERIES),
                max: carver.take(QUERIES),
                sum: carver.take(QUERIES),
                shrink: carver.take(QUERIES),
            }
        }
    }
}

pub(super) fn scratch<M: Math>(p: &Params) -> Scratch {
    let (factors, numbers) = Work::<M>::counts(p.head_dim as usize);
    let bytes = factors * size_of::<M::Factor>() + numbers * size_of::<M::Real>();
    Scratch { shared: 0, per_thread: bytes }
}

pub(super) fn run<M: Math>(p: &Params, cpu: &Cpu, scratch: ScratchMemory) {
    let heads = p.heads as usize;
    let blocks = (p.longest as usize).div_ceil(QUERIES);
    // SAFETY: the caller of `run_on_cpu` vouches for the segments.
    let segments = unsafe { p.segments() };
    cpu.for_each(segments.len() * blocks * heads, |task| {
        let (head, block) = (task % heads, task / heads % blocks);
        let segment = segments[task / heads / blocks];
        if block * QUERIES < segment.q_len as usize {
            let memory = scratch.of_thread(cpu.thread());
            // SAFETY: `scratch` has asked for this much, and a thread runs one task at a time.
            let mut work = unsafe { Work::carve(cpu.simd(), memory, p.head_dim as usize) };
            attend::<M>(&mut work, p, segment, block * QUERIES, head);
        }
    });
}

fn attend<M: Math>(work: &mut Work<M>, p: &Params, segment: Segment, first: usize, head: usize) {
    let head_dim = p.head_dim as usize;
    let queries = Queries::of(p, segment, first);
    let kv_head = head / (p.heads / p.kv_heads) as usize;
    let k = HeadRows { address: p.k, stride: p.k_stride, head: kv_head, head_dim };
    let v = HeadRows { address: p.v, stride: p.v_stride, head: kv_head, head_dim };
    work.start(p, queries, head);
    for (key, keys) in queries.key_blocks() {
        let row = segment.k_start as usize + key;
        M::load_left(work.simd, k, row, keys, work.k);
        work.score(p, queries, key, keys);
        M::load_right(work.simd, v, row, keys, work.v);
        work.gather(head_dim, keys, queries);
    }
    let o = HeadRows { address: p.o, stride: p.o_stride, head, head_dim };
    finish::<M::Element>(work.simd, work.o, work.sum, o, queries);
    work.keep_lse(p, queries, head);
}

impl<M: Math> Work<'_, M> {
    fn start(&mut self, p: &Params, queries: Queries, head: usize) {
        let head_dim = p.head_dim as usize;
        let q = HeadRows { address: p.q, stride: p.q_stride, head, head_dim };
        M::load_left(self.simd, q, queries.row, queries.count, self.k);
        transpose(self.k, queries.count, width(head_dim) / M::GROUP, self.qt);
        self.o.fill(M::Real::ZERO);
        self.max.fill(M::Real::NEG_INFINITY);
        self.sum.fill(M::Real::ZERO);
    }

    /// s = e^(s−max) of a block of keys; maximum, sum and shrinking factor are brought up to it.
    fn score(&mut self, p: &Params, queries: Queries, key: usize, keys: usize) {
        let (scores, head_dim) = (&mut self.s[..keys * QUERIES], p.head_dim as usize);
        let product = inner::<M>(self.simd, self.k, self.qt, head_dim, keys, queries);
        product.put(Write::Set, scores, QUERIES);
        let mut factor = scale(p);
        if let Some(soft_cap) = soft_cap(p) {
            cap(self.simd, scores, factor, soft_cap);
            factor = M::Real::ONE;
        }
        queries.mask(key, scores, M::Real::NEG_INFINITY);
        soften(self.simd, scores, factor, self.max, self.sum, self.shrink, queries.lanes());
    }

    /// o = shrink ∘ o + Pᵀ·V.
    fn gather(&mut self, head_dim: usize, keys: usize, queries: Queries) {
        shrink(self.simd, self.o, width(head_dim), &self.shrink[..queries.count]);
        let p = M::to_queries(self.simd, &mut self.s[..keys * QUERIES], self.p);
        let product = outer::<M>(self.simd, p, self.v, head_dim, keys, queries);
        product.put(Write::Add, self.o, width(head_dim));
    }

    fn keep_lse(&self, p: &Params, queries: Queries, head: usize) {
        for i in 0..queries.count {
            let start = (queries.row + i) * p.lse_stride as usize + head;
            // SAFETY: the caller of `run_on_cpu` vouches for lse, `segments` for the row; a task
            // owns its queries and its head.
            unsafe { slice_mut::<M::Real>(p.lse, start, 1)[0] = self.max[i] + self.sum[i].ln() };
        }
    }
}

per_simd! {
    fn soften<R: Real, const FUSED: bool>(
        scores: &mut [R],
        scale: R,
        max: &mut [R],
        sum: &mut [R],
        shrink: &mut [R],
        lanes: usize,
    ) {
        let (max, sum, shrink) = (&mut max[..lanes], &mut sum[..lanes], &mut shrink[..lanes]);
        shrink.copy_from_slice(max);
        for row in scores.chunks_exact_mut(QUERIES) {
            for (max, s) in max.iter_mut().zip(row) {
                *s *= scale;
                *max = max.max(*s);
            }
        }
        for ((shrink, sum), max) in shrink.iter_mut().zip(&mut *sum).zip(&*max) {
            *shrink = (*shrink - finite(*max)).exp::<FUSED>();
            *sum *= *shrink;
        }
        for row in scores.chunks_exact_mut(QUERIES) {
            for ((s, max), sum) in row.iter_mut().zip(&*max).zip(&mut *sum) {
                *s = (*s - finite(*max)).exp::<FUSED>();
                *sum += *s;
            }
        }
    }
}

per_simd! {
    fn shrink<R: Real>(o: &mut [R], width: usize, factors: &[R]) {
        for (o, factor) in o.chunks_exact_mut(width).zip(factors) {
            for o in o {
                *o *= *factor;
            }
        }
    }
}

per_simd! {
    fn finish<E: Element>(o: &[E::Real], sum: &[E::Real], to: HeadRows, queries: Queries) {
        for (i, o) in o.chunks_exact(width(to.head_dim)).take(queries.count).enumerate() {
            // SAFETY: the caller of `run_on_cpu` vouches for o, `segments` for the row; a task owns
            // its queries and its head.
            let out = unsafe { to.row_mut::<E>(queries.row + i) };
            for (out, o) in out.iter_mut().zip(o) {
                *out = E::from_real(*o / sum[i]);
            }
        }
    }
}

/// The maximum to subtract: 0 for a query that has seen no key yet.
#[inline(always)]
fn finite<R: Real>(max: R) -> R {
    if max == R::NEG_INFINITY { R::ZERO } else { max }
}
