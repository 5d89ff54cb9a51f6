//! Attention of one record, there and back.

use qlora_train::device::{Act, Buf, Device, Dtype};
use qlora_train::error::Error;
use qlora_train::ops::attention::{self, Attention, Heads, Saved, Segment};

use super::cases::{Bench, Case, Work};
use super::inputs::{activations, uploaded};

pub fn all(bench: Bench<'_>) -> Vec<Case<'_>> {
    let tokens = bench.size.tokens;
    let lengths = [tokens, tokens / 2];
    lengths
        .into_iter()
        .flat_map(|tokens| [forward(bench, tokens), backward(bench, tokens)])
        .collect()
}

/// Two products.
fn forward(bench: Bench<'_>, tokens: usize) -> Case<'_> {
    Case::new(
        bench,
        (name("forward", bench, tokens), Work::Operations(2 * product(bench, tokens))),
        move || Heard::new(bench, tokens),
        move |heard| heard.forward(bench.device),
    )
}

/// Five products.
fn backward(bench: Bench<'_>, tokens: usize) -> Case<'_> {
    Case::new(
        bench,
        (name("backward", bench, tokens), Work::Operations(5 * product(bench, tokens))),
        move || {
            let mut heard = Heard::new(bench, tokens)?;
            heard.forward(bench.device);
            Ok(heard)
        },
        move |heard| heard.backward(bench.device),
    )
}

fn name(way: &str, bench: Bench<'_>, tokens: usize) -> String {
    format!("attention {way}/{tokens}, {} heads", bench.size.heads.heads)
}

/// Operations of one product: half of all pairs are seen; each is a multiplication and an addition.
fn product(bench: Bench<'_>, tokens: usize) -> usize {
    bench.size.heads.heads * bench.size.heads.head_dim * tokens * tokens
}

/// The memory of attention over one record.
struct Heard {
    tokens: usize,
    heads: Heads,
    segments: Buf<Segment>,
    q: Act,
    k: Act,
    v: Act,
    o: Act,
    lse: Act,
    d_o: Act,
    /// dq, dk and dv.
    gradients: [Act; 3],
}

impl Heard {
    fn new(bench: Bench<'_>, tokens: usize) -> Result<Self, Error> {
        let (device, heads) = (bench.device, bench.size.heads);
        let len = tokens as u32;
        let segment = Segment { q_start: 0, q_len: len, k_start: 0, k_len: len };
        let q = tokens * heads.heads * heads.head_dim;
        let k = tokens * heads.kv_heads * heads.head_dim;
        let written = |len| device.alloc_act("bench", len);
        Ok(Self {
            tokens,
            heads,
            segments: uploaded(device, &[segment])?,
            q: activations(device, q)?,
            k: activations(device, k)?,
            v: activations(device, k)?,
            o: written(q)?,
            lse: device.alloc_dense("bench", tokens * heads.heads, Dtype::F32)?,
            d_o: activations(device, q)?,
            gradients: [written(q)?, written(k)?, written(k)?],
        })
    }

    /// Columns of q and of k.
    fn columns(&self) -> (usize, usize) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        (heads * head_dim, kv_heads * head_dim)
    }

    fn forward(&mut self, device: &Device) {
        let Self { tokens, heads, .. } = *self;
        let (q_cols, k_cols) = self.columns();
        attention::forward(
            device,
            &over(&self.segments, tokens, heads),
            self.q.view(tokens, q_cols),
            self.k.view(tokens, k_cols),
            self.v.view(tokens, k_cols),
            self.o.view_mut(tokens, q_cols),
            self.lse.view_mut(tokens, heads.heads),
        );
    }

    fn backward(&mut self, device: &Device) {
        let Self { tokens, heads, .. } = *self;
        let (q_cols, k_cols) = self.columns();
        let saved = Saved {
            q: self.q.view(tokens, q_cols),
            k: self.k.view(tokens, k_cols),
            v: self.v.view(tokens, k_cols),
            o: self.o.view(tokens, q_cols),
            lse: self.lse.view(tokens, heads.heads),
        };
        let [dq, dk, dv] = &mut self.gradients;
        attention::backward(
            device,
            &over(&self.segments, tokens, heads),
            saved,
            self.d_o.view(tokens, q_cols),
            dq.view_mut(tokens, q_cols),
            dk.view_mut(tokens, k_cols),
            dv.view_mut(tokens, k_cols),
        );
    }
}

fn over(segments: &Buf<Segment>, tokens: usize, heads: Heads) -> Attention<'_> {
    Attention {
        heads,
        scale: 1.0 / (heads.head_dim as f32).sqrt(),
        window: None,
        soft_cap: None,
        segments,
        segment_count: 1,
        longest: tokens,
    }
}
