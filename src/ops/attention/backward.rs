//! Attention backward on the CPU, in two passes without atomics.
//!
//! The query heads of a kv head are dealt to a few parts. The first pass has a task for each
//! segment, kv head and part: it writes dq of its heads and its own partial sums of dk and dv; the
//! second pass adds the partial sums up in the order of the parts. The count of parts depends on
//! the heads only, so neither the threads nor the other records of a batch change a bit.

use super::block::{
    Carver, HeadRows, KEYS, QUERIES, Queries, inner, load, soft_cap, transpose, width,
};
use super::product::{LANES, Product};
use super::{BackwardParams, Params, Segment};
use crate::device::{Address, Cpu, Scratch, ScratchMemory, Simd};
use crate::ops::element::per_simd;
use crate::ops::{Element, Real, Write, slice, slice_mut};

/// Tasks to aim for with a single segment; more parts would give more tasks for more memory.
const TASKS: usize = 8;

/// The memory of one task.
struct Work<'a, R> {
    simd: Simd,
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
    unsafe fn carve(simd: Simd, memory: Address, head_dim: usize) -> Self {
        let mut carver = Carver::new(memory);
        let mut take = |count| {
            // SAFETY: the counts add up to `numbers`.
            unsafe { carver.take(count) }
        };
        let queries = QUERIES * width(head_dim);
        let keys = KEYS * width(head_dim);
        Self {
            simd,
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

    /// The keys of a task in its plane of dk (`which` 0) or dv (1).
    ///
    /// # Safety
    /// The rows must be valid and touched by nobody else.
    unsafe fn plane<'a, R: Real>(self, of: Keys, which: usize) -> &'a mut [R] {
        let plane = (of.part * self.kv_heads + of.kv_head) * 2 + which;
        let start = (plane * self.rows + of.segment.k_start as usize) * self.width;
        // SAFETY: the caller vouches for it.
        unsafe { slice_mut(self.address, start, of.segment.k_len as usize * self.width) }
    }
}

pub(super) fn scratch<E: Element>(p: &BackwardParams) -> Scratch {
    let numbers = Partial::new(&p.forward, Address::NULL).numbers();
    let work = Work::<E::Real>::numbers(p.forward.head_dim as usize);
    Scratch { shared: numbers * size_of::<E::Real>(), per_thread: work * size_of::<E::Real>() }
}

pub(super) fn run<E: Element>(p: &BackwardParams, cpu: &Cpu, scratch: ScratchMemory) {
    let f = &p.forward;
    let partial = Partial::new(f, scratch.shared());
    // SAFETY: the caller of `run_on_cpu` vouches for the segments.
    let (segments, kv_heads) = (unsafe { f.segments() }, f.kv_heads as usize);
    for pair in segments.windows(2) {
        assert!(pair[0].k_end() <= u64::from(pair[1].k_start), "{pair:?} share keys");
    }
    cpu.for_each(segments.len() * kv_heads * partial.parts, |task| {
        let (part, kv_head) = (task % partial.parts, task / partial.parts % kv_heads);
        let segment = segments[task / partial.parts / kv_heads];
        let memory = scratch.of_thread(cpu.thread());
        // SAFETY: `scratch` has asked for this much, and a thread runs one task at a time.
        let mut work = unsafe { Work::carve(cpu.simd(), memory, f.head_dim as usize) };
        differentiate::<E>(&mut work, p, Keys { segment, kv_head, part }, partial);
    });
    cpu.for_each(segments.len() * kv_heads, |task| {
        add_up::<E>(cpu.simd(), p, segments[task / kv_heads], task % kv_heads, partial);
    });
}

/// What a task of the first pass works on.
#[derive(Clone, Copy)]
struct Keys {
    segment: Segment,
    kv_head: usize,
    part: usize,
}

fn differentiate<E: Element>(
    work: &mut Work<E::Real>,
    p: &BackwardParams,
    of: Keys,
    partial: Partial,
) {
    let f = &p.forward;
    // SAFETY: a task owns its planes within the segment.
    let [dk, dv] = [0, 1].map(|which| unsafe { partial.plane::<E::Real>(of, which) });
    dk.fill(E::Real::ZERO);
    dv.fill(E::Real::ZERO);
    let group = (f.heads / f.kv_heads) as usize;
    for head in (of.part..group).step_by(partial.parts).map(|i| of.kv_head * group + i) {
        for first in (0..of.segment.q_len as usize).step_by(QUERIES) {
            let queries = Queries::of(f, of.segment, first);
            work.start::<E>(p, queries, head);
            for (key, keys) in queries.key_blocks() {
                work.load_keys::<E>(f, of, key, keys);
                work.differentiate_scores(f, queries, key, keys);
                let start = key * partial.width;
                work.scatter(
                    f.head_dim as usize,
                    queries,
                    keys,
                    [&mut dk[start..], &mut dv[start..]],
                );
            }
            let dq = HeadRows {
                address: p.dq,
                stride: p.dq_stride,
                head,
                head_dim: f.head_dim as usize,
            };
            finish::<E>(work.simd, work.dq, scale(f), dq, queries);
        }
    }
}

fn scale<R: Real>(f: &Params) -> R {
    R::from_f64(f64::from(f.scale))
}

impl<R: Real> Work<'_, R> {
    fn start<E: Element<Real = R>>(&mut self, p: &BackwardParams, queries: Queries, head: usize) {
        let (f, simd) = (&p.forward, self.simd);
        let Queries { row, count, .. } = queries;
        let head_dim = f.head_dim as usize;
        let q = HeadRows { address: f.q, stride: f.q_stride, head, head_dim };
        let o = HeadRows { address: f.o, stride: f.o_stride, head, head_dim };
        let d_o = HeadRows { address: p.d_o, stride: p.d_o_stride, head, head_dim };
        load::<E>(simd, q, row, count, scale(f), self.q);
        load::<E>(simd, d_o, row, count, R::ONE, self.d_o);
        load::<E>(simd, o, row, count, R::ONE, self.dq);
        dot_rows(simd, self.d_o, self.dq, width(head_dim), &mut self.delta[..count]);
        transpose(simd, self.q, count, head_dim, self.qt);
        transpose(simd, self.d_o, count, head_dim, self.dot);
        self.dq.fill(R::ZERO);
        for (i, lse) in self.lse.iter_mut().take(count).enumerate() {
            // SAFETY: the caller of `run_on_cpu` vouches for lse, `segments` for the row.
            *lse = unsafe { slice::<R>(f.lse, (row + i) * f.lse_stride as usize + head, 1)[0] };
        }
        self.lse[count..].fill(R::ZERO);
        self.delta[count..].fill(R::ZERO);
    }

    fn load_keys<E: Element<Real = R>>(&mut self, f: &Params, of: Keys, key: usize, keys: usize) {
        let (head, head_dim) = (of.kv_head, f.head_dim as usize);
        let row = of.segment.k_start as usize + key;
        let k = HeadRows { address: f.k, stride: f.k_stride, head, head_dim };
        let v = HeadRows { address: f.v, stride: f.v_stride, head, head_dim };
        load::<E>(self.simd, k, row, keys, R::ONE, self.k);
        load::<E>(self.simd, v, row, keys, R::ONE, self.v);
    }

    /// P and dS of a block.
    fn differentiate_scores(&mut self, f: &Params, queries: Queries, key: usize, keys: usize) {
        let head_dim = f.head_dim as usize;
        let (p, ds) = (&mut self.p[..keys * QUERIES], &mut self.ds[..keys * QUERIES]);
        inner(self.simd, self.k, self.qt, head_dim, keys, queries).put(Write::Set, p, QUERIES);
        inner(self.simd, self.v, self.dot, head_dim, keys, queries).put(Write::Set, ds, QUERIES);
        let lanes = queries.lanes();
        let (lse, delta) = (&self.lse[..lanes], &self.delta[..lanes]);
        match soft_cap(f) {
            None => probabilities(self.simd, p, ds, lse, delta),
            Some(cap) => capped_probabilities(self.simd, p, ds, lse, delta, cap),
        }
        queries.mask(key, p, R::ZERO);
        queries.mask(key, ds, R::ZERO);
    }

    /// dv += Pᵀ·dO, dk += dSᵀ·(scale·Q), and dq/scale += dS·K.
    fn scatter(&mut self, head_dim: usize, queries: Queries, keys: usize, [dk, dv]: [&mut [R]; 2]) {
        let width = width(head_dim);
        let to_keys = |a, b| Product {
            simd: self.simd,
            a,
            a_strides: [QUERIES, 1],
            b,
            b_stride: width,
            rows: keys,
            cols: width,
            depth: queries.count,
        };
        to_keys(&*self.p, &*self.d_o).put(Write::Add, dv, width);
        to_keys(&*self.ds, &*self.q).put(Write::Add, dk, width);
        let to_queries = Product {
            a_strides: [1, QUERIES],
            rows: queries.count,
            depth: keys,
            ..to_keys(&*self.ds, &*self.k)
        };
        to_queries.put(Write::Add, self.dq, width);
    }
}

