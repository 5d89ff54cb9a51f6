//! The innermost loop: a tile of the result, as many rows and columns of it as fit in registers,
//! becomes or gains the product of a left panel and a right panel.
//!
//! A panel holds its K in steps. One step is the numbers of all its lanes (rows of the result on
//! the left, columns on the right) side by side; a lane holds [`GROUP`](Lanes::GROUP) consecutive
//! values of K. [`multiply`] is written once; what differs between instruction sets is [`Lanes`].

#[cfg(target_arch = "x86_64")]
mod x86;

use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, Avx512Bf16};

use crate::ops::Write;
use crate::ops::element::{Element, Real};

/// Vectors side by side in a tile of full width.
pub(super) const VECTORS: usize = 2;

/// The vectors of an instruction set and what they compute.
///
/// # Safety
/// Every function demands the instruction set, and valid addresses for as many numbers as it names.
pub(super) trait Lanes: Send + Sync {
    /// A number in a panel.
    type Number: Element;
    /// A vector of `WIDTH` lanes of `GROUP` numbers each.
    type Operand: Copy;
    /// A vector of `WIDTH` sums.
    type Sums: Copy;
    /// Consecutive values of K in a lane.
    const GROUP: usize;
    /// Lanes of a vector.
    const WIDTH: usize;
    /// Rows of a tile: as many as the registers hold beside the operands.
    const ROWS: usize;

    /// Sums of nothing.
    unsafe fn zero() -> Self::Sums;
    /// `WIDTH · GROUP` numbers.
    unsafe fn load(from: *const Self::Number) -> Self::Operand;
    /// `GROUP` numbers, the same in every lane.
    unsafe fn splat(from: *const Self::Number) -> Self::Operand;
    /// `sums` + left · right, over the group too.
    unsafe fn multiply_add(
        left: Self::Operand,
        right: Self::Operand,
        sums: Self::Sums,
    ) -> Self::Sums;
    /// Writes `sums` to the `WIDTH` numbers at `to`, or adds them.
    unsafe fn put(write: Write, sums: Self::Sums, to: *mut <Self::Number as Element>::Real);
    /// [`multiply`] for `rows` (1 to `ROWS`) and `vectors` (1 or [`VECTORS`]), compiled for the
    /// instruction set.
    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<Self::Number>);
}

/// Addresses of a tile.
pub(super) struct Tile<N: Element> {
    /// Length of both panels.
    pub(super) steps: usize,
    /// A panel of `ROWS` lanes.
    pub(super) left: *const N,
    /// A panel of the width of the tile.
    pub(super) right: *const N,
    /// The first sum of the tile.
    pub(super) sums: *mut N::Real,
    /// Sums from one row to the next.
    pub(super) stride: usize,
    /// Whether there are sums already.
    pub(super) write: Write,
}

/// Writes or adds left · right to the sums of `R` rows and `V` vectors. Each sum takes its K in order, in one
/// chain that starts at zero, so that it does not depend on `R` and `V`.
#[inline(always)]
unsafe fn multiply<L: Lanes, const R: usize, const V: usize>(tile: Tile<L::Number>) {
    // SAFETY: the caller vouches for the instruction set and the panels.
    unsafe {
        let mut sums = [[L::zero(); V]; R];
        let (mut left, mut right) = (tile.left, tile.right);
        for _ in 0..tile.steps {
            let mut columns = [L::load(right); V];
            for (v, column) in columns.iter_mut().enumerate().skip(1) {
                *column = L::load(right.add(v * L::WIDTH * L::GROUP));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let number = L::splat(left.add(r * L::GROUP));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = L::multiply_add(number, column, *sum);
                }
            }
            left = left.add(L::ROWS * L::GROUP);
            right = right.add(V * L::WIDTH * L::GROUP);
        }
        for (r, row) in sums.into_iter().enumerate() {
            for (v, sum) in row.into_iter().enumerate() {
                L::put(tile.write, sum, tile.sums.add(r * tile.stride + v * L::WIDTH));
            }
        }
    }
}

/// Calls `$run::<R, V>($tile)` with R = `$rows`, one of the numbers listed, and V = `$vectors`.
#[cfg(target_arch = "x86_64")]
macro_rules! with_size {
    ($rows:expr, $vectors:expr, [$($r:literal)*], $run:ident($tile:expr)) => {
        match ($rows, $vectors) {
            $(($r, 1) => $run::<$r, 1>($tile), ($r, _) => $run::<$r, VECTORS>($tile),)*
            (rows, _) => unreachable!("a tile of {rows} rows"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use with_size;

/// Any machine, computing in `R`.
pub(super) struct Portable<R>(PhantomData<R>);

impl<R: Real + Element<Real = R>> Lanes for Portable<R> {
    type Number = R;
    type Operand = [R; 4];
    type Sums = [R; 4];
    const GROUP: usize = 1;
    const WIDTH: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> [R; 4] {
        [R::ZERO; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const R) -> [R; 4] {
        // SAFETY: the caller vouches for four numbers.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn splat(from: *const R) -> [R; 4] {
        // SAFETY: the caller vouches for one number.
        [unsafe { *from }; 4]
    }

    #[inline(always)]
    unsafe fn multiply_add(left: [R; 4], right: [R; 4], mut sums: [R; 4]) -> [R; 4] {
        for (sum, (a, b)) in sums.iter_mut().zip(left.into_iter().zip(right)) {
            *sum += a * b;
        }
        sums
    }

    #[inline(always)]
    unsafe fn put(write: Write, sums: [R; 4], to: *mut R) {
        for (lane, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller vouches for four numbers.
            unsafe { write.put(&mut *to.add(lane), sum) };
        }
    }

    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<R>) {
        // SAFETY: passed on from the caller.
        unsafe {
            match (rows, vectors) {
                (1, 1) => multiply::<Self, 1, 1>(tile),
                (2, 1) => multiply::<Self, 2, 1>(tile),
                (3, 1) => multiply::<Self, 3, 1>(tile),
                (4, 1) => multiply::<Self, 4, 1>(tile),
                (1, _) => multiply::<Self, 1, VECTORS>(tile),
                (2, _) => multiply::<Self, 2, VECTORS>(tile),
                (3, _) => multiply::<Self, 3, VECTORS>(tile),
                (4, _) => multiply::<Self, 4, VECTORS>(tile),
                (rows, _) => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}
