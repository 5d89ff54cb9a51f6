//! One call of `matmul`: its memory, its exact result in f64 over the same numbers, its tolerance.

use half::bf16;

use super::super::*;
use crate::device::{Act, Simd};
use crate::ops::check::normal;
use crate::ops::{Element, Real};

/// Numbers with the device's memory behind them.
pub(super) struct Matrix {
    act: Act,
    rows: usize,
    cols: usize,
    stride: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// Normal numbers as `dtype`, with three more columns in memory than in the matrix.
    pub(super) fn new(device: &Device, dtype: Dtype, rows: usize, cols: usize, seed: u64) -> Self {
        let stride = cols + 3;
        let numbers = || normal(seed, rows * stride);
        let values: Vec<f64> = numbers().map(|x| rounded(dtype, x)).collect();
        let mut act = device.alloc_dense("matrix", rows * stride, dtype).unwrap();
        match dtype {
            Dtype::Bf16 => upload::<bf16>(device, &values, &mut act),
            Dtype::F32 => upload::<f32>(device, &values, &mut act),
            Dtype::F64 => upload::<f64>(device, &values, &mut act),
        }
        Self { act, rows, cols, stride, values }
    }

    pub(super) fn view(&self) -> Mat<'_> {
        self.act.view(self.rows, self.stride).columns(0..self.cols)
    }

    pub(super) fn view_mut(&mut self) -> MatMut<'_> {
        self.act.view_mut(self.rows, self.stride).columns(0..self.cols)
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.stride + col]
    }

    /// What is in memory now, without the columns beyond the matrix, which must be as they were.
    pub(super) fn read(&self, device: &Device) -> Vec<f64> {
        let all = match self.act.dtype() {
            Dtype::Bf16 => download::<bf16>(device, &self.act),
            Dtype::F32 => download::<f32>(device, &self.act),
            Dtype::F64 => download::<f64>(device, &self.act),
        };
        let mut numbers = Vec::new();
        for (row, before) in all.chunks(self.stride).zip(self.values.chunks(self.stride)) {
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

fn upload<E: Element>(device: &Device, values: &[f64], act: &mut Act) {
    let numbers: Vec<E> = values.iter().map(|x| E::from_real(Real::from_f64(*x))).collect();
    device.upload(bytemuck::cast_slice(&numbers), act.bytes_mut());
}

fn download<E: Element>(device: &Device, act: &Act) -> Vec<f64> {
    let mut numbers = vec![E::zeroed(); act.len()];
    device.download(act.bytes(), bytemuck::cast_slice_mut(&mut numbers));
    numbers.iter().map(|x| x.real().to_f64()).collect()
}

/// A four-bit weight: random codes and scales.
struct Weight {
    kind: quant::Kind,
    rows: usize,
    cols: usize,
    codes: Buf<u8>,
    plain: Buf<f32>,
    absmax: Buf<u8>,
    nested_absmax: Buf<f32>,
    map: Buf<f32>,
    nested: bool,
    /// Codes times scales in f32.
    values: Vec<f32>,
}

const OFFSET: f32 = 0.75;

impl Weight {
    fn new(device: &Device, right: Right, rows: usize, cols: usize, seed: u64) -> Self {
        let (kind, nested) = match right {
            Right::Nf4 => (quant::Kind::Nf4, false),
            _ => (quant::Kind::Fp4, true),
        };
        let blocks = quant::blocks(rows * cols);
        let bytes = |count, seed| normal(seed, count).map(|x| (x * 64.0) as i64 as u8);
        let codes: Vec<u8> = bytes(quant::code_bytes(rows * cols), seed).collect();
        let plain: Vec<f32> = normal(seed, blocks).map(|x| (x / 4.0) as f32).collect();
        let absmax: Vec<u8> = bytes(blocks, seed + 1).collect();
        let nested_absmax: Vec<f32> =
            normal(seed + 2, quant::nested_blocks(blocks)).map(|x| x as f32).collect();
        let map = quant::SIGNED.values();
        let scale = |b: usize| match nested {
            false => plain[b],
            true => map[usize::from(absmax[b])] * nested_absmax[b / 256] + OFFSET,
        };
        let code = |i: usize| usize::from(codes[i / 2] >> (4 - i % 2 * 4)) & 15;
        let values = (0..rows * cols).map(|i| kind.values()[code(i)] * scale(i / 64));
        Self {
            kind,
            rows,
            cols,
            values: values.collect(),
            codes: uploaded(device, &codes),
            plain: uploaded(device, &plain),
            absmax: uploaded(device, &absmax),
            nested_absmax: uploaded(device, &nested_absmax),
            map: uploaded(device, map),
            nested,
        }
    }

    fn operand(&self) -> Operand<'_> {
        let nested = Scales::Nested {
            absmax: &self.absmax,
            nested_absmax: &self.nested_absmax,
            offset: OFFSET,
            map: &self.map,
        };
        Operand::FourBit(FourBit {
            kind: self.kind,
            rows: self.rows,
            cols: self.cols,
            codes: &self.codes,
            scales: if self.nested { nested } else { Scales::Plain(&self.plain) },
        })
    }
}

fn uploaded<T: bytemuck::Pod>(device: &Device, values: &[T]) -> Buf<T> {
    let mut buf = device.alloc("weight", values.len()).unwrap();
    device.upload(values, &mut buf);
    buf
}

/// What the right operand of a case is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Right {
    Dense(Dtype),
    Nf4,
    NestedFp4,
}

