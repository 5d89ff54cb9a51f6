//! The QLoRA algebra, once: a frozen matrix and a low-rank update beside it.
//!
//! With W [out, in] frozen, A [R, in] and B [out, R] trained, and s = α/R:
//!
//! ```text
//! forward    xa = s·drop(x)·Aᵀ        y  = [x | xa]·[W | B]ᵀ (+ bias)
//! backward   dxa = s·dy·B             dB += dyᵀ·xa      dA += dxaᵀ·drop(x)
//!            dx = [dy | dxa]·[W ; A]  (with dropout: dx = dy·W + drop(dxa·A))
//! ```
//!
//! LoRA's product rides in the frozen one as extra K columns; it is no second pass over y.

use std::ops::Range;

use crate::device::{Act, Buf, Device, Mat, MatMut};
use crate::ops::Write;
use crate::ops::dropout::{Draw, dropout};
use crate::ops::gemm::{Epilogue, Form, Operand, Term, matmul};
use crate::params::{ParamId, Params};

use super::tokens::Tokens;
use super::weight::Weight;

/// A frozen linear map with an optional low-rank update.
pub struct Linear {
    /// The module's name in the model: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// W [out, in].
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Buf<f32>>,
    /// The update, where a method has attached one.
    pub lora: Option<Lora>,
}

/// Where a low-rank update lies among the parameters.
#[derive(Debug, Clone)]
pub struct Lora {
    /// A [R, in].
    pub a: ParamId,
    /// B [out, R].
    pub b: ParamId,
    /// R.
    pub rank: usize,
    /// s: α/R, or α/√R.
    pub scale: f32,
    /// Probability with which a number of x does not reach A in training.
    pub dropout: f32,
    /// Tells this update's dropout from all others'.
    pub stream: u64,
}

/// What a pass needs besides its input: the batch, the trainables, and memory to work in.
pub struct Context<'a> {
    /// Where it runs.
    pub device: &'a Device,
    /// Which tokens it runs over.
    pub tokens: &'a Tokens,
    /// The first of those that a linear map is given: not 0 in later pieces of an MLP.
    pub first: usize,
    /// The trainable numbers.
    pub params: &'a mut Params,
    /// Room for xa's gradient [N, R].
    pub dxa: &'a mut Act,
    /// What dropout needs; absent without dropout and outside training.
    pub dropout: Option<Dropout<'a>>,
}

impl Context<'_> {
    /// The rows of what a linear map keeps that belong to its `rows` inputs.
    fn rows(&self, rows: usize) -> Range<usize> {
        self.first..self.first + rows
    }
}

/// Memory and random numbers for dropout.
pub struct Dropout<'a> {
    /// Room for a dropped-out input or its gradient [N, in].
    pub room: &'a mut Act,
    /// Seed, and the first stream of this pass; [`Lora::stream`] is added.
    pub draw: Draw,
}

impl Linear {
    /// y [N, out] = x·Wᵀ + bias + s·drop(x)·Aᵀ·Bᵀ + residual; keeps xa [N, R] for the way back.
    pub fn forward(
        &self,
        cx: &mut Context,
        x: Mat,
        xa: Option<&mut Act>,
        residual: Option<Mat>,
        y: MatMut,
    ) {
        let epilogue = Epilogue { bias: self.bias.as_ref(), residual, ..Epilogue::default() };
        let base = Term { left: x, right: self.weight.operand() };
        let (Some(lora), Some(xa)) = (&self.lora, xa) else {
            return matmul(cx.device, Form::Nt, &[base], epilogue, y, Write::Set);
        };
        self.low_rank(cx, x, Some(xa));
        let (up, rows) = (Operand::Dense(cx.params.operand(lora.b)), cx.rows(x.rows));
        let up = Term { left: xa.view(rows.end, lora.rank).rows(rows), right: up };
        matmul(cx.device, Form::Nt, &[base, up], epilogue, y, Write::Set);
    }

    /// xa [N, R] = s·drop(x)·Aᵀ alone, where there is an update.
    pub fn low_rank(&self, cx: &mut Context, x: Mat, xa: Option<&mut Act>) {
        let (Some(lora), Some(xa)) = (&self.lora, xa) else { return };
        let a = Operand::Dense(cx.params.operand(lora.a));
        let rows = cx.rows(x.rows);
        let down = Term { left: dropped(cx.device, &mut cx.dropout, cx.first, lora, x), right: a };
        let scaled = Epilogue { alpha: lora.scale, ..Epilogue::default() };
        let out = xa.view_mut(rows.end, lora.rank).rows(rows);
        matmul(cx.device, Form::Nt, &[down], scaled, out, Write::Set);
    }

    /// Adds to the gradients of A and B, and writes or adds dx [N, in] where it is asked for.
    pub fn backward(
        &self,
        cx: &mut Context,
        x: Mat,
        xa: Option<&Act>,
        dy: Mat,
        dx: Option<(MatMut, Write)>,
    ) {
        match dx {
            Some(dx) => self.backward_to_input(cx, xa, dy, dx),
            None => self.gradient_of_b(cx, xa, dy),
        }
        self.gradient_of_a(cx, x);
    }

