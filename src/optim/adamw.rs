//! AdamW and its state: two moments for every trainable number, in f32 or in eight bits.

use std::ops::Range;

use crate::device::{Buf, Device};
use crate::error::Error;
use crate::ops::adamw::{Hyper, State32, adamw};
use crate::ops::adamw_8bit::{State8, adamw_8bit};
use crate::ops::sum_squares::sum_squares;
use crate::params::{Entry, Params};
use crate::quant::{self, STATE_BLOCK};

use super::shelf::{LABEL, Paging, Shelf};

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

/// The state of AdamW.
pub struct AdamW {
    settings: Settings,
    pages: Vec<Page>,
    /// First and second moments in f32, over the whole array or over its small matrices.
    pub plain: [Shelf<f32>; 2],
    /// Moments in eight bits.
    pub eight_bit: Option<EightBit>,
    norm: Buf<f64>,
}

/// Moments in eight bits.
pub struct EightBit {
    /// Codes of first and second moments.
    pub codes: [Shelf<u8>; 2],
    /// One scale for each 256 codes.
    pub scales: [Shelf<f32>; 2],
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
        paging: Paging,
    ) -> Result<Self, Error> {
        let most = match paging {
            Paging::Resident => usize::MAX,
            Paging::Paged { numbers } => numbers,
        };
        let pages = pages(params.index().entries(), moments, most);
        let plain = || Shelf::new(device, Page::all(&pages, |at| at.plain), paging);
        let eight_bit = match moments {
            Moments::F32 => None,
            Moments::EightBit => Some(EightBit::new(device, &pages, paging)?),
        };
        let (plain, norm) = ([plain()?, plain()?], device.alloc(LABEL, 1)?);
        Ok(Self { settings, pages, plain, eight_bit, norm })
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Step `step`, counted from 1, at learning rate `rate`. Gives the norm of all gradients before
    /// clipping; where that is not finite, nothing else is done.
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
        if norm.is_finite() {
            self.apply(device, params, rate, (norm, step));
        }
        Ok(norm)
    }

    /// Applies gradients whose norm is `norm`, a finite number, as step `step`.
    pub fn apply(
        &mut self,
        device: &Device,
        params: &mut Params,
        rate: f64,
        (norm, step): (f64, u64),
    ) {
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
    }

    /// The norm of all gradients, before clipping.
    ///
    /// # Errors
    /// What the device kept since the last synchronization.
    pub fn norm(&mut self, device: &Device, params: &Params) -> Result<f64, Error> {
        sum_squares(device, &params.grads, &mut self.norm);
        device.synchronize()?;
        let mut sum = [0.0];
        device.download(&self.norm, &mut sum);
        Ok(sum[0].sqrt())
    }

    fn update(&mut self, device: &Device, params: &mut Params, hyper: &Hyper) {
        let Self { pages, plain, eight_bit, .. } = self;
        for (number, page) in pages.iter().enumerate() {
            let [m, v] = &mut *plain;
            let ((m, start), (v, _)) = (m.open(device, number), v.open(device, number));
            match eight_bit {
                None => {
                    let (values, grads) = (&mut params.values, &params.grads);
                    let state = State32 { m, v, start };
                    adamw(device, values, grads, state, page.numbers.clone(), hyper);
                }
                Some(eight_bit) => {
                    eight_bit.update(device, params, (number, page), (m, v, start), hyper);
                }
            }
            plain.iter_mut().for_each(|shelf| shelf.close(device, number));
        }
    }
}

impl EightBit {
    fn new(device: &Device, pages: &[Page], paging: Paging) -> Result<Self, Error> {
        let mut maps = [device.alloc(LABEL, 256)?, device.alloc(LABEL, 256)?];
        device.upload(quant::SIGNED.values(), &mut maps[0]);
        device.upload(quant::UNSIGNED.values(), &mut maps[1]);
        let codes = || Shelf::new(device, Page::all(pages, |at| at.codes), paging);
        let scales = || Shelf::new(device, Page::all(pages, |at| at.blocks), paging);
        Ok(Self { codes: [codes()?, codes()?], scales: [scales()?, scales()?], maps })
    }

    /// One page; `plain` is where the moments of its small matrices are.
    fn update(
        &mut self,
        device: &Device,
        params: &mut Params,
        (number, page): (usize, &Page),
        (plain_m, plain_v, plain_start): (&mut Buf<f32>, &mut Buf<f32>, usize),
        hyper: &Hyper,
    ) {
        let ([m, v], [m_absmax, v_absmax]) = (&mut self.codes, &mut self.scales);
        let ((m, codes), (v, _)) = (m.open(device, number), v.open(device, number));
        let ((m_absmax, blocks), (v_absmax, _)) =
            (m_absmax.open(device, number), v_absmax.open(device, number));
        let mut at = Place { numbers: 0, plain: plain_start, codes, blocks };
        let Params { index, values, grads, .. } = params;
        for Entry { range, .. } in &index.entries()[page.entries.clone()] {
            let Place { plain, codes, blocks, .. } = at;
            at = at.after(range.len(), Moments::EightBit);
            if range.len() < SMALLEST_EIGHT_BIT {
                let state = State32 { m: plain_m, v: plain_v, start: plain };
                adamw(device, values, grads, state, range.clone(), hyper);
            } else {
                let [signed_map, unsigned_map] = &self.maps;
                let state = State8 { m, v, m_absmax, v_absmax, signed_map, unsigned_map };
                adamw_8bit(device, values, grads, state, range.clone(), codes, blocks, hyper);
            }
        }
        self.codes.iter_mut().for_each(|shelf| shelf.close(device, number));
        self.scales.iter_mut().for_each(|shelf| shelf.close(device, number));
    }
}

/// How many numbers of each kind come before something.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    numbers: usize,
    plain: usize,
    codes: usize,
    blocks: usize,
}

impl Place {
    /// The place behind a matrix of `len` numbers.
    fn after(self, len: usize, moments: Moments) -> Self {
        let numbers = self.numbers + len;
        if moments == Moments::F32 || len < SMALLEST_EIGHT_BIT {
            return Self { numbers, plain: self.plain + len, ..self };
        }
        let (codes, blocks) = (self.codes + len, self.blocks + len.div_ceil(STATE_BLOCK));
        Self { numbers, codes, blocks, ..self }
    }
}

/// Matrices whose state comes and goes together.
#[derive(Debug, Clone)]
struct Page {
    /// Which.
    entries: Range<usize>,
    /// Their numbers in the flat array.
    numbers: Range<usize>,
    from: Place,
    to: Place,
}

impl Page {
    /// The ranges of all pages in one array of state.
    fn all(pages: &[Self], of: impl Fn(Place) -> usize) -> Vec<Range<usize>> {
        pages.iter().map(|page| of(page.from)..of(page.to)).collect()
    }
}

/// Pages of at most `most` numbers, but of one matrix at least.
fn pages(entries: &[Entry], moments: Moments, most: usize) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    let mut from = Place::default();
    for (number, Entry { range, .. }) in entries.iter().enumerate() {
        let to = from.after(range.len(), moments);
        match pages.last_mut().filter(|page| to.numbers - page.from.numbers <= most) {
            Some(page) => {
                (page.entries.end, page.numbers.end, page.to) = (number + 1, range.end, to);
            }
            None => {
                pages.push(Page { entries: number..number + 1, numbers: range.clone(), from, to });
            }
        }
        from = to;
    }
    pages
}
