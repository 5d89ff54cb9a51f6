//! Gathering and scattering rows: the supervised positions of a batch, packed for the loss and
//! spread again for its gradient.

use super::element::{Element, with_element};
use super::tasks::{TASK, for_each_piece};
use super::{slice, slice_mut};
use crate::device::{
    Address, Buf, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory, narrow,
};
use crate::error::Error;
use crate::ffi;

/// Parameters of both kernels: `count` rows of `packed` are rows `index` of the `rows` of `spread`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    packed: Address,
    spread: Address,
    index: Address,
    count: u64,
    rows: u64,
    cols: u64,
    packed_stride: u64,
    spread_stride: u64,
    dtype: Dtype,
}

/// The kernel `gather_rows`.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Gather(Params);

/// The kernel `scatter_rows`.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Scatter(Params);

/// out`[i]` = x[index`[i]`] for every row i of `out`.
///
/// # Panics
/// On an index that is no row of `x`.
pub fn gather(device: &Device, x: Mat, index: &Buf<u32>, out: MatMut) {
    assert_eq!((out.cols, out.dtype), (x.cols, x.dtype), "rows of out must be like those of x");
    assert!(out.rows <= index.len(), "{} rows by {} indices", out.rows, index.len());
    let kernel = Gather(Params {
        packed: out.address,
        spread: x.address,
        index: index.address(),
        count: out.rows as u64,
        rows: x.rows as u64,
        cols: x.cols as u64,
        packed_stride: out.stride as u64,
        spread_stride: x.stride as u64,
        dtype: x.dtype,
    });
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

/// out[index`[i]`] = x`[i]` for every row i of `x`; all other rows are 0. The indices are distinct.
///
/// # Panics
/// On an index that is no row of `out`.
pub fn scatter(device: &Device, x: Mat, index: &Buf<u32>, out: MatMut) {
    assert_eq!((out.cols, out.dtype), (x.cols, x.dtype), "rows of out must be like those of x");
    assert!(x.rows <= index.len(), "{} rows by {} indices", x.rows, index.len());
    let kernel = Scatter(Params {
        packed: x.address,
        spread: out.address,
        index: index.address(),
        count: x.rows as u64,
        rows: out.rows as u64,
        cols: x.cols as u64,
        packed_stride: x.stride as u64,
        spread_stride: out.stride as u64,
        dtype: x.dtype,
    });
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches rows of the stated widths and strides only; a task owns its piece of a row.
unsafe impl Kernel for Gather {
    const NAME: &'static str = "gather_rows";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.0.dtype, gather_on_cpu(&self.0, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        // SAFETY: passed on from the caller.
        unsafe { queue_on_gpu(Self::NAME, &self.0, queue) }
    }
}

// SAFETY: as above; a task owns the rows of out that it zeroes and fills.
unsafe impl Kernel for Scatter {
    const NAME: &'static str = "scatter_rows";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.0.dtype, scatter_on_cpu(&self.0, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        let Params { spread, rows, cols, spread_stride, .. } = self.0;
        let dense = spread_stride == cols;
        queue.require(Self::NAME, dense, || format!("{cols} of {spread_stride} columns"))?;
        // SAFETY: passed on from the caller; rows that nothing is scattered to are zero.
        unsafe {
            queue.zero(spread, (rows * cols) as usize * Dtype::Bf16.size())?;
            queue_on_gpu(Self::NAME, &self.0, queue)
        }
    }
}

/// Queues either kernel: a block for each packed row.
unsafe fn queue_on_gpu(name: &'static str, p: &Params, queue: &Queue) -> Result<(), Error> {
    queue.require_bf16(name, p.dtype)?;
    let params = ffi::Rows {
        packed: p.packed.number(),
        spread: p.spread.number(),
        index: p.index.number(),
        packed_stride: p.packed_stride,
        spread_stride: p.spread_stride,
        cols: narrow(p.cols),
    };
    // SAFETY: passed on from the caller.
    unsafe { queue.launch(name, Grid::row(p.count as usize), &params) }
}

/// The indices, each of them checked.
fn checked_index(p: &Params) -> &[u32] {
    // SAFETY: the caller of `run_on_cpu` vouches for all indices.
    let index = unsafe { std::slice::from_raw_parts(p.index.cast::<u32>(), p.count as usize) };
    for i in index {
        assert!(u64::from(*i) < p.rows, "index {i} of {} rows", p.rows);
    }
    index
}

fn gather_on_cpu<E: Element>(p: &Params, cpu: &Cpu) {
    let index = checked_index(p);
    for_each_piece(cpu, index.len(), p.cols as usize, |row, columns| {
        let from = index[row] as usize * p.spread_stride as usize + columns.start;
        let to = row * p.packed_stride as usize + columns.start;
        // SAFETY: the caller vouches for both matrices and the index is checked; a task owns its
        // piece of a row.
        let (from, to) = unsafe {
            (slice::<E>(p.spread, from, columns.len()), slice_mut::<E>(p.packed, to, columns.len()))
        };
        to.copy_from_slice(from);
    });
}