    /// The part of [`backward`](Self::backward) that needs no x: adds to the gradient of B, and
    /// writes or adds dx [N, in]. [`gradient_of_a`](Self::gradient_of_a) is the rest of it and comes
    /// before the way back of any other map.
    pub fn backward_to_input(
        &self,
        cx: &mut Context,
        xa: Option<&Act>,
        dy: Mat,
        (dx, write): (MatMut, Write),
    ) {
        self.gradient_of_b(cx, xa, dy);
        let base = Term { left: dy, right: self.weight.operand() };
        let Some(lora) = &self.lora else {
            return matmul(cx.device, Form::Nn, &[base], Epilogue::default(), dx, write);
        };
        let dxa = cx.dxa.view(dy.rows, lora.rank);
        let low_rank = Term { left: dxa, right: Operand::Dense(cx.params.operand(lora.a)) };
        let first = cx.first;
        let Some(Dropout { room, draw }) = cx.dropout.as_mut().filter(|_| lora.dropout > 0.0)
        else {
            return matmul(cx.device, Form::Nn, &[base, low_rank], Epilogue::default(), dx, write);
        };
        let (rows, cols) = (dx.rows, dx.cols);
        let undropped = room.view_mut(rows, cols);
        matmul(cx.device, Form::Nn, &[low_rank], Epilogue::default(), undropped, Write::Set);
        let mut dx = dx;
        matmul(cx.device, Form::Nn, &[base], Epilogue::default(), dx.reborrow(), write);
        let draw = stream_of(*draw, lora, first);
        dropout(cx.device, room.view(rows, cols), draw, lora.dropout, dx, Write::Add);
    }

    /// dB += dyᵀ·xa and dxa = s·dy·B, where there is an update.
    fn gradient_of_b(&self, cx: &mut Context, xa: Option<&Act>, dy: Mat) {
        let Some(lora) = &self.lora else { return };
        let xa = xa.expect("a linear map with LoRA has kept xa");
        let rows = cx.rows(dy.rows);
        let xa = xa.view(rows.end, lora.rank).rows(rows);
        let db = Term { left: dy, right: Operand::Dense(xa) };
        let out = cx.params.grad_mut(lora.b);
        matmul(cx.device, Form::Tn, &[db], Epilogue::default(), out, Write::Add);
        let b = Operand::Dense(cx.params.operand(lora.b));
        let scaled = Epilogue { alpha: lora.scale, ..Epilogue::default() };
        let dxa = cx.dxa.view_mut(dy.rows, lora.rank);
        matmul(cx.device, Form::Nn, &[Term { left: dy, right: b }], scaled, dxa, Write::Set);
    }

    /// dA += dxaᵀ·drop(x), where there is an update.
    pub fn gradient_of_a(&self, cx: &mut Context, x: Mat) {
        let Some(lora) = &self.lora else { return };
        let input = Operand::Dense(dropped(cx.device, &mut cx.dropout, cx.first, lora, x));
        let da = Term { left: cx.dxa.view(x.rows, lora.rank), right: input };
        let out = cx.params.grad_mut(lora.a);
        matmul(cx.device, Form::Tn, &[da], Epilogue::default(), out, Write::Add);
    }
}

/// drop(x): x itself without dropout. The same pass draws the same numbers again on the way back.
fn dropped<'m>(
    device: &Device,
    state: &'m mut Option<Dropout>,
    first: usize,
    lora: &Lora,
    x: Mat<'m>,
) -> Mat<'m> {
    let Some(Dropout { room, draw }) = state.as_mut().filter(|_| lora.dropout > 0.0) else {
        return x;
    };
    let out = room.view_mut(x.rows, x.cols);
    dropout(device, x, stream_of(*draw, lora, first), lora.dropout, out, Write::Set);
    room.view(x.rows, x.cols)
}

