//! Attention forward and backward of one sequence, of several packed ones, and within a window.

use qlora_train::device::{Act, Buf, Device, Dtype, Mat, MatMut};
use qlora_train::ops::attention::{Attention, Heads, Saved, Segment, backward, forward, lse_dtype};

use crate::measure::{Measured, Work, numbers, uploaded};
use crate::support::shapes::{QWEN, SMALL, Shape, TINYLLAMA};

pub fn all(device: &Device, measured: &mut Measured) {
    for shape in [SMALL, QWEN, TINYLLAMA] {
        for lengths in [vec![512], vec![2048]] {
            for dtype in [Dtype::Bf16, Dtype::F32] {
                both(
                    device,
                    measured,
                    &Case { shape, lengths: lengths.clone(), window: None, dtype },
                );
            }
        }
    }
    let (shape, dtype) = (QWEN, Dtype::Bf16);
    both(device, measured, &Case { shape, lengths: vec![128; 16], window: None, dtype });
    both(device, measured, &Case { shape, lengths: vec![2048], window: Some(512), dtype });
}

/// What is attended to.
struct Case {
    shape: Shape,
    /// Of the records, packed behind each other.
    lengths: Vec<usize>,
    window: Option<usize>,
    dtype: Dtype,
}

fn both(device: &Device, measured: &mut Measured, case: &Case) {
    for (way, products) in [("forward", 2), ("backward", 5)] {
        let work = Work::Operations(2 * products * case.pairs() * case.shape.hidden, case.dtype);
        measured.run(&format!("{} {way}", case.name()), work, || {
            let mut memory = Memory::new(device, case);
            memory.forward(device, case);
            move || match way {
                "forward" => memory.forward(device, case),
                _ => memory.backward(device, case),
            }
        });
    }
}

impl Case {
    fn name(&self) -> String {
        let Self { shape, lengths, window, dtype } = self;
        let records = if lengths.len() > 1 { format!("{}x", lengths.len()) } else { String::new() };
        let window = window.map_or(String::new(), |window| format!(" window {window}"));
        format!("{}/{records}{}{window} {dtype:?}", shape.name, lengths[0])
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Pairs of a query and a key that it sees.
    fn pairs(&self) -> usize {
        let seen = |query: usize| (query + 1).min(self.window.unwrap_or(usize::MAX));
        self.lengths.iter().map(|&length| (0..length).map(seen).sum::<usize>()).sum()
    }
}

/// Everything that attention reads and writes.
struct Memory {
    segments: Buf<Segment>,
    q: Act,
    k: Act,
    v: Act,
    o: Act,
    lse: Act,
    d_o: Act,
    dq: Act,
    dk: Act,
    dv: Act,
}

impl Memory {
    fn new(device: &Device, case: &Case) -> Self {
        let mut start = 0;
        let mut segment = |&length: &usize| {
            let (begun, length) = (start, length as u32);
            start += length;
            Segment { q_start: begun, q_len: length, k_start: begun, k_len: length }
        };
        let segments: Vec<_> = case.lengths.iter().map(&mut segment).collect();
        let rows = |cols: usize| numbers(device, case.dtype, case.tokens() * cols);
        let (wide, narrow) = (case.shape.hidden, case.shape.kv_heads * case.shape.head_dim());
        Self {
            segments: uploaded(device, &segments),
            q: rows(wide),
            k: rows(narrow),
            v: rows(narrow),
            o: rows(wide),
            lse: numbers(device, lse_dtype(case.dtype), case.tokens() * case.shape.heads),
            d_o: rows(wide),
            dq: rows(wide),
            dk: rows(narrow),
            dv: rows(narrow),
        }
    }

    fn forward(&mut self, device: &Device, case: &Case) {
        let attention = attention(case, &self.segments);
        let (q, k, v) = (view(&self.q, case), view(&self.k, case), view(&self.v, case));
        let (o, lse) = (view_mut(&mut self.o, case), view_mut(&mut self.lse, case));
        forward(device, &attention, q, k, v, o, lse);
    }

    fn backward(&mut self, device: &Device, case: &Case) {
        let attention = attention(case, &self.segments);
        let saved = Saved {
            q: view(&self.q, case),
            k: view(&self.k, case),
            v: view(&self.v, case),
            o: view(&self.o, case),
            lse: view(&self.lse, case),
        };
        let dq = view_mut(&mut self.dq, case);
        let (dk, dv) = (view_mut(&mut self.dk, case), view_mut(&mut self.dv, case));
        backward(device, &attention, saved, view(&self.d_o, case), dq, dk, dv);
    }
}

fn attention<'a>(case: &Case, segments: &'a Buf<Segment>) -> Attention<'a> {
    let Shape { heads, kv_heads, .. } = case.shape;
    let head_dim = case.shape.head_dim();
    Attention {
        heads: Heads { heads, kv_heads, head_dim },
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: case.window,
        soft_cap: None,
        segments,
        segment_count: case.lengths.len(),
        longest: case.lengths[0],
    }
}

/// A row for each token.
fn view<'a>(act: &'a Act, case: &Case) -> Mat<'a> {
    act.view(case.tokens(), act.len() / case.tokens())
}

fn view_mut<'a>(act: &'a mut Act, case: &Case) -> MatMut<'a> {
    let cols = act.len() / case.tokens();
    act.view_mut(case.tokens(), cols)
}