/// Each task looks through the whole index for the rows that it owns, so that none needs to know of
/// another; at most [`SCATTER_TASKS`] of them, so that this stays cheap.
fn scatter_on_cpu<E: Element>(p: &Params, cpu: &Cpu) {
    let (index, rows, cols) = (checked_index(p), p.rows as usize, p.cols as usize);
    let rows_per_task = (TASK / cols.max(1)).max(rows.div_ceil(SCATTER_TASKS)).max(1);
    cpu.for_each(rows.div_ceil(rows_per_task), |task| {
        let own = task * rows_per_task..rows.min((task + 1) * rows_per_task);
        // SAFETY: the caller vouches for both matrices; a task writes to its own rows only.
        let to =
            |row: usize| unsafe { slice_mut::<E>(p.spread, row * p.spread_stride as usize, cols) };
        own.clone().for_each(|row| to(row).fill(E::zeroed()));
        for (i, row) in index.iter().enumerate() {
            if own.contains(&(*row as usize)) {
                // SAFETY: as above.
                let from = unsafe { slice::<E>(p.packed, i * p.packed_stride as usize, cols) };
                to(*row as usize).copy_from_slice(from);
            }
        }
    });
}

/// Most tasks of a scatter.
const SCATTER_TASKS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::normal;
    use crate::ops::host::{LENGTHS, act, assert_same_for_any_thread_count, buf, devices, values};

    const INDEX: [u32; 5] = [8, 0, 5, 6, 1];

    #[test]
    fn gathered_rows_are_those_of_the_index() {
        for dtype in [Dtype::Bf16, Dtype::F32, Dtype::F64] {
            for (device, cols) in devices(dtype).flat_map(|d| LENGTHS.map(|n| (d.clone(), n))) {
                let x = act(&device, dtype, &normal(1, 9 * cols).collect::<Vec<_>>());
                let mut out = device.alloc_act("out", 4 * cols).unwrap();
                gather(&device, x.view(9, cols), &buf(&device, &INDEX), out.view_mut(4, cols));
                let x = values(&device, &x);
                let expected: Vec<&[f64]> =
                    INDEX[..4].iter().map(|i| &x[*i as usize * cols..][..cols]).collect();
                assert_eq!(values(&device, &out), expected.concat(), "{dtype:?} {cols}");
            }
        }
    }

    #[test]
    fn scattered_rows_lie_where_the_index_says_among_zeros() {
        for dtype in [Dtype::Bf16, Dtype::F32, Dtype::F64] {
            for (device, cols) in devices(dtype).flat_map(|d| LENGTHS.map(|n| (d.clone(), n))) {
                let x = act(&device, dtype, &normal(1, 4 * cols).collect::<Vec<_>>());
                let mut out = act(&device, dtype, &vec![7.0; 9 * cols]);
                scatter(&device, x.view(4, cols), &buf(&device, &INDEX), out.view_mut(9, cols));
                let mut expected = vec![0.0; 9 * cols];
                for (i, x) in values(&device, &x).chunks_exact(cols.max(1)).enumerate() {
                    expected[INDEX[i] as usize * cols..][..cols].copy_from_slice(x);
                }
                assert_eq!(values(&device, &out), expected, "{dtype:?} {cols}");
            }
        }
    }

    #[test]
    fn strides_are_followed_and_the_gap_is_left_alone() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let x = act(&device, Dtype::F32, &(0..12).map(f64::from).collect::<Vec<_>>());
        let index = buf(&device, &[2, 0]);
        let mut out = act(&device, Dtype::F32, &[9.0; 8]);
        let view = out.view_mut(2, 4).columns(1..3);
        gather(&device, x.view(3, 4).columns(2..4), &index, view);
        assert_eq!(values(&device, &out), [9.0, 10.0, 11.0, 9.0, 9.0, 2.0, 3.0, 9.0]);
        let mut back = act(&device, Dtype::F32, &[5.0; 9]);
        let view = back.view_mut(3, 3).columns(0..2);
        scatter(&device, out.view(2, 4).columns(1..3), &index, view);
        assert_eq!(values(&device, &back), [2.0, 3.0, 5.0, 0.0, 0.0, 5.0, 10.0, 11.0, 5.0]);
    }

    #[test]
    #[should_panic(expected = "index 3 of 3 rows")]
    fn an_index_beyond_the_rows_is_not_written() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let x = act(&device, Dtype::F32, &[1.0; 2]);
        let mut out = device.alloc_act("out", 6).unwrap();
        scatter(&device, x.view(1, 2), &buf(&device, &[3]), out.view_mut(3, 2));
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        let index: Vec<u32> = (0..300).map(|i| i * 7 % 1000).collect();
        assert_same_for_any_thread_count(Dtype::F32, |device| {
            let x = act(device, Dtype::F32, &normal(1, 300 * 130).collect::<Vec<_>>());
            let mut spread = device.alloc_act("spread", 1000 * 130).unwrap();
            let mut packed = device.alloc_act("packed", 300 * 130).unwrap();
            let index = buf(device, &index);
            scatter(device, x.view(300, 130), &index, spread.view_mut(1000, 130));
            gather(device, spread.view(1000, 130), &index, packed.view_mut(300, 130));
            assert!(values(device, &packed) == values(device, &x), "not where they were put");
            values(device, &spread)
        });
    }
}
