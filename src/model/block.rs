//! One transformer block, forward in nine steps and backward in the same nine, read upwards.
//!
//! Forward runs once more before backward where a block keeps its input only; it then stops where
//! nothing is needed any more. h is not kept at all: the way back makes it again beside its gradient.
//!
//! Shapes: x [N, C] enters; h₁ [N, C]; qkv [N, (H+2K)·D]; o [N, H·D]; x₁ [N, C]; h₂ [N, C];
//! gate_up [N, 2F]; h [N, F]; y [N, C] leaves. Gradients are `d` + name; `dx` [N, C] is the gradient
//! of the residual stream and is changed in place from dy to dx.
//!
//! Which steps a family has (q and k norms, norms after attention and MLP, fused projections,
//! windows) is in the fields of [`Block`], never in its name.

use std::ops::Range;

use crate::device::{Act, Buf, Device, Mat, MatMut};
use crate::ops::attention::{self, Attention, Heads};
use crate::ops::glu::{self, Activation};
use crate::ops::rmsnorm::{self, Center, Norm};
use crate::ops::rope::{self, Direction};
use crate::ops::{Write, copy};

use super::cache::LayerCache;
use super::linear::{Context, Linear};
use super::saved::{Grads, Saved};
use super::tokens::Tokens;

/// A linear map and the columns of a fused buffer that it fills.
pub struct Slot {
    /// The map.
    pub linear: Linear,
    /// Columns of its output.
    pub columns: Range<usize>,
}

/// Weights of the norms of a block, `[C]` or `[D]` numbers each.
pub struct Norms {
    /// Before attention.
    pub input: Buf<f32>,
    /// On each head's q and k (Qwen3, Gemma 3).
    pub query_key: Option<(Buf<f32>, Buf<f32>)>,
    /// On attention's and on the MLP's output, before the residual sum (Gemma 2 and 3).
    pub outputs: Option<(Buf<f32>, Buf<f32>)>,
    /// Before the MLP.
    pub mlp: Buf<f32>,
    /// ε of all of them.
    pub eps: f32,
    /// What the weights stand for.
    pub center: Center,
}

impl Norms {
    fn of<'a>(&self, weight: &'a Buf<f32>) -> Norm<'a> {
        Norm { weight, eps: self.eps, center: self.center }
    }
}

/// Constants of a block's attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// H, K and D.
    pub heads: Heads,
    /// Factor of q·k.
    pub scale: f32,
    /// Soft cap of the scores.
    pub soft_cap: Option<f32>,
    /// How far back a query sees.
    pub window: Option<usize>,
    /// Which of the model's rotary tables it uses.
    pub rope: usize,
}

impl AttentionShape {
    pub(super) fn query_columns(&self) -> Range<usize> {
        0..self.heads.heads * self.heads.head_dim
    }

    fn key_columns(&self) -> Range<usize> {
        let start = self.query_columns().end;
        start..start + self.heads.kv_heads * self.heads.head_dim
    }

    pub(super) fn value_columns(&self) -> Range<usize> {
        let keys = self.key_columns();
        keys.end..keys.end + keys.len()
    }

    /// Columns of the fused buffer: (H + 2K)·D.
    pub fn fused_columns(&self) -> usize {
        self.value_columns().end
    }
}

/// One block with its weights.
pub struct Block {
    /// Attention's constants.
    pub attention: AttentionShape,
    /// The nonlinearity of the MLP.
    pub activation: Activation,
    /// Weights of the norms.
    pub norms: Norms,
    /// q, k and v: three maps, or one fused one.
    pub qkv: Vec<Slot>,
    /// Attention's output map.
    pub output: Linear,
    /// gate and up: two maps, or one fused one.
    pub gate_up: Vec<Slot>,
    /// The MLP's output map.
    pub down: Linear,
}