per_simd! {
    /// out = the inner product of each row of a and that of b, in f64: dP − Δ is a difference of
    /// nearly equal numbers where a query's keys have values that are much alike.
    fn dot_rows<R: Real>(a: &[R], b: &[R], width: usize, out: &mut [R]) {
        for ((a, b), out) in a.chunks_exact(width).zip(b.chunks_exact(width)).zip(out) {
            let products = a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0);
            let mut sums = [0.0; LANES];
            for (a, b) in products {
                for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                    *sum += a.to_f64() * b.to_f64();
                }
            }
            *out = R::from_f64(sums.iter().sum());
        }
    }
}

per_simd! {
    /// From s and dP to P and dS; not masked yet.
    fn probabilities<R: Real>(s: &mut [R], ds: &mut [R], lse: &[R], delta: &[R]) {
        for (s, ds) in s.chunks_exact_mut(QUERIES).zip(ds.chunks_exact_mut(QUERIES)) {
            for (((s, ds), lse), delta) in s.iter_mut().zip(ds).zip(lse).zip(delta) {
                let p = (*s - *lse).exp();
                *s = p;
                *ds = p * (*ds - *delta);
            }
        }
    }
}

per_simd! {
    /// The same from scores before the soft cap.
    fn capped_probabilities<R: Real>(
        s: &mut [R], ds: &mut [R], lse: &[R], delta: &[R], cap: R,
    ) {
        for (s, ds) in s.chunks_exact_mut(QUERIES).zip(ds.chunks_exact_mut(QUERIES)) {
            for (((s, ds), lse), delta) in s.iter_mut().zip(ds).zip(lse).zip(delta) {
                let t = (*s / cap).tanh();
                let p = (cap * t - *lse).exp();
                *s = p;
                *ds = p * (*ds - *delta) * (R::ONE - t * t);
            }
        }
    }
}

