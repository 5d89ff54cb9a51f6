//! Attention forward on the CPU: a task for each segment, block of queries and head.
//!
//! Keys go by in blocks. For every query the greatest score m and the sum l of e^(s−m) so far are
//! kept, and the output so far is scaled down whenever m grows (the online softmax of Milakov and
//! Gimelshein, 2018; flash attention, Dao et al., 2022).

use super::block::{
    Carver, HeadRows, KEYS, QUERIES, Queries, cap, inner, load, soft_cap, transpose, width,
};
use super::product::Product;
use super::{Params, Segment};
use crate::device::{Address, Cpu, Scratch, ScratchMemory, Simd};
use crate::ops::element::per_simd;
use crate::ops::{Element, Real, Write, slice_mut};

/// The memory of one task.
struct Work<'a, R> {
    simd: Simd,
    /// Queries, later the output [queries, width].
    o: &'a mut [R],
    /// Queries transposed [D, queries].
    qt: &'a mut [R],
    /// Keys, then values [keys, width].
    kv: &'a mut [R],
    /// Scores, then their exponentials [keys, queries].
    s: &'a mut [R],
    /// Greatest score of each query.
    max: &'a mut [R],
    /// Sum of e^(s−max) of each query.
    sum: &'a mut [R],
    /// Factor of what each query has so far.
    shrink: &'a mut [R],
}

impl<R: Real> Work<'_, R> {
    const fn numbers(head_dim: usize) -> usize {
        let rows = width(head_dim) * (2 * QUERIES + KEYS);
        rows + KEYS * QUERIES + 3 * QUERIES
    }

    /// # Safety
    /// `memory` is the caller's alone and holds [`numbers`](Self::numbers) numbers.
    unsafe fn carve(simd: Simd, memory: Address, head_dim: usize) -> Self {
        let mut carver = Carver::new(memory);
        let mut take = |count| {
            // SAFETY: the counts add up to `numbers`.
            unsafe { carver.take(count) }
        };
        Self {
            simd,
            o: take(QUERIES * width(head_dim)),
            qt: take(QUERIES * width(head_dim)),
            kv: take(KEYS * width(head_dim)),
            s: take(KEYS * QUERIES),
            max: take(QUERIES),
            sum: take(QUERIES),
            shrink: take(QUERIES),
        }
    }
}

pub(super) fn scratch<E: Element>(p: &Params) -> Scratch {
    let numbers = Work::<E::Real>::numbers(p.head_dim as usize);
    Scratch { shared: 0, per_thread: numbers * size_of::<E::Real>() }
}

pub(super) fn run<E: Element>(p: &Params, cpu: &Cpu, scratch: ScratchMemory) {
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
            attend::<E>(&mut work, p, segment, block * QUERIES, head);
        }
    });
}

fn attend<E: Element>(
    work: &mut Work<E::Real>,
    p: &Params,
    segment: Segment,
    first: usize,
    head: usize,
) {
    let head_dim = p.head_dim as usize;
    let queries = Queries::of(p, segment, first);
    let kv_head = head / (p.heads / p.kv_heads) as usize;
    let k = HeadRows { address: p.k, stride: p.k_stride, head: kv_head, head_dim };
    let v = HeadRows { address: p.v, stride: p.v_stride, head: kv_head, head_dim };
    work.start::<E>(p, queries, head);
    for (key, keys) in queries.key_blocks() {
        let row = segment.k_start as usize + key;
        load::<E>(work.simd, k, row, keys, E::Real::ONE, work.kv);
        work.score(p, queries, key, keys);
        load::<E>(work.simd, v, row, keys, E::Real::ONE, work.kv);
        work.gather(head_dim, keys, queries);
    }
    let o = HeadRows { address: p.o, stride: p.o_stride, head, head_dim };
    finish::<E>(work.simd, work.o, work.sum, o, queries);
    work.keep_lse(p, queries, head);
}

impl<R: Real> Work<'_, R> {
    fn start<E: Element<Real = R>>(&mut self, p: &Params, queries: Queries, head: usize) {
        let head_dim = p.head_dim as usize;
        let q = HeadRows { address: p.q, stride: p.q_stride, head, head_dim };
        let scale = R::from_f64(f64::from(p.scale));
        load::<E>(self.simd, q, queries.row, queries.count, scale, self.o);
        transpose(self.simd, self.o, queries.count, head_dim, self.qt);
        self.o.fill(R::ZERO);
        self.max.fill(R::NEG_INFINITY);
        self.sum.fill(R::ZERO);
    }

    /// s = e^(s−max) of a block of keys; maximum, sum and shrinking factor are brought up to it.
    fn score(&mut self, p: &Params, queries: Queries, key: usize, keys: usize) {
        let scores = &mut self.s[..keys * QUERIES];
        inner(self.simd, self.kv, self.qt, p.head_dim as usize, keys, queries).put(
            Write::Set,
            scores,
            QUERIES,
        );
        if let Some(soft_cap) = soft_cap(p) {
            cap(self.simd, scores, soft_cap);
        }
        queries.mask(key, scores, R::NEG_INFINITY);
        soften(self.simd, scores, self.max, self.sum, self.shrink, queries.lanes());
    }

    /// o = shrink ∘ o + Pᵀ·V.
    fn gather(&mut self, head_dim: usize, keys: usize, queries: Queries) {
        let width = width(head_dim);
        shrink(self.simd, self.o, width, &self.shrink[..queries.count]);
        let product = Product {
            simd: self.simd,
            a: self.s,
            a_strides: [1, QUERIES],
            b: self.kv,
            b_stride: width,
            rows: queries.count,
            cols: width,
            depth: keys,
        };
        product.put(Write::Add, self.o, width);
    }

    fn keep_lse(&self, p: &Params, queries: Queries, head: usize) {
        for i in 0..queries.count {
            let start = (queries.row + i) * p.lse_stride as usize + head;
            // SAFETY: the caller of `run_on_cpu` vouches for lse, `segments` for the row; a task
            // owns its queries and its head.
            unsafe { slice_mut::<R>(p.lse, start, 1)[0] = self.max[i] + self.sum[i].ln() };
        }
    }
}

per_simd! {
    fn soften<R: Real>(
        scores: &mut [R], max: &mut [R], sum: &mut [R], shrink: &mut [R], lanes: usize,
    ) {
        let (max, sum, shrink) = (&mut max[..lanes], &mut sum[..lanes], &mut shrink[..lanes]);
        shrink.copy_from_slice(max);
        for row in scores.chunks_exact(QUERIES) {
            for (max, s) in max.iter_mut().zip(row) {
                *max = max.max(*s);
            }
        }
        for ((shrink, sum), max) in shrink.iter_mut().zip(&mut *sum).zip(&*max) {
            *shrink = (*shrink - finite(*max)).exp();
            *sum *= *shrink;
        }
        for row in scores.chunks_exact_mut(QUERIES) {
            for ((s, max), sum) in row.iter_mut().zip(&*max).zip(&mut *sum) {
                *s = (*s - finite(*max)).exp();
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
