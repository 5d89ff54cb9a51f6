//! Everything that is computed, one file per operation.
//!
//! Each file holds the parameters of a kernel (a plain C struct: the same that a GPU kernel takes
//! by value), a safe function that checks shapes and launches it, and the CPU implementation,
//! which is also the oracle of every other device. Shape letters: B sequences, T tokens per
//! sequence, N = B·T, C hidden, H heads, K kv heads, D head dim, F feed-forward, V vocabulary,
//! R rank, L layers.
//!
//! Start with [`rmsnorm`], the plainest one; [`gemm`] is where the time goes.

pub mod adamw;
pub mod adamw_8bit;
pub mod attention;
#[cfg(test)]
pub(crate) mod check;
pub mod copy;
pub mod cross_entropy;
pub mod dropout;
mod element;
pub mod embedding;
mod gauss;
pub mod gemm;
pub mod glu;
#[cfg(test)]
mod host;
pub mod rmsnorm;
pub mod rope;
pub mod rows;
pub mod sum_squares;
mod tasks;

use bytemuck::Pod;

use crate::device::Address;
pub use element::{Element, Real};

/// Whether a result replaces what is there or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Write {
    /// Replace.
    Set = 0,
    /// Add.
    Add = 1,
}

impl Write {
    /// Puts `value` into `place`, rounded once.
    #[inline(always)]
    fn put<E: Element>(self, place: &mut E, value: E::Real) {
        *place = match self {
            Self::Set => E::from_real(value),
            Self::Add => E::from_real(place.real() + value),
        };
    }
}

/// `len` elements from element `start` after `address`.
///
/// # Safety
/// They must be valid for reads of `E` and not be written meanwhile.
unsafe fn slice<'a, E: Pod>(address: Address, start: usize, len: usize) -> &'a [E] {
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(address.cast::<E>().add(start), len) }
}

/// `len` elements from element `start` after `address`, for writing.
///
/// # Safety
/// They must be valid for reads and writes of `E` and not be touched otherwise meanwhile.
unsafe fn slice_mut<'a, E: Pod>(address: Address, start: usize, len: usize) -> &'a mut [E] {
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts_mut(address.cast::<E>().add(start), len) }
}

/// Σ term(x) over 16 running sums, added up pairwise: a fixed order that vector units can follow.
#[inline(always)]
fn lanes_sum<T: Copy, R: Real>(numbers: &[T], term: impl Fn(T) -> R) -> R {
    const LANES: usize = 64;
    let mut lanes = [R::ZERO; LANES];
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in lanes.iter_mut().zip(chunk) {
            *sum += term(*x);
        }
    }
    for (sum, x) in lanes.iter_mut().zip(rest) {
        *sum += term(*x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
