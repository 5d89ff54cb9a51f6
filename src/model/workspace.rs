//! Memory of a pass, taken once for the largest batch.
//!
//! What blocks keep between their forward and their backward pass is a plan, not a flag: [`Keep`]
//! says how many of them, from the last one down, keep everything. The others keep their input and
//! run forward again before they run backward, in the memory of a block that is done by then. One
//! forward code path serves both, and the gradients are equal bit for bit.
//!
//! A micro-batch runs in a lane. With one lane, micro-batches take turns and each goes through the
//! whole model. With several, that many of them go through each block together, one after the other,
//! and a block that has to be read from a file is read once for all of them; what lies between blocks
//! waits in the lanes. The additions to a gradient are the same in the same order.

use crate::device::parking::{Parked, When};
use crate::device::{Act, Buf, Device, Dtype, MatMut};
use crate::error::Error;

use super::block::{Block, mlp_rows};
use super::cache::LayerCache;
use super::decoder::Decoder;
use super::linear::Linear;
use super::saved::{Grads, Saved};
use super::tokens::{Limits, Tokens};

/// What is kept between forward and backward, and how much of the logits is held at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Blocks that keep everything: the last ones, at least one unless there are several lanes. All
    /// others keep their inputs.
    pub blocks: usize,
    /// Logits held at once, in numbers, if not all of them.
    pub logits: usize,
    /// Micro-batches that go through a block together.
    pub lanes: usize,
    /// Whether inputs of blocks wait in host memory.
    pub parked: bool,
}

impl Keep {
    /// Nothing is computed twice. 40 Mi logits of 4 bytes are half of those of 512 tokens and a
    /// vocabulary of 152 thousand: the head is then packed twice, which costs 2 % of a step.
    pub const EVERYTHING: Self =
        Self { blocks: usize::MAX, logits: 40 << 20, lanes: 1, parked: false };

    /// The least memory.
    pub const INPUTS: Self = Self { blocks: 1, logits: 16 << 20, lanes: 1, parked: false };
}

/// What a workspace is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Forward and backward.
    Training(Keep),
    /// Forward only.
    Evaluation,
    /// Forward only, token by token, with room for that many tokens.
    Generation {
        /// Tokens of prompt and answer together.
        capacity: usize,
    },
}

/// Memory for passes of one decoder within limits.
pub struct Workspace {
    /// One for each micro-batch that is under way.
    pub(super) lanes: Vec<Lane>,
    /// Blocks that keep everything: the last ones.
    pub(super) kept: usize,
    /// What a block leaves for its own way back, where none keeps anything.
    pub(super) passing: Option<Saved>,
    /// The MLP's h or its gradient [N, F], of whichever block runs.
    pub(super) h: Act,
    /// Keys and values of earlier tokens, one for each block; empty but in generation.
    pub(super) caches: Vec<LayerCache>,
    pub(super) head: HeadRoom,
    pub(super) training: Option<TrainingRoom>,
    pub(super) dxa: Act,
}

/// A micro-batch on its way.
pub(super) struct Lane {
    /// What it is.
    pub tokens: Tokens,
    /// Inputs of the blocks, and the last one's output: one for each, or two in turn.
    pub inputs: Vec<Act>,
    /// One for each block that keeps everything. The first serves all blocks before, too.
    pub saved: Vec<Saved>,
    /// Where each block's input waits, if there are only two.
    parked: Vec<Parked>,
    /// Which of them is being copied beside what is queued.
    moving: Option<usize>,
    /// Losses of its targets on their way to the host: while those of one turn are read, those of the
    /// other are computed.
    pub losses: [Parked; 2],
    /// On the way back, the gradient at the input of the block that is next [N, C].
    pub dx: Option<Act>,
}

/// Label of what lies between blocks.
const INPUTS: &str = "layer inputs";

/// A chunk of logits.
pub(super) struct Logits(Act);

/// Memory of the head.
pub(super) struct HeadRoom {
    /// Rows with a target [targets, C], as they leave the last block.
    pub x: Act,
    /// The same, normalized.
    pub h: Act,
    /// One chunk of logits [chunk, V].
    pub logits: Logits,
    /// Rows of a chunk.
    pub chunk: usize,
    /// One loss for each target.
    pub losses: Buf<f32>,
    /// The same of one lane, where the host reads them.
    pub read: Vec<f32>,
}