/// One product of a case, with memory behind it.
pub(super) struct Factors {
    pub(super) left: Matrix,
    dense: Option<Matrix>,
    weight: Option<Weight>,
}

impl Factors {
    pub(super) fn new(device: &Device, case: &Case, k: usize, seed: u64) -> Self {
        let (m, n) = (case.m, case.n);
        let (left, right) = match case.form {
            Form::Nt => ((m, k), (n, k)),
            Form::Nn => ((m, k), (k, n)),
            Form::Tn => ((k, m), (k, n)),
        };
        let dense = match case.right {
            Right::Dense(dtype) => Some(Matrix::new(device, dtype, right.0, right.1, seed + 1)),
            _ => None,
        };
        let weight = || Weight::new(device, case.right, right.0, right.1, seed + 2);
        Self {
            left: Matrix::new(device, case.left, left.0, left.1, seed),
            weight: dense.is_none().then(weight),
            dense,
        }
    }

    pub(super) fn term(&self) -> Term<'_> {
        Term {
            left: self.left.view(),
            right: match (&self.dense, &self.weight) {
                (Some(dense), _) => dense.view().into(),
                (_, weight) => weight.as_ref().unwrap().operand(),
            },
        }
    }

    /// The exact product at (i, j), its right operand rounded to `rounding` if in four bits.
    fn exact(&self, form: Form, rounding: Dtype, i: usize, j: usize) -> f64 {
        let depth = if form == Form::Tn { self.left.rows } else { self.left.cols };
        let right = |row: usize, col: usize| match (&self.dense, &self.weight) {
            (Some(dense), _) => dense.at(row, col),
            (_, weight) => {
                let weight = weight.as_ref().unwrap();
                rounded(rounding, f64::from(weight.values[row * weight.cols + col]))
            }
        };
        (0..depth)
            .map(|k| match form {
                Form::Nt => self.left.at(i, k) * right(j, k),
                Form::Nn => self.left.at(i, k) * right(k, j),
                Form::Tn => self.left.at(k, i) * right(k, j),
            })
            .sum()
    }
}

/// One call of [`matmul`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) form: Form,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// K of the second term; 0 for none.
    pub(super) k2: usize,
    pub(super) left: Dtype,
    pub(super) right: Right,
    pub(super) out: Dtype,
    /// Bias, residual and an alpha other than 1.
    pub(super) epilogue: bool,
    pub(super) write: Write,
}

pub(super) const PLAIN: Case = Case {
    form: Form::Nt,
    m: 1,
    n: 1,
    k: 1,
    k2: 0,
    left: Dtype::Bf16,
    right: Right::Dense(Dtype::Bf16),
    out: Dtype::Bf16,
    epilogue: false,
    write: Write::Set,
};

