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

use super::branch::Branch;
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

/// Most rows of an MLP that are computed at once.
const MLP_ROWS: usize = 4096;

/// Rows of an MLP that are computed at once, of `tokens` tokens.
pub fn mlp_rows(tokens: usize) -> usize {
    tokens.min(MLP_ROWS)
}

/// The pieces in which an MLP is computed, first to last.
fn pieces(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..tokens).step_by(MLP_ROWS).map(move |first| first..tokens.min(first + MLP_ROWS))
}

impl Block {
    /// All linear maps, in the order of what [`Saved`] keeps of their updates.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention_linears().chain(self.mlp_linears())
    }

    /// Those of attention.
    pub fn attention_linears(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.iter().map(|slot| &slot.linear).chain([&self.output])
    }

    /// Those of the MLP.
    pub fn mlp_linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate_up.iter().map(|slot| &slot.linear).chain([&self.down])
    }

    /// All linear maps, for attaching updates.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let qkv = self.qkv.iter_mut().map(|slot| &mut slot.linear);
        let gate_up = self.gate_up.iter_mut().map(|slot| &mut slot.linear);
        qkv.chain([&mut self.output]).chain(gate_up).chain([&mut self.down])
    }

    /// y [N, C] = this block of x [N, C]; `saved` receives what [`backward`](Self::backward) needs.
    /// Without y nothing else is computed. `h` is room for one piece of the MLP's [N, F]. With a
    /// `cache`, keys and values of earlier tokens are seen too, and these are added to it.
    pub fn forward(
        &self,
        cx: &mut Context,
        x: Mat,
        saved: &mut Saved,
        h: &mut Act,
        cache: Option<&mut LayerCache>,
        mut y: Option<MatMut>,
    ) {
        let n = cx.tokens.count;
        let (hidden, width) = (x.cols, self.attention.fused_columns());
        let (first, rest) = saved.low_rank.split_at_mut(self.qkv.len());
        let output_xa = &mut rest[0];

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
        let kept = (output_xa, saved.attention_out.as_mut().map(|out| out.view_mut(n, hidden)));
        self.attention_branch().add(cx, o, kept, x, x1);
        // 7. to 9. the MLP, which is made on the way back where its pieces share memory
        if y.is_some() || saved.keeps_mlp(n) {
            for piece in pieces(n) {
                let y = y.as_mut().map(|y| y.reborrow().rows(piece.clone()));
                self.forward_mlp(cx, piece, saved, h, y);
            }
        }
    }

    /// Steps 7 to 9 of the tokens `piece`.
    fn forward_mlp(
        &self,
        cx: &mut Context,
        piece: Range<usize>,
        saved: &mut Saved,
        h: &mut Act,
        y: Option<MatMut>,
    ) {
        let (n, rows) = (cx.tokens.count, piece.len());
        let (hidden, feed_forward) = (self.down.weight.rows, self.down.weight.cols);
        let place = saved.place(&piece, n);
        let (_, of_mlp) = saved.low_rank.split_at_mut(self.qkv.len() + 1);
        let (gate_up_xa, down_xa) = of_mlp.split_at_mut(self.gate_up.len());
        cx.first = piece.start;

        // 7. h₂ = norm(x₁), gate_up = h₂·[Wg | Wu]ᵀ
        let x1 = saved.x1.view(n, hidden).rows(piece);
        let mlp_norm = self.norms.of(&self.norms.mlp);
        let h2 = saved.h2.view_mut(place.end, hidden).rows(place.clone());
        rmsnorm::forward(cx.device, x1, mlp_norm, h2, Write::Set);
        let h2 = saved.h2.view(place.end, hidden).rows(place.clone());
        let gate_up = saved.gate_up.view_mut(place.end, 2 * feed_forward).rows(place.clone());
        forward_slots(cx, &self.gate_up, h2, gate_up_xa, gate_up);
        // 8. h = act(gate)·up
        let gate_up = saved.gate_up.view(place.end, 2 * feed_forward).rows(place.clone());
        glu::forward(cx.device, gate_up, self.activation, h.view_mut(rows, feed_forward));
        // 9. y = x₁ + h·Wdᵀ
        let h = h.view(rows, feed_forward);
        let out = saved.mlp_out.as_mut().map(|out| out.view_mut(place.end, hidden).rows(place));
        let kept = (&mut down_xa[0], out);
        match y {
            Some(y) => self.mlp_branch().add(cx, h, kept, x1, y),
            None => self.mlp_branch().keep(cx, h, kept),
        }
        cx.first = 0;
    }

    /// Turns `dx` from the gradient at y into the gradient at x, and adds to the gradients of the
    /// parameters. With `Reach::Params` the gradient at x is not computed. `h` is room for one piece
    /// of [N, F].
    pub fn backward(
        &self,
        cx: &mut Context,
        x: Mat,
        saved: &mut Saved,
        g: &mut Grads,
        h: &mut Act,
        dx: &mut Act,
        reach: Reach,
    ) {
        let n = cx.tokens.count;
        let (hidden, width) = (x.cols, self.attention.fused_columns());

        // 9'. to 7'. the MLP, made first where its pieces share memory
        let kept = saved.keeps_mlp(n);
        for piece in pieces(n) {
            if !kept {
                self.forward_mlp(cx, piece.clone(), saved, h, None);
            }
            self.backward_mlp(cx, piece, saved, g, h, dx);
        }
        let (first, rest) = saved.low_rank.split_at(self.qkv.len());
        let output_xa = &rest[0];
        // 6'. d_o = dx₁·Wo
        let dx1 = dx.view(n, hidden);
        let out = saved.attention_out.as_ref().map(|out| out.view(n, hidden));
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

    /// Steps 9' to 7' of the tokens `piece`.
    fn backward_mlp(
        &self,
        cx: &mut Context,
        piece: Range<usize>,
        saved: &Saved,
        g: &mut Grads,
        h: &mut Act,
        dx: &mut Act,
    ) {
        let (n, rows) = (cx.tokens.count, piece.len());
        let (hidden, feed_forward) = (self.down.weight.rows, self.down.weight.cols);
        let place = saved.place(&piece, n);
        let (_, of_mlp) = saved.low_rank.split_at(self.qkv.len() + 1);
        let (gate_up_xa, down_xa) = of_mlp.split_at(self.gate_up.len());
        cx.first = piece.start;

        // 9'. dh = dy·Wd
        let dy = dx.view(n, hidden).rows(piece.clone());
        let out = saved.mlp_out.as_ref().map(|out| out.view(place.end, hidden).rows(place.clone()));
        let dm = self.mlp_branch().gradient(cx.device, out, dy, &mut g.dn);
        let dh = (h.view_mut(rows, feed_forward), Write::Set);
        self.down.backward_to_input(cx, down_xa[0].as_ref(), dm, dh);
        // 8'. d_gate_up, and h in the place of its gradient
        let gate_up = saved.gate_up.view(place.end, 2 * feed_forward).rows(place.clone());
        let d_gate_up = g.d_gate_up.view_mut(rows, 2 * feed_forward);
        let dh = h.view_mut(rows, feed_forward);
        glu::backward(cx.device, gate_up, self.activation, dh, d_gate_up);
        self.down.gradient_of_a(cx, h.view(rows, feed_forward));
        // 7'. dn = d_gate_up·[Wg ; Wu], dx += gradient of the norm at x₁
        let h2 = saved.h2.view(place.end, hidden).rows(place);
        let d_gate_up = g.d_gate_up.view(rows, 2 * feed_forward);
        let dn = Some(g.dn.view_mut(rows, hidden));
        backward_slots(cx, &self.gate_up, h2, gate_up_xa, d_gate_up, dn);
        let x1 = saved.x1.view(n, hidden).rows(piece.clone());
        let (dn, mlp_norm) = (g.dn.view(rows, hidden), self.norms.of(&self.norms.mlp));
        let dx = dx.view_mut(n, hidden).rows(piece);
        rmsnorm::backward(cx.device, x1, mlp_norm, dn, dx, Write::Add);
        cx.first = 0;
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
