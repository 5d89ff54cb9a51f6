//! The decoder: embedding, blocks, head; one pass forward, one backward.
//!
//! A pass goes block by block, and in each block lane by lane: see `workspace`. Where the weights of
//! blocks do not stay on the device, a block is visited before it is used, and the one that comes next
//! is brought meanwhile.
//!
//! The head is computed where a label stands and nowhere else, in chunks of rows: logits of a chunk
//! become losses, their own gradients (in place), and the gradient at the last block's output,
//! before the next chunk is touched. There is never an N × V buffer.

use std::sync::{Mutex, PoisonError};

use crate::device::conveyor::{Conveyor, Traffic};
use crate::device::parking::When;
use crate::device::{Act, Device, Pass};
use crate::error::Error;
use crate::ops::cross_entropy::{self, Gradient, cross_entropy};
use crate::ops::dropout::Draw;
use crate::ops::gemm::{Epilogue, Form, Term, matmul};
use crate::ops::rmsnorm::{self, Norm};
use crate::ops::{Write, rows};
use crate::params::Params;

use super::block::{Block, Reach};
use super::config::Config;
use super::linear::{Context, Dropout};
use super::table::Table;
use super::tokens::{Batch, Tokens};
use super::weight::Weight;
use super::workspace::{HeadRoom, Lane, Workspace};
use crate::device::Buf;

/// A decoder with its frozen weights, and the places where trainables are attached.
pub struct Decoder {
    /// What it is.
    pub config: Config,
    /// Token embeddings [V, C]; also the head where the two are tied.
    pub embedding: Table,
    /// The blocks, first to last.
    pub layers: Vec<Block>,
    /// Weight of the last norm `[C]`.
    pub norm: Buf<f32>,
    /// The head [V, C], where it is not tied.
    pub head: Option<Weight>,
    /// What brings the weights of the blocks, where they do not stay.
    pub conveyor: Option<Mutex<Conveyor>>,
}

impl Decoder {
    /// The largest rank of any update, or 0.
    pub fn largest_rank(&self) -> usize {
        let linears = self.layers.iter().flat_map(Block::linears);
        linears.filter_map(|l| l.lora.as_ref().map(|lora| lora.rank)).max().unwrap_or(0)
    }

    /// The first block with something trained; those below need no backward pass.
    fn lowest_trained(&self) -> usize {
        let trained = |block: &Block| block.linears().any(|linear| linear.lora.is_some());
        self.layers.iter().position(trained).unwrap_or(self.layers.len())
    }

    fn head(&self) -> &Weight {
        let tied = || self.embedding.resident().expect("a table that is the head too is resident");
        self.head.as_ref().unwrap_or_else(tied)
    }

