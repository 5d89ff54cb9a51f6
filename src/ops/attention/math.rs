//! In which form blocks go into products.
//!
//! bf16 activations are multiplied as bf16 with sums in f32: q, k, v and dO as they are, and the
//! probabilities and their gradients rounded, on every machine. [`Pairs`] takes two such products in
//! one instruction where there is one; [`Plain`] multiplies the same numbers in the element's
//! [`Real`].
//!
//! A left factor lies row by row, its numbers read one by one; a right factor row by row of its
//! depth, read a vector at a time. With [`Pairs`] both hold two consecutive numbers of the depth in
//! one place, and an odd depth is filled up with zeros.

use std::marker::PhantomData;

use half::bf16;

use super::block::{HeadRows, QUERIES, width};
use super::product::{Factor, Pair};
use crate::device::Simd;
use crate::ops::Element;
use crate::ops::element::per_simd;

/// How the products of attention are taken.
pub(super) trait Math {
    /// A number in memory.
    type Element: Element<Real = Self::Real>;
    /// A sum.
    type Real: crate::ops::Real;
    /// What a factor is made of.
    type Factor: Factor<Sum = Self::Real>;
    /// Numbers of the depth in one [`Factor`].
    const GROUP: usize;

    /// `count` rows from row `first` on, of [`width`] numbers, as a left factor: depth D.
    fn load_left(simd: Simd, rows: HeadRows, first: usize, count: usize, out: &mut [Self::Factor]);

    /// The same rows as a right factor: depth `count`.
    fn load_right(simd: Simd, rows: HeadRows, first: usize, count: usize, out: &mut [Self::Factor]);

    /// Weights [keys, queries] as a left factor of depth `keys`, transposed: its rows are 1 apart and
    /// its columns [`QUERIES`].
    fn to_queries<'a>(
        simd: Simd,
        weights: &'a mut [Self::Real],
        room: &'a mut [Self::Factor],
    ) -> &'a [Self::Factor];

    /// Weights [keys, queries] as a left factor of depth `queries`.
    fn to_keys<'a>(
        simd: Simd,
        weights: &'a mut [Self::Real],
        room: &'a mut [Self::Factor],
    ) -> &'a [Self::Factor];
}

/// Products of single numbers.
pub(super) struct Plain<E>(PhantomData<E>);

/// Products of pairs of bf16.
pub(super) struct Pairs;

impl<E: Element<Real: Factor<Sum = E::Real>>> Math for Plain<E> {
    type Element = E;
    type Real = E::Real;
    type Factor = E::Real;
    const GROUP: usize = 1;

    fn load_left(simd: Simd, rows: HeadRows, first: usize, count: usize, out: &mut [E::Real]) {
        widen::<E>(simd, rows, first, count, out);
    }

    fn load_right(simd: Simd, rows: HeadRows, first: usize, count: usize, out: &mut [E::Real]) {
        widen::<E>(simd, rows, first, count, out);
    }

    fn to_queries<'a>(
        simd: Simd,
        weights: &'a mut [E::Real],
        _: &'a mut [E::Real],
    ) -> &'a [E::Real] {
        round::<E>(simd, weights);
        weights
    }

    fn to_keys<'a>(simd: Simd, weights: &'a mut [E::Real], _: &'a mut [E::Real]) -> &'a [E::Real] {
        round::<E>(simd, weights);
        weights
    }
}

impl Math for Pairs {
    type Element = bf16;
    type Real = f32;
    type Factor = Pair;
    const GROUP: usize = 2;

    fn load_left(simd: Simd, rows: HeadRows, first: usize, count: usize, out: &mut [Pair]) {
        copy_rows::<bf16>(simd, rows, first, count, bytemuck::cast_slice_mut(out));
    }

    fn load_right(simd: Simd, rows: HeadRows, first: usize, count: usize, out: &mut [Pair]) {
        pair_rows::<bf16>(simd, rows, first, count, out);
    }

    fn to_queries<'a>(simd: Simd, weights: &'a mut [f32], room: &'a mut [Pair]) -> &'a [Pair] {
        round_pairs_of_rows::<bf16>(simd, weights, room);
        room
    }

    fn to_keys<'a>(simd: Simd, weights: &'a mut [f32], room: &'a mut [Pair]) -> &'a [Pair] {
        round_rows::<bf16>(simd, weights, bytemuck::cast_slice_mut(room));
        room
    }
}

per_simd! {
    /// Rows must be valid for reads of `E` and not be written meanwhile; so below.
    fn widen<E: Element>(
        rows: HeadRows, first: usize, count: usize, out: &mut [E::Real],
    ) {
        for (i, out) in out.chunks_exact_mut(width(rows.head_dim)).take(count).enumerate() {
            // SAFETY: callers vouch for all rows.
            let row = unsafe { rows.row::<E>(first + i) };
            let (numbers, rest) = out.split_at_mut(rows.head_dim);
            for (out, x) in numbers.iter_mut().zip(row) {
                *out = x.real();
            }
            rest.fill(crate::ops::Real::ZERO);
        }
    }
}

per_simd! {
    fn copy_rows<E: Element>(rows: HeadRows, first: usize, count: usize, out: &mut [E]) {
        for (i, out) in out.chunks_exact_mut(width(rows.head_dim)).take(count).enumerate() {
            // SAFETY: callers vouch for all rows.
            let row = unsafe { rows.row::<E>(first + i) };
            let (numbers, rest) = out.split_at_mut(rows.head_dim);
            for (out, x) in numbers.iter_mut().zip(row) {
                *out = *x;
            }
            rest.fill(E::zeroed());
        }
    }
}

per_simd! {
    fn pair_rows<E: Element>(
        rows: HeadRows, first: usize, count: usize, out: &mut [[E; 2]],
    ) {
        let head_dim = rows.head_dim;
        let pairs = out.chunks_exact_mut(width(head_dim)).take(count.div_ceil(2));
        for (i, out) in pairs.enumerate() {
            // SAFETY: callers vouch for all rows.
            let (row, next) = unsafe {
                (rows.row::<E>(first + 2 * i), rows.row::<E>(first + (2 * i + 1).min(count - 1)))
            };
            let (numbers, rest) = out.split_at_mut(head_dim);
            for ((out, a), b) in numbers.iter_mut().zip(row).zip(next) {
                *out = [*a, *b];
            }
            if 2 * i + 1 == count {
                for out in numbers {
                    out[1] = E::zeroed();
                }
            }
            rest.fill([E::zeroed(); 2]);
        }
    }
}

per_simd! {
    fn round<E: Element>(weights: &mut [E::Real]) {
        if size_of::<E>() < size_of::<E::Real>() {
            for x in weights {
                *x = E::from_real(*x).real();
            }
        }
    }
}

per_simd! {
    fn round_rows<E: Element>(weights: &[E::Real], out: &mut [E]) {
        for (out, x) in out.iter_mut().zip(weights) {
            *out = E::from_real(*x);
        }
    }
}

per_simd! {
    fn round_pairs_of_rows<E: Element>(weights: &[E::Real], out: &mut [[E; 2]]) {
        let pairs = weights.chunks(2 * QUERIES).zip(out.chunks_exact_mut(QUERIES));
        for (rows, out) in pairs {
            let (first, second) = rows.split_at(QUERIES);
            if second.is_empty() {
                for (out, a) in out.iter_mut().zip(first) {
                    *out = [E::from_real(*a), E::zeroed()];
                }
            }
            for ((out, a), b) in out.iter_mut().zip(first).zip(second) {
                *out = [E::from_real(*a), E::from_real(*b)];
            }
        }
    }
}