/// Memory of the backward pass.
pub(super) struct TrainingRoom {
    pub grads: Grads,
    pub dh: Act,
    pub dropped: Option<Act>,
}

impl Workspace {
    /// Takes the memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        device: &Device,
        decoder: &Decoder,
        limits: Limits,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        let (n, c) = (limits.tokens, &decoder.config);
        let keep = match purpose {
            Purpose::Training(keep) => keep,
            _ => Keep::INPUTS,
        };
        let training = matches!(purpose, Purpose::Training(_));
        let least = usize::from(keep.lanes == 1);
        let kept = keep.blocks.min(c.layers).max(least);
        let block = &decoder.layers[0];
        let lane = |_| Lane::new(device, decoder, limits, kept, training.then_some(keep));
        let passing = (kept == 0).then(|| Saved::new(device, &decoder.layers, n, mlp_rows(n)));
        Ok(Self {
            lanes: (0..keep.lanes).map(lane).collect::<Result<_, _>>()?,
            kept,
            passing: passing.transpose()?,
            h: device.alloc_act("activations", mlp_rows(n) * block.down.weight.cols)?,
            caches: caches(device, decoder, purpose)?,
            head: HeadRoom::new(device, decoder, limits.targets, keep.logits)?,
            training: match training {
                true => Some(TrainingRoom {
                    grads: Grads::new(device, block, n)?,
                    dh: device.alloc_act("activation gradients", limits.targets * c.hidden)?,
                    dropped: dropout_room(device, decoder, n)?,
                }),
                false => None,
            },
            dxa: device.alloc_act("activation gradients", n * decoder.largest_rank())?,
        })
    }
}

impl Workspace {
    /// Micro-batches that go through a block together.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The `targets` losses that lane `lane` queued in turn `turn`; waits for no more than those.
    pub fn losses(
        &mut self,
        device: &Device,
        (lane, turn): (usize, usize),
        targets: usize,
    ) -> &[f32] {
        let read = &mut self.head.read;
        read.resize(targets, 0.0);
        device.read_parked(&self.lanes[lane].losses[turn], read);
        read
    }
}

impl Lane {
    fn new(
        device: &Device,
        decoder: &Decoder,
        limits: Limits,
        kept: usize,
        training: Option<Keep>,
    ) -> Result<Self, Error> {
        let (c, hidden) = (&decoder.config, limits.tokens * decoder.config.hidden);
        let (inputs, parked) = match training {
            None => (2, 0),
            Some(Keep { parked: true, .. }) => (2, c.layers),
            Some(_) => (c.layers + 1, 0),
        };
        let inputs = (0..inputs).map(|_| device.alloc_act(INPUTS, hidden));
        let parked =
            (0..parked).map(|_| device.alloc_parked(INPUTS, hidden * device.dtype().size()));
        let first = c.layers - kept;
        // A single block's memory is that of all blocks in turn: none of them keeps its MLP.
        let whole = training.is_some_and(|keep| keep.blocks > 1);
        let mlp = if whole { limits.tokens } else { mlp_rows(limits.tokens) };
        let saved = |i| {
            let blocks = if i == first { 0..i + 1 } else { i..i + 1 };
            Saved::new(device, &decoder.layers[blocks], limits.tokens, mlp)
        };
        let losses = || device.alloc_parked("losses", limits.targets * size_of::<f32>());
        let dx = training.is_some().then(|| device.alloc_act("activation gradients", hidden));
        Ok(Self {
            tokens: Tokens::new(device, c, limits)?,
            inputs: inputs.collect::<Result<_, _>>()?,
            saved: (first..c.layers).map(saved).collect::<Result<_, _>>()?,
            parked: parked.collect::<Result<_, _>>()?,
            moving: None,
            losses: [losses()?, losses()?],
            dx: dx.transpose()?,
        })
    }

