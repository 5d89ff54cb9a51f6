//! Attention backward on the CPU, in two passes without atomics.
//!
//! The query heads of a kv head are dealt to a few parts. The first pass has a task for each
//! segment, kv head and part: it writes dq of its heads and its own partial sums of dk and dv; the
//! second pass adds the partial sums up in the order of the parts. The count of parts depends on
//! the heads only, so neither the threads nor the other records of a batch change a bit.

use super::block::{
    Carver, HeadRows, KEYS, QUERIES, Queries, inner, outer, scale, soft_cap, transpose, width,
};
use super::math::Math;
use super::product::{LANES, Product};
use super::{BackwardParams, Params, Segment};
use crate::device::{Address, Cpu, Scratch, ScratchMemory, Simd};
use crate::ops::element::per_simd;
use crate::ops::{Element, Real, Write, slice, slice_mut};

/// Tasks to aim for with a single segment; more parts would give more tasks for more memory.
const TASKS: usize = 8;

/// The memory of one task.
struct Work<'a, M: Math> {
    simd: Simd,
    /// Room for a left factor of queries.
    rows: &'a mut [M::Factor],
    /// Queries, a right factor of depth `queries`.
    q: &'a mut [M::Factor],
    /// The same, of depth D.
    qt: &'a mut [M::Factor],
    /// Gradient at the output, a right factor of depth `queries`.
    d_o: &'a mut [M::Factor],
    /// The same, of depth D.
    dot: &'a mut [M::Factor],
    /// Keys, a left factor of depth D.
    k: &'a mut [M::Factor],
    /// Keys, a right factor of depth `keys`.
    k_right: &'a mut [M::Factor],
    /// Values, a left factor of depth D.
    v: &'a mut [M::Factor],
    /// Room for weights as a left factor.
    weights: &'a mut [M::Factor],
    /// Gradient at the queries [queries, width].
    dq: &'a mut [M::Real],
    /// Scores, then probabilities [keys, queries].
    p: &'a mut [M::Real],
    /// Gradient at the probabilities, then at q·k [keys, queries].
    ds: &'a mut [M::Real],
    /// Logarithm of the sum of exponentials, of each query.
    lse: &'a mut [M::Real],
    /// Δ of each query.
    delta: &'a mut [M::Real],
}

impl<M: Math> Work<'_, M> {
    /// Factors and numbers.
    const fn counts(head_dim: usize) -> (usize, usize) {
        let rows = width(head_dim) * QUERIES;
        (8 * rows + KEYS * QUERIES, rows + 2 * KEYS * QUERIES + 2 * QUERIES)
    }

    /// # Safety
    /// `memory` is the caller's alone and holds [`counts`](Self::counts).
    unsafe fn carve(simd: Simd, memory: Address, head_dim: usize) -> Self {
        let (mut carver, rows) = (Carver::new(memory), QUERIES * width(head_dim));
        // SAFETY: the counts add up to `counts`.
        unsafe {
            Self {
                simd,
                rows: carver.take(rows),
                q: carver.take(rows),
                qt: carver.take(rows),
                d_o: carver.take(rows),
                dot: carver.take(rows),
                k: carver.take(rows),
                k_right: carver.take(rows),
                v: carver.take(rows),
                weights: carver.take(KEYS * QUERIES),
                dq: carver.take(rows),
                p: carver.take(KEYS * QUERIES),
                ds: carver.take(KEYS * QUERIES),
                lse: carver.take(QUERIES),
                delta: carver.take(QUERIES),
            }
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

pub(super) fn scratch<M: Math>(p: &BackwardParams) -> Scratch {
    let partial = Partial::new(&p.forward, Address::NULL).numbers();
    let (factors, numbers) = Work::<M>::counts(p.forward.head_dim as usize);
    let bytes = factors * size_of::<M::Factor>() + numbers * size_of::<M::Real>();
    Scratch { shared: partial * size_of::<M::Real>(), per_thread: bytes }
}

pub(super) fn run<M: Math>(p: &BackwardParams, cpu: &Cpu, scratch: ScratchMemory) {
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
        differentiate::<M>(&mut work, p, Keys { segment, kv_head, part }, partial);
    });
    cpu.for_each(segments.len() * kv_heads, |task| {
        add_up::<M::Element>(cpu.simd(), p, segments[task / kv_heads], task % kv_heads, partial);
    });
}