impl Block {
    /// All linear maps, in the order of what [`Saved`] keeps of their updates.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (qkv, gate_up) = (self.qkv.iter(), self.gate_up.iter());
        let (qkv, gate_up) = (qkv.map(|slot| &slot.linear), gate_up.map(|slot| &slot.linear));
        qkv.chain([&self.output]).chain(gate_up).chain([&self.down])
    }

    /// All linear maps, for attaching updates.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let qkv = self.qkv.iter_mut().map(|slot| &mut slot.linear);
        let gate_up = self.gate_up.iter_mut().map(|slot| &mut slot.linear);
        qkv.chain([&mut self.output]).chain(gate_up).chain([&mut self.down])
    }

    /// y [N, C] = this block of x [N, C]; `saved` receives what [`backward`](Self::backward) needs.
    /// Without y nothing else is computed. `h` is room for the MLP's [N, F]. With a `cache`, keys and
    /// values of earlier tokens are seen too, and these are added to it.
    pub fn forward(
        &self,
        cx: &mut Context,
        x: Mat,
        saved: &mut Saved,
        h: &mut Act,
        cache: Option<&mut LayerCache>,
        y: Option<MatMut>,
    ) {
        let n = cx.tokens.count;
        let (hidden, width) = (x.cols, self.attention.fused_columns());
        let feed_forward = self.down.weight.cols;
        let (first, rest) = saved.low_rank.split_at_mut(self.qkv.len());
        let (output_xa, rest) = rest.split_first_mut().expect("an entry for each linear map");
        let (gate_up_xa, down_xa) = rest.split_at_mut(self.gate_up.len());

        // 1. h₁ = norm(x)
        let input_norm = self.norms.of(&self.norms.input);
        rmsnorm::forward(cx.device, x, input_norm, saved.h1.view_mut(n, hidden), Write::Set);
        // 2. qkv = h₁·[Wq | Wk | Wv]ᵀ
        let h1 = saved.h1.view(n, hidden);
        forward_slots(cx, &self.qkv, h1, first, saved.qkv.view_mut(n, width));
        // 3. q, k = norm of each head
        self.normalize_heads(cx.device, n, saved.qk.as_mut(), &mut saved.qkv);
        // 4. q, k rotated by position
        self.rotate(cx.device, cx.tokens, &mut saved.qkv, Direction::Forward);
        // 5. o = softmax(q·kᵀ)·v
        self.attend(
            cx.device,
            cx.tokens,
            saved.qkv.view(n, width),
            cache,
            &mut saved.lse,
            &mut saved.o,
        );
        // 6. x₁ = x + o·Woᵀ
        let o = saved.o.view(n, self.output.weight.cols);
        let x1 = saved.x1.view_mut(n, hidden);
        let kept = (output_xa, saved.attention_out.as_mut());
        self.attention_branch().add(cx, o, kept, x, x1);
        // 7. h₂ = norm(x₁), gate_up = h₂·[Wg | Wu]ᵀ
        let x1 = saved.x1.view(n, hidden);
        let mlp_norm = self.norms.of(&self.norms.mlp);
        rmsnorm::forward(cx.device, x1, mlp_norm, saved.h2.view_mut(n, hidden), Write::Set);
        let h2 = saved.h2.view(n, hidden);
        let gate_up = saved.gate_up.view_mut(n, 2 * feed_forward);
        forward_slots(cx, &self.gate_up, h2, gate_up_xa, gate_up);
        // 8. h = act(gate)·up
        let gate_up = saved.gate_up.view(n, 2 * feed_forward);
        glu::forward(cx.device, gate_up, self.activation, h.view_mut(n, feed_forward));
        // 9. y = x₁ + h·Wdᵀ
        let h = h.view(n, feed_forward);
        let kept = (&mut down_xa[0], saved.mlp_out.as_mut());
        match y {
            Some(y) => self.mlp_branch().add(cx, h, kept, x1, y),
            None => self.mlp_branch().keep(cx, h, kept),
        }
    }

    /// Turns `dx` from the gradient at y into the gradient at x, and adds to the gradients of the
    /// parameters. With `Reach::Params` the gradient at x is not computed. `h` is room for [N, F].
    pub fn backward(
        &self,
        cx: &mut Context,
        x: Mat,
        saved: &Saved,
        g: &mut Grads,
        h: &mut Act,
        dx: &mut Act,
        reach: Reach,
    ) {
        let n = cx.tokens.count;
        let (hidden, width) = (x.cols, self.attention.fused_columns());
        let feed_forward = self.down.weight.cols;
        let (first, rest) = saved.low_rank.split_at(self.qkv.len());
        let (output_xa, rest) = rest.split_first().expect("an entry for each linear map");
        let (gate_up_xa, down_xa) = rest.split_at(self.gate_up.len());

        // 9'. dh = dy·Wd
        let dy = dx.view(n, hidden);
        let dm = self.mlp_branch().gradient(cx.device, saved.mlp_out.as_ref(), dy, &mut g.dn);
        let dh = (h.view_mut(n, feed_forward), Write::Set);
        self.down.backward_to_input(cx, down_xa[0].as_ref(), dm, dh);
        // 8'. d_gate_up, and h in the place of its gradient
        let gate_up = saved.gate_up.view(n, 2 * feed_forward);
        let d_gate_up = g.d_gate_up.view_mut(n, 2 * feed_forward);
        let dh = h.view_mut(n, feed_forward);
        glu::backward(cx.device, gate_up, self.activation, dh, d_gate_up);
        self.down.gradient_of_a(cx, h.view(n, feed_forward));
        // 7'. dn = d_gate_up·[Wg ; Wu], dx += gradient of the norm at x₁
        let (h2, d_gate_up) = (saved.h2.view(n, hidden), g.d_gate_up.view(n, 2 * feed_forward));
        let dn = Some(g.dn.view_mut(n, hidden));
        backward_slots(cx, &self.gate_up, h2, gate_up_xa, d_gate_up, dn);
        let (x1, mlp_norm) = (saved.x1.view(n, hidden), self.norms.of(&self.norms.mlp));
        let dn = g.dn.view(n, hidden);
        rmsnorm::backward(cx.device, x1, mlp_norm, dn, dx.view_mut(n, hidden), Write::Add);
        // 6'. d_o = dx₁·Wo
        let (dx1, out) = (dx.view(n, hidden), saved.attention_out.as_ref());
        let da = self.attention_branch().gradient(cx.device, out, dx1, &mut g.dn);
        let o = saved.o.view(n, self.output.weight.cols);
        let d_o = (g.d_o.view_mut(n, o.cols), Write::Set);
        self.output.backward(cx, o, output_xa.as_ref(), da, Some(d_o));
        // 5'. dqkv
        self.attention_gradient(cx.device, cx.tokens, saved, g);
        // 4'. dq, dk rotated back
        self.rotate(cx.device, cx.tokens, &mut g.dqkv, Direction::Backward);
        // 3'. dq, dk through the norms of the heads
        self.head_norm_gradient(cx.device, n, saved.qk.as_ref(), &mut g.dqkv);
        // 2'. dn = dqkv·[Wq ; Wk ; Wv]
        let (h1, dqkv) = (saved.h1.view(n, hidden), g.dqkv.view(n, width));
        let dn = (reach == Reach::Input).then(|| g.dn.view_mut(n, hidden));
        backward_slots(cx, &self.qkv, h1, first, dqkv, dn);
        // 1'. dx += gradient of the norm at x
        if reach == Reach::Input {
            let (dn, norm) = (g.dn.view(n, hidden), self.norms.of(&self.norms.input));
            rmsnorm::backward(cx.device, x, norm, dn, dx.view_mut(n, hidden), Write::Add);
        }
    }

    fn attention_branch(&self) -> Branch<'_> {
        let norm = self.norms.outputs.as_ref().map(|(attention, _)| self.norms.of(attention));
        Branch { linear: &self.output, norm }
    }

    fn mlp_branch(&self) -> Branch<'_> {
        let norm = self.norms.outputs.as_ref().map(|(_, mlp)| self.norms.of(mlp));
        Branch { linear: &self.down, norm }
    }

    fn normalize_heads(&self, device: &Device, n: usize, qk: Option<&mut Act>, qkv: &mut Act) {
        let (Some((q_norm, k_norm)), Some(qk)) = (&self.norms.query_key, qk) else { return };
        let (a, width) = (&self.attention, self.attention.fused_columns());
        let raw = a.value_columns().start;
        copy::copy(device, qkv.view(n, width).columns(0..raw), qk.view_mut(n, raw));
        for (norm, columns) in [(q_norm, a.query_columns()), (k_norm, a.key_columns())] {
            let from = qk.view(n, raw).columns(columns.clone());
            let to = qkv.view_mut(n, width).columns(columns);
            rmsnorm::forward(device, from, self.norms.of(norm), to, Write::Set);
        }
    }

    fn head_norm_gradient(&self, device: &Device, n: usize, qk: Option<&Act>, dqkv: &mut Act) {
        let (Some((q_norm, k_norm)), Some(qk)) = (&self.norms.query_key, qk) else { return };
        let (a, width) = (&self.attention, self.attention.fused_columns());
        for (norm, columns) in [(q_norm, a.query_columns()), (k_norm, a.key_columns())] {
            let at = qk.view(n, a.value_columns().start).columns(columns.clone());
            let dy = dqkv.view_mut(n, width).columns(columns);
            rmsnorm::backward_in_place(device, at, self.norms.of(norm), dy);
        }
    }

    fn rotate(&self, device: &Device, tokens: &Tokens, qkv: &mut Act, direction: Direction) {
        let (n, table) = (tokens.count, &tokens.ropes[self.attention.rope]);
        let rotated = 0..self.attention.value_columns().start;
        let x = qkv.view_mut(n, self.attention.fused_columns()).columns(rotated);
        let values = table.values.matrix(0..n * table.width, table.width);
        rope::rotate(device, x, self.attention.heads.head_dim, values, direction);
    }

    fn attend(
        &self,
        device: &Device,
        tokens: &Tokens,
        qkv: Mat,
        cache: Option<&mut LayerCache>,
        lse: &mut Act,
        o: &mut Act,
    ) {
        let a = &self.attention;
        let (q, key_value) = (qkv.columns(a.query_columns()), a.key_columns().start);
        let new = qkv.columns(key_value..a.fused_columns());
        let key_value = match cache {
            None => new,
            Some(cache) => cache.extend(device, new),
        };
        let (k, v) =
            (key_value.columns(0..new.cols / 2), key_value.columns(new.cols / 2..new.cols));
        let o = o.view_mut(q.rows, q.cols);
        attention::forward(
            device,
            &a.over(tokens),
            q,
            k,
            v,
            o,
            lse.view_mut(q.rows, a.heads.heads),
        );
    }

    fn attention_gradient(&self, device: &Device, tokens: &Tokens, saved: &Saved, g: &mut Grads) {
        let (a, n) = (&self.attention, tokens.count);
        let (qkv, o_width) = (saved.qkv.view(n, a.fused_columns()), a.query_columns().len());
        let at = attention::Saved {
            q: qkv.columns(a.query_columns()),
            k: qkv.columns(a.key_columns()),
            v: qkv.columns(a.value_columns()),
            o: saved.o.view(n, o_width),
            lse: saved.lse.view(n, a.heads.heads),
        };
        let dqkv = g.dqkv.view_mut(n, a.fused_columns());
        let (dq, dkv) = dqkv.split_columns(o_width);
        let (dk, dv) = dkv.split_columns(a.key_columns().len());
        attention::backward(device, &a.over(tokens), at, g.d_o.view(n, o_width), dq, dk, dv);
    }
}