    /// Lets the input of block `i`, which holds `len` numbers, wait where all inputs do, if that is not
    /// where it is. It is copied while the block computes from it; the next block's output goes where it was.
    pub fn park(&mut self, device: &Device, i: usize, len: usize) {
        self.settle(device);
        let from = self.around(i).0;
        if let Some(parked) = self.parked.get_mut(i) {
            let bytes = len * device.dtype().size();
            device.park(self.inputs[from].bytes(), bytes, parked, When::Beside);
            self.moving = Some(i);
        }
    }

    /// Which of the inputs is that of block `i`, of `len` numbers, on the way back: brought there if it
    /// waits elsewhere. The input of block `next` is brought while block `i` computes.
    pub fn input(
        &mut self,
        device: &Device,
        (i, next): (usize, Option<usize>),
        len: usize,
    ) -> usize {
        if self.parked.is_empty() {
            return i;
        }
        if self.moving != Some(i) {
            self.settle(device);
            self.bring(device, i, len);
        }
        self.settle(device);
        if let Some(next) = next {
            self.bring(device, next, len);
        }
        i % self.inputs.len()
    }

    fn bring(&mut self, device: &Device, i: usize, len: usize) {
        let to = i % self.inputs.len();
        let (bytes, to) = (len * device.dtype().size(), self.inputs[to].bytes_mut());
        device.unpark(&self.parked[i], bytes, to, When::Beside);
        self.moving = Some(i);
    }

    /// What is queued from now on comes after the copies that are under way.
    pub fn settle(&mut self, device: &Device) {
        if let Some(moving) = self.moving.take() {
            device.settle(&self.parked[moving]);
        }
    }

    /// Which of the inputs block `i` reads and which it writes.
    pub fn around(&self, i: usize) -> (usize, usize) {
        let count = self.inputs.len();
        (i % count, (i + 1) % count)
    }
}

impl Logits {
    /// Numbers from a row to the next: a GPU copies in pieces of 16 bytes.
    fn stride(vocab: usize) -> usize {
        vocab.next_multiple_of(8)
    }

    /// Logits [rows, V].
    pub fn view_mut(&mut self, rows: usize, vocab: usize) -> MatMut<'_> {
        self.0.view_mut(rows, Self::stride(vocab)).columns(0..vocab)
    }

    /// The raw bytes.
    pub fn bytes(&self) -> &Buf<u8> {
        self.0.bytes()
    }
}

impl HeadRoom {
    fn new(
        device: &Device,
        decoder: &Decoder,
        targets: usize,
        logits: usize,
    ) -> Result<Self, Error> {
        let c = &decoder.config;
        let most = (logits / c.vocab).max(1);
        let chunk = targets.div_ceil(targets.div_ceil(most).max(1)).max(1);
        let dtype = match device.dtype() {
            Dtype::F64 => Dtype::F64,
            Dtype::Bf16 | Dtype::F32 => Dtype::F32,
        };
        Ok(Self {
            x: device.alloc_act("head", targets * c.hidden)?,
            h: device.alloc_act("head", targets * c.hidden)?,
            logits: Logits(device.alloc_dense("logits", chunk * Logits::stride(c.vocab), dtype)?),
            chunk,
            losses: device.alloc("head", targets)?,
            read: Vec::with_capacity(targets),
        })
    }
}

fn caches(device: &Device, decoder: &Decoder, purpose: Purpose) -> Result<Vec<LayerCache>, Error> {
    let Purpose::Generation { capacity } = purpose else { return Ok(Vec::new()) };
    let columns = 2 * decoder.config.kv_heads * decoder.config.head_dim;
    decoder.layers.iter().map(|_| LayerCache::new(device, capacity, columns)).collect()
}

fn dropout_room(device: &Device, decoder: &Decoder, n: usize) -> Result<Option<Act>, Error> {
    let dropped = |l: &&Linear| l.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
    let attention = decoder.layers.iter().flat_map(Block::attention_linears).filter(dropped);
    let mlp = decoder.layers.iter().flat_map(Block::mlp_linears).filter(dropped);
    let attention = attention.map(|linear| n * linear.weight.cols).max();
    let mlp = mlp.map(|linear| mlp_rows(n) * linear.weight.cols).max();
    attention.max(mlp).map(|numbers| device.alloc_act("activations", numbers)).transpose()
}
