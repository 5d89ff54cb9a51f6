//! AdamW and its state: two moments for every trainable number, in f32 or in eight bits.

use crate::device::{Buf, Device};
use crate::error::Error;
use crate::ops::adamw::{Hyper, State32, adamw};
use crate::ops::adamw_8bit::{State8, adamw_8bit};
use crate::ops::sum_squares::sum_squares;
use crate::params::{Entry, Params};
use crate::quant::{self, STATE_BLOCK};

/// How the moments are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moments {
    /// In f32.
    F32,
    /// In eight bits with one f32 scale for each 256; matrices of fewer than 4096 numbers in f32.
    EightBit,
}

/// What stays the same over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Fraction of a value that is taken off, times the learning rate.
    pub weight_decay: f64,
    /// Largest norm of the gradient; a longer one is shortened to it.
    pub max_grad_norm: f64,
}

/// Numbers below which bitsandbytes keeps a tensor's moments in f32.
const SMALLEST_EIGHT_BIT: usize = 4096;

/// Label of the moments.
const LABEL: &str = "optimizer moments";

/// The state of AdamW.
pub struct AdamW {
    settings: Settings,
    /// First and second moments in f32, over the whole array or over its small matrices.
    pub plain: [Buf<f32>; 2],
    /// Moments in eight bits.
    pub eight_bit: Option<EightBit>,
    norm: Buf<f64>,
}

/// Moments in eight bits.
pub struct EightBit {
    /// Codes of first and second moments.
    pub codes: [Buf<u8>; 2],
    /// One scale for each 256 codes.
    pub scales: [Buf<f32>; 2],
    maps: [Buf<f32>; 2],
}

impl AdamW {
    /// A fresh state for `params`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        device: &Device,
        params: &Params,
        settings: Settings,
        moments: Moments,
    ) -> Result<Self, Error> {
        let layout = Layout::of(params.index().entries(), moments);
        let plain = || device.alloc::<f32>(LABEL, layout.plain);
        let eight_bit = match moments {
            Moments::F32 => None,
            Moments::EightBit => Some(EightBit::new(device, &layout)?),
        };
        Ok(Self { settings, plain: [plain()?, plain()?], eight_bit, norm: device.alloc(LABEL, 1)? })
    }

    /// Step `step`, counted from 1, at learning rate `rate`. Gives the norm of all gradients before
    /// clipping.
    ///
    /// # Errors
    /// What the device kept since the last synchronization.
    pub fn step(
        &mut self,
        device: &Device,
        params: &mut Params,
        rate: f64,
        step: u64,
    ) -> Result<f64, Error> {
        let norm = self.norm(device, params)?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        let hyper = Hyper {
            learning_rate: rate,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            epsilon: self.settings.epsilon,
            weight_decay: self.settings.weight_decay,
            clip: (self.settings.max_grad_norm / (norm + 1e-6)).min(1.0),
            step,
        };
        self.update(device, params, &hyper);
        Ok(norm)
    }

    fn norm(&mut self, device: &Device, params: &Params) -> Result<f64, Error> {
        sum_squares(device, &params.grads, &mut self.norm);
        device.synchronize()?;
        let mut sum = [0.0];
        device.download(&self.norm, &mut sum);
        Ok(sum[0].sqrt())
    }

    fn update(&mut self, device: &Device, params: &mut Params, hyper: &Hyper) {
        let [m, v] = &mut self.plain;
        let (values, grads) = (&mut params.values, &params.grads);
        let Some(eight_bit) = &mut self.eight_bit else {
            let all = 0..values.len();
            return adamw(device, values, grads, State32 { m, v, start: 0 }, all, hyper);
        };
        let mut at = Layout::default();
        for Entry { range, .. } in params.index.entries() {
            let Layout { plain, codes, blocks } = at;
            at.push(range.len(), Moments::EightBit);
            if range.len() < SMALLEST_EIGHT_BIT {
                let state = State32 { m, v, start: plain };
                adamw(device, values, grads, state, range.clone(), hyper);
            } else {
                let state = eight_bit.state();
                adamw_8bit(device, values, grads, state, range.clone(), codes, blocks, hyper);
            }
        }
    }
}

impl EightBit {
    fn new(device: &Device, layout: &Layout) -> Result<Self, Error> {
        let mut maps = [device.alloc(LABEL, 256)?, device.alloc(LABEL, 256)?];
        device.upload(quant::SIGNED.values(), &mut maps[0]);
        device.upload(quant::UNSIGNED.values(), &mut maps[1]);
        let codes = || device.alloc(LABEL, layout.codes);
        let scales = || device.alloc(LABEL, layout.blocks);
        Ok(Self { codes: [codes()?, codes()?], scales: [scales()?, scales()?], maps })
    }

    fn state(&mut self) -> State8<'_> {
        let ([m, v], [m_absmax, v_absmax]) = (&mut self.codes, &mut self.scales);
        State8 { m, v, m_absmax, v_absmax, signed_map: &self.maps[0], unsigned_map: &self.maps[1] }
    }
}

/// Where the moments of the matrices lie, and how many there are of each kind.
#[derive(Debug, Clone, Copy, Default)]
struct Layout {
    plain: usize,
    codes: usize,
    blocks: usize,
}

impl Layout {
    fn of(entries: &[Entry], moments: Moments) -> Self {
        let mut layout = Self::default();
        entries.iter().for_each(|entry| layout.push(entry.range.len(), moments));
        layout
    }

    fn push(&mut self, len: usize, moments: Moments) {
        if moments == Moments::F32 || len < SMALLEST_EIGHT_BIT {
            self.plain += len;
        } else {
            self.codes += len;
            self.blocks += len.div_ceil(STATE_BLOCK);
        }
    }
}