per_simd! {
    fn finish<E: Element>(dq: &[E::Real], scale: E::Real, to: HeadRows, queries: Queries) {
        for (i, dq) in dq.chunks_exact(width(to.head_dim)).take(queries.count).enumerate() {
            // SAFETY: the caller of `run_on_cpu` vouches for dq, `segments` for the row; a task
            // owns its heads of the segment.
            let out = unsafe { to.row_mut::<E>(queries.row + i) };
            for (out, dq) in out.iter_mut().zip(dq) {
                *out = E::from_real(*dq * scale);
            }
        }
    }
}

per_simd! {
    /// dk and dv of one kv head of a segment from their partial sums.
    fn add_up<E: Element>(p: &BackwardParams, segment: Segment, kv_head: usize, partial: Partial) {
        let head_dim = p.forward.head_dim as usize;
        for (which, address, stride) in [(0, p.dk, p.dk_stride), (1, p.dv, p.dv_stride)] {
            let rows = HeadRows { address, stride, head: kv_head, head_dim };
            // SAFETY: the first pass is over, and only this task touches the planes of its keys.
            let plane = |part| unsafe {
                partial.plane::<E::Real>(Keys { segment, kv_head, part }, which)
            };
            let sum = plane(0);
            for part in 1..partial.parts {
                for (sum, more) in sum.iter_mut().zip(&*plane(part)) {
                    *sum += *more;
                }
            }
            for (i, sum) in sum.chunks_exact(partial.width).enumerate() {
                // SAFETY: the caller of `run_on_cpu` vouches for dk and dv, `segments` for the
                // row; a task owns its kv head of the segment.
                let out = unsafe { rows.row_mut::<E>(segment.k_start as usize + i) };
                for (out, sum) in out.iter_mut().zip(sum) {
                    *out = E::from_real(*sum);
                }
            }
        }
    }
}