/// The memory of a case.
pub(super) struct Call {
    case: Case,
    factors: Vec<Factors>,
    out: Matrix,
    residual: Matrix,
    bias: Vec<f32>,
    bias_on_device: Buf<f32>,
}

impl Call {
    pub(super) fn new(device: &Device, case: Case) -> Self {
        let depths = [case.k, case.k2];
        let terms = if case.k2 > 0 { 2 } else { 1 };
        let bias: Vec<f32> = normal(32, case.n).map(|x| x as f32).collect();
        Self {
            case,
            factors: (0..terms)
                .map(|i| Factors::new(device, &case, depths[i], 10 * i as u64))
                .collect(),
            out: Matrix::new(device, case.out, case.m, case.n, 30),
            residual: Matrix::new(device, case.out, case.m, case.n, 31),
            bias_on_device: uploaded(device, &bias),
            bias,
        }
    }

    pub(super) fn run(&mut self, device: &Device) {
        let terms: Vec<Term> = self.factors.iter().map(Factors::term).collect();
        let epilogue = match self.case.epilogue {
            false => Epilogue::default(),
            true => Epilogue {
                alpha: ALPHA,
                bias: Some(&self.bias_on_device),
                residual: Some(self.residual.view()),
            },
        };
        let (form, write) = (self.case.form, self.case.write);
        matmul(device, form, &terms, epilogue, self.out.view_mut(), write);
        device.synchronize().unwrap();
    }

    fn exact(&self) -> Vec<f64> {
        let rounding = match self.case.compute() {
            Dtype::Bf16 => Dtype::Bf16,
            _ => Dtype::F32,
        };
        let at = |i, j| {
            let products = self.factors.iter();
            let products = products.map(|f| f.exact(self.case.form, rounding, i, j));
            let mut sum: f64 = products.sum();
            if self.case.epilogue {
                sum = sum * f64::from(ALPHA) + f64::from(self.bias[j]) + self.residual.at(i, j);
            }
            match self.case.write {
                Write::Set => sum,
                Write::Add => sum + self.out.at(i, j),
            }
        };
        let rows = 0..self.case.m;
        rows.flat_map(|i| (0..self.case.n).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
    }
}

const ALPHA: f32 = -0.37;

impl Case {
    pub(super) fn run(&self, device: &Device) -> Vec<f64> {
        let mut call = Call::new(device, *self);
        call.run(device);
        call.out.read(device)
    }

    fn compute(&self) -> Dtype {
        let right = match self.right {
            Right::Dense(dtype) => dtype,
            _ => Dtype::Bf16,
        };
        match [self.left, right] {
            [Dtype::F64, _] | [_, Dtype::F64] => Dtype::F64,
            _ if self.out == Dtype::F64 => Dtype::F64,
            [Dtype::F32, _] | [_, Dtype::F32] => Dtype::F32,
            _ => Dtype::Bf16,
        }
    }

    pub(super) fn check(&self, devices: &[(Simd, Device)]) {
        let exact = Call::new(&devices[0].1, *self).exact();
        for (simd, device) in devices {
            let got = self.run(device);
            let worst = most(got.iter().zip(&exact).map(|(a, b)| a - b));
            let allowed = self.allowed(&exact);
            assert!(
                worst <= allowed && got.iter().all(|x| x.is_finite()),
                "{self:?} on {simd:?}: error {worst:e}, allowed {allowed:e}"
            );
        }
    }

    /// f32 sums: scaled maximum 1e-5, and as many units in the last place for f64. A result in bf16
    /// may also have twice the error of rounding the exact one.
    fn allowed(&self, exact: &[f64]) -> f64 {
        let noise = match self.compute() {
            Dtype::F64 => 1e-5 * f64::EPSILON / f64::from(f32::EPSILON),
            _ => 1e-5,
        };
        let rounding = match self.out {
            Dtype::Bf16 => most(exact.iter().map(|x| rounded(self.out, *x) - x)),
            _ => 0.0,
        };
        noise * most(exact.iter().copied()) + 2.0 * rounding
    }
}

fn most(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(0.0, |most, x| most.max(x.abs()))
}