    fn final_norm(&self) -> Norm<'_> {
        Norm { weight: &self.norm, eps: self.config.eps, center: self.config.center }
    }

    /// What was read of weights that do not stay.
    pub fn traffic(&self) -> Option<Traffic> {
        let conveyor = self.conveyor.as_ref()?;
        Some(conveyor.lock().unwrap_or_else(PoisonError::into_inner).traffic())
    }

    /// Makes block `i` usable; block `next` will be used after it.
    fn visit(&self, i: usize, next: Option<usize>) -> Result<(), Error> {
        match &self.conveyor {
            None => Ok(()),
            Some(conveyor) => {
                conveyor.lock().unwrap_or_else(PoisonError::into_inner).visit(i, next)
            }
        }
    }

    /// Puts the embedded tokens of `batch` at the beginning of lane `lane`.
    ///
    /// # Errors
    /// A file of weights that is no longer what it was.
    pub fn enter(
        &self,
        device: &Device,
        w: &mut Workspace,
        lane: usize,
        batch: &Batch,
    ) -> Result<(), Error> {
        if let Some(conveyor) = &self.conveyor {
            // Embeddings may be used from a map, which must not end before the file does.
            conveyor.lock().unwrap_or_else(PoisonError::into_inner).check_files()?;
        }
        w.lanes[lane].settle(device);
        let Lane { tokens, inputs, .. } = &mut w.lanes[lane];
        tokens.upload(device, &self.config, batch);
        let scale = self.config.embedding_scale(device.dtype());
        let (first, others) = inputs.split_at_mut(1);
        let rooms = [&mut others[0], &mut first[0]];
        self.embedding.lookup(device, batch.tokens, &mut tokens.ids, scale, rooms);
        Ok(())
    }

    /// Runs what [`entered`](Self::enter) the first lanes, one for each of `draws`, through all blocks;
    /// the lanes then hold the last one's output.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn forward(
        &self,
        device: &Device,
        params: &mut Params,
        w: &mut Workspace,
        draws: &[Option<Draw>],
    ) -> Result<(), Error> {
        let (layers, hidden) = (self.layers.len(), self.config.hidden);
        let first_kept = layers - w.kept;
        for (i, block) in self.layers.iter().enumerate() {
            self.visit(i, Some(i + 1).filter(|next| *next < layers))?;
            for (number, (lane, draw)) in w.lanes.iter_mut().zip(draws).enumerate() {
                let n = lane.tokens.count;
                lane.park(device, i, n * hidden);
                let (from, to) = lane.around(i);
                let Lane { tokens, inputs, saved, .. } = lane;
                let (below, above) = inputs.split_at_mut(from.max(to));
                let (x, y) = match from < to {
                    true => (&below[from], &mut above[0]),
                    false => (&above[0], &mut below[to]),
                };
                let saved = saved.get_mut(i.saturating_sub(first_kept)).or(w.passing.as_mut());
                let saved = saved.expect("room for a block that keeps nothing");
                let mut cx = Context {
                    device,
                    tokens,
                    first: 0,
                    params,
                    dxa: &mut w.dxa,
                    dropout: dropout(*draw, w.training.as_mut().and_then(|t| t.dropped.as_mut())),
                };
                let (x, y) = (x.view(n, hidden), Some(y.view_mut(n, hidden)));
                let (h, cache) = (&mut w.h, w.caches.get_mut(i));
                device.gather(Pass { name: "forward", block: i, lane: number }, || {
                    block.forward(&mut cx, x, saved, h, cache, y);
                });
            }
        }
        Ok(())
    }

    /// Queues the losses of the targets of lane `lane`, after [`forward`](Self::forward), which
    /// [`Workspace::losses`] reads in the same turn. With `Some(scale)`, also `scale` times their sum's
    /// gradient at the last block's output.
    pub fn losses(
        &self,
        device: &Device,
        w: &mut Workspace,
        (lane, turn): (usize, usize),
        scale: Option<f32>,
    ) {
        let (lane, room) = (&mut w.lanes[lane], &mut w.head);
        let Tokens { count: n, targets, ref rows, ref target_ids, .. } = lane.tokens;
        let (out, hidden) = (lane.around(self.layers.len()).0, self.config.hidden);
        let x = lane.inputs[out].view(n, hidden);
        rows::gather(device, x, rows, room.x.view_mut(targets, hidden));
        let x = room.x.view(targets, hidden);
        rmsnorm::forward(
            device,
            x,
            self.final_norm(),
            room.h.view_mut(targets, hidden),
            Write::Set,
        );
        let mut dh = w.training.as_mut().map(|training| &mut training.dh);
        for first in (0..targets).step_by(room.chunk) {
            let dh = scale.and_then(|scale| Some((scale, &mut **dh.as_mut()?)));
            self.head_chunk(device, room, target_ids, first, targets, dh);
        }
        if let (Some(_), Some(training), Some(dx)) = (scale, &mut w.training, &mut lane.dx) {
            // h's gradient, through the norm in place, to the rows it came from.
            let dh = training.dh.view_mut(targets, hidden);
            rmsnorm::backward_in_place(device, room.x.view(targets, hidden), self.final_norm(), dh);
            let dh = training.dh.view(targets, hidden);
            rows::scatter(device, dh, rows, dx.view_mut(n, hidden));
        }
        device.park(&w.head.losses, targets, &mut lane.losses[turn], When::InOrder);
    }

    fn head_chunk(
        &self,
        device: &Device,
        room: &mut HeadRoom,
        target_ids: &Buf<u32>,
        first: usize,
        targets: usize,
        dh: Option<(f32, &mut Act)>,
    ) {
        let (vocab, hidden) = (self.config.vocab, self.config.hidden);
        let count = room.chunk.min(targets - first);
        let chunk = first..first + count;
        let h = room.h.view(targets, hidden).rows(chunk.clone());
        let logits = Term { left: h, right: self.head().operand() };
        let out = room.logits.view_mut(count, vocab);
        matmul(device, Form::Nt, &[logits], Epilogue::default(), out, Write::Set);
        let gradient = dh.as_ref().map_or(Gradient::None, |(scale, _)| Gradient::Scale(*scale));
        let out = room.logits.view_mut(count, vocab);
        let cap = self.config.final_soft_cap;
        cross_entropy(device, out, target_ids, first, cap, &mut room.losses, gradient);
        let Some((_, dh)) = dh else { return };
        let logits = room.logits.view_mut(count, vocab);
        let d = cross_entropy::gradient_view(&logits, device.dtype());
        let term = Term { left: d, right: self.head().operand() };
        let out = dh.view_mut(targets, hidden).rows(chunk);
        matmul(device, Form::Nn, &[term], Epilogue::default(), out, Write::Set);
    }

    /// Logits `[V]` of token `row` of the first lane, after [`forward`](Self::forward).
    pub fn logits(&self, device: &Device, w: &mut Workspace, row: usize) -> Vec<f32> {
        let (lane, vocab, hidden) = (&w.lanes[0], self.config.vocab, self.config.hidden);
        let (out, n) = (lane.around(self.layers.len()).0, lane.tokens.count);
        let x = lane.inputs[out].view(n, hidden).rows(row..row + 1);
        let (h, norm) = (w.head.h.view_mut(1, hidden), self.final_norm());
        rmsnorm::forward(device, x, norm, h, Write::Set);
        let term = Term { left: w.head.h.view(1, hidden), right: self.head().operand() };
        let out = w.head.logits.view_mut(1, vocab);
        matmul(device, Form::Nt, &[term], Epilogue::default(), out, Write::Set);
        let mut logits = vec![0.0f32; vocab];
        device.download(w.head.logits.bytes(), bytemuck::cast_slice_mut(&mut logits));
        self.cap_logits(&mut logits);
        logits
    }

    fn cap_logits(&self, logits: &mut [f32]) {
        if let Some(cap) = self.config.final_soft_cap {
            logits.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
        }
    }

    /// Adds to the gradients of all parameters, from the gradients that [`losses`](Self::losses) left
    /// at the last block's output in the first lanes, one for each of `draws`; a lane without a target
    /// has none.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn backward(
        &self,
        device: &Device,
        params: &mut Params,
        w: &mut Workspace,
        draws: &[Option<Draw>],
    ) -> Result<(), Error> {
        let (hidden, lowest) = (self.config.hidden, self.lowest_trained());
        let first_kept = self.layers.len() - w.kept;
        let training = w.training.as_mut().expect("a workspace for training");
        for (i, block) in self.layers.iter().enumerate().skip(lowest).rev() {
            let next = i.checked_sub(1).filter(|next| *next >= lowest);
            self.visit(i, next)?;
            for (number, (lane, draw)) in w.lanes.iter_mut().zip(draws).enumerate() {
                if lane.tokens.targets == 0 {
                    continue;
                }
                let n = lane.tokens.count;
                let input = lane.input(device, (i, next), n * hidden);
                let Lane { tokens, inputs, saved, dx, .. } = lane;
                let mut cx = Context {
                    device,
                    tokens,
                    first: 0,
                    params,
                    dxa: &mut w.dxa,
                    dropout: dropout(*draw, training.dropped.as_mut()),
                };
                let x = inputs[input].view(n, hidden);
                let saved = saved.get_mut(i.saturating_sub(first_kept)).or(w.passing.as_mut());
                let saved = saved.expect("room for a block that keeps nothing");
                let reach = if i == lowest { Reach::Params } else { Reach::Input };
                let dx = dx.as_mut().expect("a lane for training");
                let (h, grads) = (&mut w.h, &mut training.grads);
                device.gather(Pass { name: "backward", block: i, lane: number }, || {
                    if i < first_kept {
                        block.forward(&mut cx, x, saved, h, None, None);
                    }
                    block.backward(&mut cx, x, saved, grads, h, dx, reach);
                });
            }
        }
        Ok(())
    }
}

