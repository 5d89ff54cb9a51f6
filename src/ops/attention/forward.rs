//! Attention forward on the CPU: a task for each segment, block of queries and head.
//!
//! Keys go by in blocks. For every query the greatest score m and the sum l of e^(s−m) so far are
//! kept, and the output so far is scaled down whenever m grows (the online softmax of Milakov and
//! Gimelshein, 2018; flash attention, Dao et al., 2022).

use super::block::{Carver, HeadRows, KEYS, QUERIES, Queries, cap, inner, transpose, width};
use super::product::Product;
use super::{Params, Segment};
use crate::device::{Address, Cpu, Scratch, ScratchMemory};
use crate::ops::element::per_simd;
use crate::ops::{Element, Real, Write, slice_mut};

/// The memory of one task.
struct Work<'a, R> {
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
    unsafe fn carve(memory: Address, head_dim: usize) -> Self {
        let mut carver = Carver::new(memory);
        let mut take = |count| {
            // SAFETY: the counts add up to `numbers`.
            unsafe { carver.take(count) }
        };
        Self {
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
    Scratch {
        shared: 0,
        per_thread: numbers * size_of::<E::Real>(),
    }
}

pub(super) fn run<E: Element>(p: &Params, cpu: &Cpu, scratch: ScratchMemory) {
    let heads = p.heads as usize;
    let blocks = (p.longest as usize).div_ceil(QUERIES);
    cpu.for_each(p.segment_count as usize * blocks * heads, |task| {
        let (head, block) = (task % heads, task / heads % blocks);
        // SAFETY: the caller of `run_on_cpu` vouches for the segments.
        let segment = unsafe { p.segment(task / heads / blocks) };
        if block * QUERIES < segment.q_len as usize {
            let memory = scratch.of_thread(cpu.thread());
            attend::<E>(cpu.simd(), p, segment, block * QUERIES, head, memory);
        }
    });
}

per_simd! {
    fn attend<E: Element>(p: &Params, segment: Segment, first: usize, head: usize, memory: Address) {
        let head_dim = p.head_dim as usize;
        let queries = Queries::of(p, segment, first);
        // SAFETY: `scratch` has asked for this much, and a thread runs one task at a time.
        let mut work = unsafe { Work::<E::Real>::carve(memory, head_dim) };
        let kv_head = head / (p.heads / p.kv_heads) as usize;
        let k = HeadRows { address: p.k, stride: p.k_stride, head: kv_head, head_dim };
        let v = HeadRows { address: p.v, stride: p.v_stride, head: kv_head, head_dim };
        work.start::<E>(p, queries, head);
        for (key, keys) in queries.key_blocks() {
            let row = segment.k_start as usize + key;
            // SAFETY: the caller of `run_on_cpu` vouches for k, `segment` for the rows.
            unsafe { k.load::<E>(row, keys, E::Real::ONE, work.kv) };
            inner(work.kv, work.qt, head_dim, keys, queries, work.s);
            work.soften(p, queries, key, keys);
            // SAFETY: as above.
            unsafe { v.load::<E>(row, keys, E::Real::ONE, work.kv) };
            work.gather(head_dim, keys, queries);
        }
        work.finish::<E>(p, queries, head);
    }
}

impl<R: Real> Work<'_, R> {
    #[inline(always)]
    fn start<E: Element<Real = R>>(&mut self, p: &Params, queries: Queries, head: usize) {
        let head_dim = p.head_dim as usize;
        let q = HeadRows {
            address: p.q,
            stride: p.q_stride,
            head,
            head_dim,
        };
        let scale = R::from_f64(f64::from(p.scale));
        // SAFETY: the caller of `run_on_cpu` vouches for q, `segment` for the rows.
        unsafe { q.load::<E>(queries.row, queries.count, scale, self.o) };
        transpose(self.o, queries.count, head_dim, self.qt);
        self.o.fill(R::ZERO);
        self.max.fill(R::NEG_INFINITY);
        self.sum.fill(R::ZERO);
    }

    /// Scores become e^(s−max); maximum, sum and the factor of what was before are brought up.
    #[inline(always)]
    fn soften(&mut self, p: &Params, queries: Queries, key: usize, keys: usize) {
        let lanes = queries.lanes();
        let (max, sum) = (&mut self.max[..lanes], &mut self.sum[..lanes]);
        let shrink = &mut self.shrink[..lanes];
        shrink.copy_from_slice(max);
        for (j, row) in self.s.chunks_exact_mut(QUERIES).take(keys).enumerate() {
            let row = &mut row[..lanes];
            cap(row, p.soft_cap);
            queries.mask(key + j, row, R::NEG_INFINITY);
            max.iter_mut()
                .zip(&*row)
                .for_each(|(max, s)| *max = max.max(*s));
        }
        for ((shrink, sum), max) in shrink.iter_mut().zip(&mut *sum).zip(&*max) {
            *shrink = (*shrink - finite(*max)).exp();
            *sum *= *shrink;
        }
        for row in self.s.chunks_exact_mut(QUERIES).take(keys) {
            for ((s, max), sum) in row.iter_mut().zip(&*max).zip(&mut *sum) {
                *s = (*s - finite(*max)).exp();
                *sum += *s;
            }
        }
    }

    /// o = shrink ∘ o + Pᵀ·V.
    #[inline(always)]
    fn gather(&mut self, head_dim: usize, keys: usize, queries: Queries) {
        let width = width(head_dim);
        for (o, shrink) in self
            .o
            .chunks_exact_mut(width)
            .zip(&*self.shrink)
            .take(queries.count)
        {
            o.iter_mut().for_each(|o| *o *= *shrink);
        }
        let product = Product {
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

    #[inline(always)]
    fn finish<E: Element<Real = R>>(&mut self, p: &Params, queries: Queries, head: usize) {
        let head_dim = p.head_dim as usize;
        for (i, o) in self
            .o
            .chunks_exact(width(head_dim))
            .take(queries.count)
            .enumerate()
        {
            let row = queries.row + i;
            // SAFETY: the caller of `run_on_cpu` vouches for o and lse, `segment` for the row; a
            // task owns its queries and its head.
            let (out, lse) = unsafe {
                (
                    slice_mut::<E>(p.o, row * p.o_stride as usize + head * head_dim, head_dim),
                    &mut slice_mut::<R>(p.lse, row * p.lse_stride as usize + head, 1)[0],
                )
            };
            for (out, o) in out.iter_mut().zip(o) {
                *out = E::from_real(*o / self.sum[i]);
            }
            *lse = self.max[i] + self.sum[i].ln();
        }
    }
}

/// The maximum to subtract: 0 for a query that has seen no key yet.
#[inline(always)]
fn finite<R: Real>(max: R) -> R {
    if max == R::NEG_INFINITY { R::ZERO } else { max }
}