impl AttentionShape {
    fn over<'a>(&self, tokens: &'a Tokens) -> Attention<'a> {
        Attention {
            heads: self.heads,
            scale: self.scale,
            window: self.window,
            soft_cap: self.soft_cap,
            segments: &tokens.segments,
            segment_count: tokens.sequences,
            longest: tokens.longest,
        }
    }
}

/// How far a block's backward pass goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// To the gradient at the block's input.
    Input,
    /// To the gradients of the block's parameters only: nothing below is trained.
    Params,
}

fn forward_slots(
    cx: &mut Context,
    slots: &[Slot],
    x: Mat,
    low_rank: &mut [Option<Act>],
    mut y: MatMut,
) {
    for (slot, xa) in slots.iter().zip(low_rank) {
        let y = y.reborrow().columns(slot.columns.clone());
        slot.linear.forward(cx, x, xa.as_mut(), None, y);
    }
}

fn backward_slots(
    cx: &mut Context,
    slots: &[Slot],
    x: Mat,
    low_rank: &[Option<Act>],
    dy: Mat,
    mut dx: Option<MatMut>,
) {
    let mut write = Write::Set;
    for (slot, xa) in slots.iter().zip(low_rank) {
        let dx = dx.as_mut().map(|dx| (dx.reborrow(), write));
        slot.linear.backward(cx, x, xa.as_ref(), dy.columns(slot.columns.clone()), dx);
        write = Write::Add;
    }
}