/// What a task of the first pass works on.
#[derive(Clone, Copy)]
struct Keys {
    segment: Segment,
    kv_head: usize,
    part: usize,
}

fn differentiate<M: Math>(work: &mut Work<M>, p: &BackwardParams, of: Keys, partial: Partial) {
    let f = &p.forward;
    // SAFETY: a task owns its planes within the segment.
    let [dk, dv] = [0, 1].map(|which| unsafe { partial.plane::<M::Real>(of, which) });
    dk.fill(M::Real::ZERO);
    dv.fill(M::Real::ZERO);
    let group = (f.heads / f.kv_heads) as usize;
    for head in (of.part..group).step_by(partial.parts).map(|i| of.kv_head * group + i) {
        for first in (0..of.segment.q_len as usize).step_by(QUERIES) {
            let queries = Queries::of(f, of.segment, first);
            work.start(p, queries, head);
            for (key, keys) in queries.key_blocks() {
                work.load_keys(f, of, key, keys);
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
            finish::<M::Element>(work.simd, work.dq, dq, queries);
        }
    }
}

impl<M: Math> Work<'_, M> {
    fn start(&mut self, p: &BackwardParams, queries: Queries, head: usize) {
        let (f, simd) = (&p.forward, self.simd);
        let Queries { row, count, .. } = queries;
        let head_dim = f.head_dim as usize;
        let q = HeadRows { address: f.q, stride: f.q_stride, head, head_dim };
        let o = HeadRows { address: f.o, stride: f.o_stride, head, head_dim };
        let d_o = HeadRows { address: p.d_o, stride: p.d_o_stride, head, head_dim };
        for (from, right, transposed) in
            [(q, &mut self.q, &mut self.qt), (d_o, &mut self.d_o, &mut self.dot)]
        {
            M::load_right(simd, from, row, count, right);
            M::load_left(simd, from, row, count, self.rows);
            transpose(self.rows, count, width(head_dim) / M::GROUP, transposed);
        }
        dot_rows::<M::Element>(simd, d_o, o, row, &mut self.delta[..count]);
        self.dq.fill(M::Real::ZERO);
        for (i, lse) in self.lse.iter_mut().take(count).enumerate() {
            let start = (row + i) * f.lse_stride as usize + head;
            // SAFETY: the caller of `run_on_cpu` vouches for lse, `segments` for the row.
            *lse = unsafe { slice::<M::Real>(f.lse, start, 1)[0] };
        }
        self.lse[count..].fill(M::Real::ZERO);
        self.delta[count..].fill(M::Real::ZERO);
    }

    fn load_keys(&mut self, f: &Params, of: Keys, key: usize, keys: usize) {
        let (head, head_dim) = (of.kv_head, f.head_dim as usize);
        let row = of.segment.k_start as usize + key;
        let k = HeadRows { address: f.k, stride: f.k_stride, head, head_dim };
        let v = HeadRows { address: f.v, stride: f.v_stride, head, head_dim };
        M::load_left(self.simd, k, row, keys, self.k);
        M::load_right(self.simd, k, row, keys, self.k_right);
        M::load_left(self.simd, v, row, keys, self.v);
    }

    /// P and scale·dS of a block.
    fn differentiate_scores(&mut self, f: &Params, queries: Queries, key: usize, keys: usize) {
        let (simd, head_dim) = (self.simd, f.head_dim as usize);
        let (p, ds) = (&mut self.p[..keys * QUERIES], &mut self.ds[..keys * QUERIES]);
        let scores = inner::<M>(simd, self.k, self.qt, head_dim, keys, queries);
        scores.put(Write::Set, p, QUERIES);
        let gradients = inner::<M>(simd, self.v, self.dot, head_dim, keys, queries);
        gradients.put(Write::Set, ds, QUERIES);
        let lanes = queries.lanes();
        let (lse, delta) = (&self.lse[..lanes], &self.delta[..lanes]);
        match soft_cap(f) {
            None => probabilities(simd, p, ds, lse, delta, scale(f)),
            Some(cap) => capped_probabilities(simd, p, ds, lse, delta, scale(f), cap),
        }
        queries.mask(key, p, M::Real::ZERO);
        queries.mask(key, ds, M::Real::ZERO);
    }

    /// dv += Pᵀ·dO, dk += scale·dSᵀ·Q, and dq += scale·dS·K.
    fn scatter(
        &mut self,
        head_dim: usize,
        queries: Queries,
        keys: usize,
        [dk, dv]: [&mut [M::Real]; 2],
    ) {
        let (simd, width) = (self.simd, width(head_dim));
        let (p, ds) = (&mut self.p[..keys * QUERIES], &mut self.ds[..keys * QUERIES]);
        let a = M::to_keys(simd, p, self.weights);
        to_keys::<M>(simd, a, self.d_o, head_dim, keys, queries).put(Write::Add, dv, width);
        let a = M::to_keys(simd, ds, self.weights);
        to_keys::<M>(simd, a, self.q, head_dim, keys, queries).put(Write::Add, dk, width);
        let a = M::to_queries(simd, ds, self.weights);
        let to_queries = outer::<M>(simd, a, self.k_right, head_dim, keys, queries);
        to_queries.put(Write::Add, self.dq, width);
    }
}

