//! Every form, operand, epilogue and instruction set against sums in f64 over the same numbers.

use half::bf16;

use super::*;
use crate::ops::Element;
use crate::ops::check::normal;

/// Numbers with the device's memory behind them.
struct Matrix {
    act: crate::device::Act,
    rows: usize,
    cols: usize,
    stride: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// Normal numbers as `dtype`, with three more columns in memory than in the matrix.
    fn new(device: &Device, dtype: Dtype, rows: usize, cols: usize, seed: u64) -> Self {
        let stride = cols + 3;
        let numbers = || normal(seed, rows * stride);
        let values: Vec<f64> = numbers().map(|x| rounded(dtype, x)).collect();
        let mut act = device.alloc_dense("matrix", rows * stride, dtype).unwrap();
        match dtype {
            Dtype::Bf16 => upload::<bf16>(device, &values, &mut act),
            Dtype::F32 => upload::<f32>(device, &values, &mut act),
            Dtype::F64 => upload::<f64>(device, &values, &mut act),
        }
        Self {
            act,
            rows,
            cols,
            stride,
            values,
        }
    }

    fn view(&self) -> Mat<'_> {
        self.act.view(self.rows, self.stride).columns(0..self.cols)
    }

    fn view_mut(&mut self) -> MatMut<'_> {
        self.act
            .view_mut(self.rows, self.stride)
            .columns(0..self.cols)
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.stride + col]
    }

    /// What is in memory now, without the columns beyond the matrix, which must be as they were.
    fn read(&self, device: &Device) -> Vec<f64> {
        let all = match self.act.dtype() {
            Dtype::Bf16 => download::<bf16>(device, &self.act),
            Dtype::F32 => download::<f32>(device, &self.act),
            Dtype::F64 => download::<f64>(device, &self.act),
        };
        let mut numbers = Vec::new();
        for (row, before) in all
            .chunks(self.stride)
            .zip(self.values.chunks(self.stride))
        {
            assert_eq!(row[self.cols..], before[self.cols..], "beyond the columns");
            numbers.extend_from_slice(&row[..self.cols]);
        }
        numbers
    }
}

fn rounded(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(x as f32).to_f64(),
        Dtype::F32 => f64::from(x as f32),
        Dtype::F64 => x,
    }
}

fn upload<E: Element>(device: &Device, values: &[f64], act: &mut crate::device::Act) {
    let numbers: Vec<E> = values
        .iter()
        .map(|x| E::from_real(Real::from_f64(*x)))
        .collect();
    device.upload(bytemuck::cast_slice(&numbers), act.bytes_mut());
}

fn download<E: Element>(device: &Device, act: &crate::device::Act) -> Vec<f64> {
    let mut numbers = vec![E::zeroed(); act.len()];
    device.download(act.bytes(), bytemuck::cast_slice_mut(&mut numbers));
    numbers.iter().map(|x| x.real().to_f64()).collect()
}