/// A linear map at the end of a branch, and the norm of its output in families that have one.
struct Branch<'a> {
    linear: &'a Linear,
    norm: Option<Norm<'a>>,
}

impl Branch<'_> {
    /// y [N, C] = x + this branch of h; keeps xa, and what the norm is taken of.
    fn add(
        &self,
        cx: &mut Context,
        h: Mat,
        (xa, out): (&mut Option<Act>, Option<&mut Act>),
        x: Mat,
        mut y: MatMut,
    ) {
        let (Some(norm), Some(out)) = (self.norm, out) else {
            return self.linear.forward(cx, h, xa.as_mut(), Some(x), y);
        };
        self.linear.forward(cx, h, xa.as_mut(), None, out.view_mut(x.rows, x.cols));
        copy::copy(cx.device, x, y.reborrow());
        rmsnorm::forward(cx.device, out.view(x.rows, x.cols), norm, y, Write::Add);
    }

    /// Keeps what the way back needs of [`add`](Self::add).
    fn keep(&self, cx: &mut Context, h: Mat, (xa, out): (&mut Option<Act>, Option<&mut Act>)) {
        match (self.norm, out) {
            (Some(_), Some(out)) => {
                let out = out.view_mut(h.rows, self.linear.weight.rows);
                self.linear.forward(cx, h, xa.as_mut(), None, out);
            }
            _ => self.linear.low_rank(cx, h, xa.as_mut()),
        }
    }

    /// The gradient at the linear map's output: dy itself, or through the norm into `dn`.
    fn gradient<'a>(
        &self,
        device: &Device,
        out: Option<&Act>,
        dy: Mat<'a>,
        dn: &'a mut Act,
    ) -> Mat<'a> {
        let (Some(norm), Some(out)) = (self.norm, out) else { return dy };
        let at = out.view(dy.rows, dy.cols);
        rmsnorm::backward(device, at, norm, dy, dn.view_mut(dy.rows, dy.cols), Write::Set);
        dn.view(dy.rows, dy.cols)
    }
}
