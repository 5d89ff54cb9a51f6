//! Embedding: the rows of the table that the tokens name. The table is frozen: no gradient.

use super::copy::Source;
use super::element::{Element, Real, per_simd, with_element};
use super::slice_mut;
use super::tasks::for_each_piece;
use crate::device::{
    Address, Buf, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory, narrow,
};
use crate::error::Error;
use crate::ffi;

/// Parameters of the kernel `embedding`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    table: Address,
    tokens: Address,
    out: Address,
    vocabulary: u64,
    count: u64,
    cols: u64,
    table_stride: u64,
    out_stride: u64,
    scale: f32,
    table_dtype: Dtype,
    out_dtype: Dtype,
}

/// out [n, C] = scale · table [V, C] at the first n of `tokens`, rounded once to the element of
/// `out`. The scale is √C for Gemma, else 1.
///
/// # Panics
/// On a token that is not below V: whoever reads the data has refused it with its place.
pub fn lookup(device: &Device, table: Mat, tokens: &Buf<u32>, scale: f32, out: MatMut) {
    assert_eq!(out.cols, table.cols, "out must be as wide as the table");
    assert!(out.rows <= tokens.len(), "{} rows of {} tokens", out.rows, tokens.len());
    let kernel = Params {
        table: table.address,
        tokens: tokens.address(),
        out: out.address,
        vocabulary: table.rows as u64,
        count: out.rows as u64,
        cols: out.cols as u64,
        table_stride: table.stride as u64,
        out_stride: out.stride as u64,
        scale,
        table_dtype: table.dtype,
        out_dtype: out.dtype,
    };
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches rows of the stated widths and strides only; a task owns its piece of a row.
unsafe impl Kernel for Params {
    const NAME: &'static str = "embedding";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.table_dtype, lookup_from(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        queue.require_bf16(Self::NAME, self.table_dtype)?;
        queue.require_bf16(Self::NAME, self.out_dtype)?;
        let params = ffi::Embedding {
            table: self.table.number(),
            tokens: self.tokens.number(),
            out: self.out.number(),
            table_stride: self.table_stride,
            out_stride: self.out_stride,
            cols: narrow(self.cols),
            scale: self.scale,
        };
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(self.count as usize), &params) }
    }
}

fn lookup_from<F: Element>(p: &Params, cpu: &Cpu) {
    let table = Source::<F>::new(p.table, p.table_stride);
    with_element!(p.out_dtype, lookup_to(p, cpu, table));
}

fn lookup_to<T: Element>(p: &Params, cpu: &Cpu, table: Source<impl Element>) {
    // SAFETY: the caller of `run_on_cpu` vouches for all tokens.
    let tokens = unsafe { std::slice::from_raw_parts(p.tokens.cast::<u32>(), p.count as usize) };
    for_each_piece(cpu, tokens.len(), p.cols as usize, |row, columns| {
        let token = u64::from(tokens[row]);
        assert!(token < p.vocabulary, "token {token} of {}", p.vocabulary);
        let start = row * p.out_stride as usize + columns.start;
        // SAFETY: the caller vouches for table and out, the token is one of the table's rows, and
        // a task owns its piece of out.
        let (from, to) = unsafe {
            (
                table.piece(token as usize, columns.start, columns.len()),
                slice_mut::<T>(p.out, start, columns.len()),
            )
        };
        scaled(cpu.simd(), from, p.scale, to);
    });
}

per_simd! {
    fn scaled<T: Element>(from: &[impl Element], scale: f32, to: &mut [T]) {
        let scale = T::Real::from_f64(f64::from(scale));
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::from_real(T::Real::from_f64(from.real().to_f64()) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::normal;
    use crate::ops::host::{LENGTHS, act, assert_same_for_any_thread_count, buf, devices, values};

    #[test]
    fn rows_are_those_of_the_tokens_times_the_scale() {
        let tokens = [6, 0, 3, 3, 1];
        for (table_dtype, dtype) in [
            (Dtype::Bf16, Dtype::Bf16),
            (Dtype::Bf16, Dtype::F32),
            (Dtype::F32, Dtype::F32),
            (Dtype::F32, Dtype::F64),
        ] {
            for (device, cols) in devices(dtype).flat_map(|d| LENGTHS.map(|n| (d.clone(), n))) {
                let table = act(&device, table_dtype, &normal(1, 7 * cols).collect::<Vec<_>>());
                let ids = buf(&device, &tokens);
                let mut out = device.alloc_act("out", 4 * cols).unwrap();
                lookup(&device, table.view(7, cols), &ids, 1.5, out.view_mut(4, cols));
                let rows = values(&device, &table);
                let expected: Vec<f64> = tokens[..4]
                    .iter()
                    .flat_map(|t| &rows[*t as usize * cols..][..cols])
                    .map(|x| x * 1.5)
                    .collect();
                let expected = values(&device, &act(&device, dtype, &expected));
                assert_eq!(values(&device, &out), expected, "{table_dtype:?} {dtype:?} {cols}");
            }
        }
    }

    #[test]
    fn strides_are_followed_and_the_gap_is_left_alone() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let table = act(&device, Dtype::F32, &(0..12).map(f64::from).collect::<Vec<_>>());
        let mut out = act(&device, Dtype::F32, &[9.0; 8]);
        let view = out.view_mut(2, 4).columns(1..3);
        lookup(&device, table.view(3, 4).columns(2..4), &buf(&device, &[2, 0]), 1.0, view);
        assert_eq!(values(&device, &out), [9.0, 10.0, 11.0, 9.0, 9.0, 2.0, 3.0, 9.0]);
    }

    #[test]
    #[should_panic(expected = "token 3 of 3")]
    fn a_token_beyond_the_table_is_not_read() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let table = act(&device, Dtype::F32, &[0.0; 6]);
        let mut out = device.alloc_act("out", 2).unwrap();
        lookup(&device, table.view(3, 2), &buf(&device, &[3]), 1.0, out.view_mut(1, 2));
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        let tokens: Vec<u32> = (0..500).map(|i| i * 7 % 50).collect();
        assert_same_for_any_thread_count(Dtype::F32, |device| {
            let table = act(device, Dtype::Bf16, &normal(1, 50 * 100).collect::<Vec<_>>());
            let mut out = device.alloc_act("out", 500 * 100).unwrap();
            let tokens = buf(device, &tokens);
            lookup(device, table.view(50, 100), &tokens, 10.0, out.view_mut(500, 100));
            values(device, &out)
        });
    }
}