/// The numbers of the update `lora` from token `first` on: each piece of the tokens has its own.
fn stream_of(draw: Draw, lora: &Lora, first: usize) -> Draw {
    let seed = draw.seed.wrapping_add((first as u64) << 32);
    Draw { seed, stream: draw.stream + lora.stream }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::device::Dtype;
    use crate::model::config::Config;
    use crate::model::tokens::Limits;
    use crate::model::weight::BlockScales;
    use crate::ops::check::{download, gradient_error, normal, scaled_error, upload};
    use crate::params::Index;
    use crate::quant::{self, Kind};
    use crate::tolerance;

    const N: usize = 5;
    const IN: usize = 64;
    const OUT: usize = 24;
    const RANK: usize = 3;

    /// A map with an update, in f64, and what its passes need.
    struct Bench {
        device: Device,
        linear: Linear,
        params: Params,
        tokens: Tokens,
        dxa: Act,
        dropped: Act,
    }

    impl Bench {
        /// Of a dense weight, or of one in four bits; with dropout or without.
        fn new(four_bit: bool, dropout: f32) -> Self {
            let device = Device::cpu(1, Dtype::F64, u64::MAX);
            let mut index = Index::default();
            let (a, b) = (index.push("a".into(), [RANK, IN]), index.push("b".into(), [OUT, RANK]));
            let lora = Lora { a, b, rank: RANK, scale: 0.75, dropout, stream: 3 };
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen2");
            let config = Config::read(&folder.join("config.json")).unwrap();
            let limits = Limits { tokens: N, sequences: 1, targets: 1 };
            Self {
                linear: Linear {
                    name: "test".into(),
                    weight: weight(&device, four_bit),
                    bias: None,
                    lora: Some(lora),
                },
                params: Params::new(&device, index).unwrap(),
                tokens: Tokens::new(&device, &config, limits).unwrap(),
                dxa: device.alloc_act("test", N * RANK).unwrap(),
                dropped: device.alloc_act("test", N * IN).unwrap(),
                device,
            }
        }

        fn set(&mut self, values: &[f64]) {
            let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
            self.device.upload(&values, &mut self.params.values);
            self.params.refresh(&self.device);
        }

        /// y for x, and the gradients at x and at A and B for dy.
        fn run(&mut self, x: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
            let Self { device, linear, params, tokens, dxa, dropped } = self;
            device.zero(&mut params.grads);
            let dropout = Some(Dropout { room: dropped, draw: Draw { seed: 1, stream: 2 } });
            let mut cx = Context { device, tokens, first: 0, params, dxa, dropout };
            let (x, dy) = (upload(device, x, Dtype::F64), upload(device, dy, Dtype::F64));
            let act = |len| device.alloc_act("test", len).unwrap();
            let (mut xa, mut y, mut dx) = (act(N * RANK), act(N * OUT), act(N * IN));
            let (x, y_view) = (x.view(N, IN), y.view_mut(N, OUT));
            linear.forward(&mut cx, x, Some(&mut xa), None, y_view);
            let dx_view = Some((dx.view_mut(N, IN), Write::Set));
            linear.backward(&mut cx, x, Some(&xa), dy.view(N, OUT), dx_view);
            let mut grads = vec![0.0_f32; cx.params.index().len()];
            device.download(&cx.params.grads, &mut grads);
            let grads = grads.iter().map(|x| f64::from(*x)).collect();
            [download(device, &y), download(device, &dx), grads]
        }
    }

    fn weight(device: &Device, four_bit: bool) -> Weight {
        let numbers: Vec<f32> = normal(5, OUT * IN).map(|x| x as f32).collect();
        if !four_bit {
            let mut values = device.alloc_dense("test", OUT * IN, Dtype::F32).unwrap();
            device.upload(bytemuck::cast_slice(&numbers), values.bytes_mut());
            return Weight::dense(OUT, IN, values);
        }
        let mut codes = vec![0; quant::code_bytes(OUT * IN)];
        let mut scales = vec![0.0; quant::blocks(OUT * IN)];
        quant::encode(Kind::Nf4, &numbers, &mut codes, &mut scales);
        let mut on_device = device.alloc("test", codes.len()).unwrap();
        device.upload(&codes, &mut on_device);
        let mut plain = device.alloc("test", scales.len()).unwrap();
        device.upload(&scales, &mut plain);
        Weight::four_bit([OUT, IN], Kind::Nf4, on_device, BlockScales::Plain(plain))
    }

    /// Small multiples of 1/64, which f32 holds exactly with a step added.
    fn values() -> Vec<f64> {
        normal(9, RANK * (IN + OUT)).map(|x| (x * 16.0).round() / 64.0).collect()
    }

    #[test]
    fn gradients_equal_finite_differences_in_f64() {
        for (four_bit, dropout) in [(false, 0.0), (true, 0.0), (false, 0.3), (true, 0.3)] {
            let bench = Mutex::new(Bench::new(four_bit, dropout));
            let run = |x: &[f64], dy: &[f64]| bench.lock().unwrap().run(x, dy);
            let (x, none) = (normal(1, N * IN).collect::<Vec<_>>(), vec![0.0; N * OUT]);
            bench.lock().unwrap().set(&values());
            let of_x =
                gradient_error(&x, |x| run(x, &none)[0].clone(), |x, dy| run(x, dy)[1].clone());
            assert!(of_x < tolerance::FINITE_DIFFERENCES, "dx: {of_x:e}");
            // In A and in B the sum is linear: any step is exact.
            const STEP: f64 = 1.0 / 64.0;
            let dy: Vec<f64> = normal(2, N * OUT).collect();
            let [_, _, analytic] = run(&x, &dy);
            let sum = |values: &[f64]| -> f64 {
                bench.lock().unwrap().set(values);
                run(&x, &none)[0].iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            let numeric: Vec<f64> = (0..analytic.len())
                .map(|i| {
                    let mut moved = values();
                    moved[i] += STEP;
                    let above = sum(&moved);
                    moved[i] -= 2.0 * STEP;
                    (above - sum(&moved)) / (2.0 * STEP)
                })
                .collect();
            let error = scaled_error(&analytic, &numeric);
            assert!(error < tolerance::FINITE_DIFFERENCES, "dA, dB: {error:e}, dropout {dropout}");
        }
    }
}
