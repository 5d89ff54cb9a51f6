//! The end of attention and of an MLP: a linear map, a norm in some families, the residual sum.

use crate::device::{Act, Device, Mat, MatMut};
use crate::ops::rmsnorm::{self, Norm};
use crate::ops::{Write, copy};

use super::linear::{Context, Linear};

/// A linear map at the end of a branch, and the norm of its output in families that have one.
pub struct Branch<'a> {
    /// The map.
    pub linear: &'a Linear,
    /// The norm.
    pub norm: Option<Norm<'a>>,
}

impl Branch<'_> {
    /// y [N, C] = x + this branch of h; keeps xa, and what the norm is taken of.
    pub fn add(
        &self,
        cx: &mut Context,
        h: Mat,
        (xa, out): (&mut Option<Act>, Option<MatMut>),
        x: Mat,
        mut y: MatMut,
    ) {
        let (Some(norm), Some(mut out)) = (self.norm, out) else {
            return self.linear.forward(cx, h, xa.as_mut(), Some(x), y);
        };
        self.linear.forward(cx, h, xa.as_mut(), None, out.reborrow());
        copy::copy(cx.device, x, y.reborrow());
        rmsnorm::forward(cx.device, out.view(), norm, y, Write::Add);
    }

    /// Keeps what the way back needs of [`add`](Self::add).
    pub fn keep(&self, cx: &mut Context, h: Mat, (xa, out): (&mut Option<Act>, Option<MatMut>)) {
        match (self.norm, out) {
            (Some(_), Some(out)) => self.linear.forward(cx, h, xa.as_mut(), None, out),
            _ => self.linear.low_rank(cx, h, xa.as_mut()),
        }
    }

    /// The gradient at the linear map's output: dy itself, or through the norm into `dn`.
    pub fn gradient<'a>(
        &self,
        device: &Device,
        out: Option<Mat>,
        dy: Mat<'a>,
        dn: &'a mut Act,
    ) -> Mat<'a> {
        let (Some(norm), Some(at)) = (self.norm, out) else { return dy };
        rmsnorm::backward(device, at, norm, dy, dn.view_mut(dy.rows, dy.cols), Write::Set);
        dn.view(dy.rows, dy.cols)
    }
}