fn dropout(draw: Option<Draw>, room: Option<&mut Act>) -> Option<Dropout<'_>> {
    Some(Dropout { room: room?, draw: draw? })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::weights::Weights;
    use crate::device::Dtype;
    use crate::model::load::{Quantization, Residence, load};
    use crate::model::tokens::Limits;
    use crate::model::workspace::{Keep, Purpose};
    use crate::params::Index;

    /// Losses, and the bits of their gradient at the last block's output, with logits held for
    /// `chunk` rows at once.
    fn head(chunk: usize) -> (Vec<f32>, Vec<u8>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen2");
        let config = Config::read(&folder.join("config.json")).unwrap();
        let weights = Weights::single(&folder.join("model.safetensors")).unwrap();
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let (quantization, residence) = (Quantization::None, Residence::Resident);
        let decoder = load(&device, config, Some(&weights), quantization, residence).unwrap();
        let mut params = Params::new(&device, Index::default()).unwrap();
        let limits = Limits { tokens: 29, sequences: 2, targets: 25 };
        let purpose = Purpose::Training(Keep::EVERYTHING);
        let mut w = Workspace::new(&device, &decoder, limits, purpose).unwrap();
        w.head.chunk = chunk;
        let tokens: Vec<u32> = (0..29).map(|i| i * 13 % 64).collect();
        let rows: Vec<u32> = (0..29).filter(|row| ![3, 10, 17, 28].contains(row)).collect();
        let targets: Vec<u32> = rows.iter().map(|row| row * 5 % 64).collect();
        let sequences = [0..18, 18..29];
        let batch = Batch {
            tokens: &tokens,
            sequences: &sequences,
            past: 0,
            rows: &rows,
            targets: &targets,
        };
        decoder.enter(&device, &mut w, 0, &batch).unwrap();
        decoder.forward(&device, &mut params, &mut w, &[None]).unwrap();
        decoder.losses(&device, &mut w, (0, 0), Some(1.0 / 25.0));
        let losses = w.losses(&device, (0, 0), 25).to_vec();
        let dx = w.lanes[0].dx.as_ref().unwrap();
        let mut bits = vec![0; dx.bytes().len()];
        device.download(dx.bytes(), &mut bits);
        (losses, bits)
    }

    #[test]
    fn how_many_logits_are_held_at_once_changes_no_bit() {
        let all = head(25);
        assert!(all.0.iter().all(|loss| *loss > 0.0) && all.1.iter().any(|byte| *byte != 0));
        for chunk in [1, 7, 24] {
            assert!(head(chunk) == all, "chunks of {chunk} rows change the result");
        }
    }
}