/// weights [keys, queries] · rows [queries, D]: Pᵀ·dO, or dSᵀ·Q.
fn to_keys<'a, M: Math>(
    simd: Simd,
    weights: &'a [M::Factor],
    rows: &'a [M::Factor],
    head_dim: usize,
    keys: usize,
    queries: Queries,
) -> Product<'a, M::Factor> {
    Product {
        simd,
        a: weights,
        a_strides: [QUERIES / M::GROUP, 1],
        b: rows,
        b_stride: width(head_dim),
        rows: keys,
        cols: width(head_dim),
        depth: queries.count.div_ceil(M::GROUP),
    }
}

per_simd! {
    /// out = the inner product of each row of a and that of b, in f64: dP − Δ is a difference of
    /// nearly equal numbers where a query's keys have values that are much alike.
    fn dot_rows<E: Element>(a: HeadRows, b: HeadRows, first: usize, out: &mut [E::Real]) {
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the caller of `run_on_cpu` vouches for both, `segments` for the rows.
            let (a, b) = unsafe { (a.row::<E>(first + i), b.row::<E>(first + i)) };
            let mut sums = [0.0; LANES];
            for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
                for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                    *sum += a.real().to_f64() * b.real().to_f64();
                }
            }
            *out = E::Real::from_f64(sums.iter().sum());
        }
    }
}

per_simd! {
    /// From q·k and dP to P and scale·dS; not masked yet.
    fn probabilities<R: Real, const FUSED: bool>(
        s: &mut [R], ds: &mut [R], lse: &[R], delta: &[R], scale: R,
    ) {
        for (s, ds) in s.chunks_exact_mut(QUERIES).zip(ds.chunks_exact_mut(QUERIES)) {
            for (((s, ds), lse), delta) in s.iter_mut().zip(ds).zip(lse).zip(delta) {
                let p = s.multiply_add::<FUSED>(scale, -*lse).exp::<FUSED>();
                *s = p;
                *ds = p * (*ds - *delta) * scale;
            }
        }
    }
}

per_simd! {
    /// The same with a soft cap.
    fn capped_probabilities<R: Real, const FUSED: bool>(
        s: &mut [R], ds: &mut [R], lse: &[R], delta: &[R], scale: R, cap: R,
    ) {
        for (s, ds) in s.chunks_exact_mut(QUERIES).zip(ds.chunks_exact_mut(QUERIES)) {
            for (((s, ds), lse), delta) in s.iter_mut().zip(ds).zip(lse).zip(delta) {
                let t = (*s * scale / cap).tanh::<FUSED>();
                let p = (cap * t - *lse).exp::<FUSED>();
                *s = p;
                *ds = p * (*ds - *delta) * (R::ONE - t * t) * scale;
            }
        }
    }
}

per_simd! {
    fn finish<E: Element>(dq: &[E::Real], to: HeadRows, queries: Queries) {
        for (i, dq) in dq.chunks_exact(width(to.head_dim)).take(queries.count).enumerate() {
            // SAFETY: the caller of `run_on_cpu` vouches for dq, `segments` for the row; a task
            // owns its heads of the segment.
            let out = unsafe { to.row_mut::<E>(queries.row + i) };
            for (out, dq) in out.iter_mut().zip(dq) {
                *out = E::from_real(*dq);
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
