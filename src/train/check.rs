//! The self-test of a training run on its own model and data: ways to compute one gradient that must not
//! differ, and finite differences of the loss.
//!
//! The adapter is filled with random numbers first: at the start of a run B is zero, and half of all
//! mistakes would be multiplied by it. What must be the same bits has a bound of 0; where only the order of
//! additions differs, the bound is that of f32 arithmetic. All bounds are in [`tolerance`]. Dropout is off:
//! it is the one thing that two ways may draw differently.

use crate::checkpoint::weights::Weights;
use crate::data::{Example, MicroBatch, Row};
use crate::device::{Device, Dtype, Hardware};
use crate::error::Error;
use crate::model::config::Config;
use crate::model::load::{Quantization, Residence, load};
use crate::model::tokens::Limits;
use crate::model::workspace::{Keep, Purpose};
use crate::ops::dropout::Draw;
use crate::params::Entry;
use crate::random::{self, Random};
use crate::tolerance;

use super::plan::Method;
use super::session::Session;

/// What is checked.
pub struct Subject<'a> {
    /// The model.
    pub config: &'a Config,
    /// Its tensors.
    pub weights: &'a Weights,
    /// How linear weights are kept.
    pub quantization: Quantization,
    /// What is attached, without dropout.
    pub method: Method<'a>,
    /// The records.
    pub examples: &'a [Example],
    /// Where it is checked.
    pub device: Device,
    /// What that is.
    pub hardware: Hardware,
    /// Bytes that may be used.
    pub budget: u64,
    /// Seed of the adapter's numbers.
    pub seed: u64,
}

/// Two ways that were compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What was compared.
    pub name: String,
    /// The largest difference, scaled.
    pub difference: f64,
    /// The largest that is allowed; 0 for the same bits.
    pub bound: f64,
}

impl Comparison {
    /// Whether the difference is within its bound.
    pub fn holds(&self) -> bool {
        self.difference <= self.bound
    }
}

/// Adapter tensors along whose gradients the loss is differentiated.
const TENSORS: usize = 6;

/// How a gradient is computed.
#[derive(Clone, Copy)]
struct Way<'w> {
    device: &'w Device,
    keep: Keep,
    residence: Residence,
}

/// A loss and its gradient.
#[derive(PartialEq)]
struct Gradient {
    loss: f64,
    numbers: Vec<f32>,
}

impl Subject<'_> {
    /// Compares. `told` hears of each comparison as it is done.
    ///
    /// # Errors
    /// A model that cannot be loaded; too little memory.
    pub fn check(&self, mut told: impl FnMut(&Comparison)) -> Result<Vec<Comparison>, Error> {
        let mut done = Vec::new();
        let mut tell = |comparison: Comparison| {
            told(&comparison);
            done.push(comparison);
        };
        let usual =
            Way { device: &self.device, keep: Keep::EVERYTHING, residence: Residence::Resident };
        let mut session = self.session(usual)?;
        let together = gradient(&mut session, &[self.together()])?;
        self.compare_windows(&mut session, &together, &mut tell)?;
        tell(self.reached(&session, &together));
        drop(session);
        let alone = gradient(&mut self.session(usual)?, &self.alone())?;
        self.compare_ways(usual, &alone, &mut tell)?;
        self.compare_with_f32(&together, &mut tell)?;
        Ok(done)
    }

    /// Micro-batches that hold the same records.
    fn compare_windows(
        &self,
        session: &mut Session,
        together: &Gradient,
        tell: &mut impl FnMut(Comparison),
    ) -> Result<(), Error> {
        let windows = [
            ("accumulation: each record a micro-batch of its own", self.alone()),
            ("packing: all records in one row, the last one first", vec![self.packed()]),
            ("padding: tokens without a target behind each record", vec![self.padded()]),
        ];
        for (name, window) in windows {
            let difference = distance(&gradient(session, &window)?, together);
            tell(Comparison { name: name.to_owned(), difference, bound: tolerance::F32 });
        }
        let mut largest = 0.0f64;
        let beside = session.evaluate(&self.together())?;
        let mut rest = beside.as_slice();
        for micro in self.alone() {
            let alone = session.evaluate(&micro)?;
            let (of_record, others) = rest.split_at(alone.len());
            largest = largest.max(tolerance::scaled_error(of_record, &alone));
            rest = others;
        }
        let name = "losses of each record alone and beside the others".to_owned();
        tell(Comparison { name, difference: largest, bound: tolerance::F32 });
        Ok(())
    }

    /// Ways to compute that must leave the same bits.
    fn compare_ways(
        &self,
        usual: Way,
        alone: &Gradient,
        tell: &mut impl FnMut(Comparison),
    ) -> Result<(), Error> {
        let mut same = |name: &str, way: Way| -> Result<(), Error> {
            let found = gradient(&mut self.session(way)?, &self.alone())?;
            // Other bits are never right, however close.
            let difference = match found == *alone {
                true => 0.0,
                false => distance(&found, alone).max(f64::EPSILON),
            };
            tell(Comparison { name: name.to_owned(), difference, bound: 0.0 });
            Ok(())
        };
        same("the same once more", usual)?;
        same(
            "layers that compute again what they did not keep",
            Way { keep: Keep::INPUTS, ..usual },
        )?;
        if let Hardware::Cpu { threads } = self.hardware
            && threads > 1
        {
            let device = Device::cpu(1, self.device.dtype(), self.budget);
            same("one thread", Way { device: &device, ..usual })?;
        }
        if self.can_stream() {
            let lanes = self.examples.len();
            let keep = Keep { lanes, ..Keep::INPUTS };
            let way = Way { keep, residence: Residence::Streamed, ..usual };
            same("weights that are read when their turn comes", way)?;
        }
        Ok(())
    }

    /// Whether all weights of layers lie in the files as they are used.
    fn can_stream(&self) -> bool {
        let plan = Device::plan(self.hardware, self.device.dtype(), u64::MAX);
        let (config, weights) = (self.config.clone(), Some(self.weights));
        load(&plan, config, weights, self.quantization, Residence::Streamed).is_ok()
    }

    /// bf16 against f32, and f32 against finite differences of the loss.
    fn compare_with_f32(
        &self,
        together: &Gradient,
        tell: &mut impl FnMut(Comparison),
    ) -> Result<(), Error> {
        let threads = match self.hardware {
            Hardware::Cpu { threads } => threads,
            Hardware::Cuda { .. } => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let host = if self.device.is_host() { self.budget } else { u64::MAX };
        let device = Device::cpu(threads, Dtype::F32, host);
        let way = Way { device: &device, keep: Keep::EVERYTHING, residence: Residence::Resident };
        let mut session = self.session(way)?;
        let exact = gradient(&mut session, &[self.together()])?;
        if self.device.dtype() == Dtype::Bf16 {
            let difference = norm_of_difference(&together.numbers, &exact.numbers);
            let name = "the gradient in bf16 and in f32, by their norms".to_owned();
            tell(Comparison { name, difference, bound: tolerance::BF16_OF_F32 });
        }
        let entries = session.params.index().entries().to_vec();
        for entry in sampled(&entries, &exact) {
            let difference = self.differentiate(&mut session, entry, &exact)?;
            let name = format!("finite differences along {}", entry.name);
            tell(Comparison { name, difference, bound: tolerance::FINITE_DIFFERENCES_F32 });
        }
        Ok(())
    }

    /// How far the loss along the gradient of `entry` is from what the gradient says.
    fn differentiate(
        &self,
        session: &mut Session,
        entry: &Entry,
        exact: &Gradient,
    ) -> Result<f64, Error> {
        let device = session.device.clone();
        let of_entry = &exact.numbers[entry.range.clone()];
        let norm = norm(of_entry);
        let mut values = vec![0.0f32; exact.numbers.len()];
        device.download(&session.params.values, &mut values);
        // Far enough for f32 to see the loss change, and near enough for a straight line.
        let way = CHANGE * exact.loss / norm;
        let mut along = |way: f64| -> Result<f64, Error> {
            let mut moved = values.clone();
            for (value, slope) in moved[entry.range.clone()].iter_mut().zip(of_entry) {
                *value = (f64::from(*value) + way * f64::from(*slope) / norm) as f32;
            }
            device.upload(&moved, &mut session.params.values);
            let losses = session.evaluate(&self.together())?;
            let sum: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
            Ok(sum / losses.len() as f64)
        };
        // Three widths of the difference, extrapolated to none (Romberg).
        let mut slopes = [0.0; 3];
        for (slope, width) in slopes.iter_mut().zip([way, way / 2.0, way / 4.0]) {
            *slope = (along(width)? - along(-width)?) / (2.0 * width);
        }
        device.upload(&values, &mut session.params.values);
        let [first, second] = [0, 1].map(|i| (4.0 * slopes[i + 1] - slopes[i]) / 3.0);
        let slope = (16.0 * second - first) / 15.0;
        Ok((slope / norm - 1.0).abs())
    }

    /// Adapter tensors that no gradient has reached: none, if all is well.
    fn reached(&self, session: &Session, gradient: &Gradient) -> Comparison {
        let entries = session.params.index().entries();
        let idle = |entry: &&Entry| gradient.numbers[entry.range.clone()].iter().all(|g| *g == 0.0);
        let missed = entries.iter().filter(idle).count();
        let name = format!("adapter tensors without a gradient, of {}", entries.len());
        Comparison { name, difference: missed as f64, bound: 0.0 }
    }

    fn session(&self, way: Way) -> Result<Session, Error> {
        let (config, weights) = (self.config.clone(), Some(self.weights));
        let mut decoder = load(way.device, config, weights, self.quantization, way.residence)?;
        let index = self.method.attach(&mut decoder)?.index;
        let purpose = Purpose::Training(way.keep);
        let mut session = Session::new(way.device.clone(), decoder, index, self.limits(), purpose)?;
        let numbers = Random::new(self.seed, random::Purpose::Init, u32::MAX);
        let value = |i: usize| SIZE * numbers.normal_at(i as u64);
        let values: Vec<f32> = (0..session.params.index().len()).map(value).collect();
        way.device.upload(&values, &mut session.params.values);
        Ok(session)
    }

    fn limits(&self) -> Limits {
        let micros = [self.together(), self.padded()];
        let most = |of: fn(&MicroBatch) -> usize| micros.iter().map(of).max().unwrap_or(1);
        Limits {
            tokens: most(|micro| micro.tokens.len()),
            sequences: most(|micro| micro.segments.len()),
            targets: most(|micro| micro.targets.len()),
        }
    }

    /// All records in one micro-batch, a row each.
    fn together(&self) -> MicroBatch {
        let rows: Vec<Row> = (0..self.examples.len()).map(row).collect();
        MicroBatch::new(self.examples, &rows)
    }

    /// Each record a micro-batch.
    fn alone(&self) -> Vec<MicroBatch> {
        (0..self.examples.len()).map(|i| MicroBatch::new(self.examples, &[row(i)])).collect()
    }

    fn packed(&self) -> MicroBatch {
        let examples = (0..self.examples.len()).rev().collect();
        MicroBatch::new(self.examples, &[Row { examples }])
    }

    fn padded(&self) -> MicroBatch {
        let padded: Vec<Example> = self.examples.iter().enumerate().map(pad).collect();
        let rows: Vec<Row> = (0..padded.len()).map(row).collect();
        MicroBatch::new(&padded, &rows)
    }
}

/// Standard deviation of the adapter's numbers: an update that the model feels and bears.
const SIZE: f32 = 0.02;

/// Share of the loss by which it changes along a finite difference.
const CHANGE: f64 = 1e-2;

fn row(example: usize) -> Row {
    Row { examples: vec![example] }
}

/// A record with tokens behind it that teach nothing: as many as its number, and one.
fn pad((number, example): (usize, &Example)) -> Example {
    let mut padded = example.clone();
    padded.tokens.extend(vec![0; number + 1]);
    padded.supervised.extend(vec![false; number + 1]);
    padded
}

fn gradient(session: &mut Session, window: &[MicroBatch]) -> Result<Gradient, Error> {
    let step = session.gradient(window, Draw { seed: 0, stream: 0 })?;
    let mut numbers = vec![0.0f32; session.params.index().len()];
    session.device.download(&session.params.grads, &mut numbers);
    session.device.synchronize()?;
    Ok(Gradient { loss: step.loss, numbers })
}

/// The larger of the scaled distances of losses and gradients.
fn distance(found: &Gradient, usual: &Gradient) -> f64 {
    let of_losses = (found.loss - usual.loss).abs() / usual.loss.abs().max(f64::MIN_POSITIVE);
    of_losses.max(tolerance::scaled_error(&found.numbers, &usual.numbers))
}

fn norm(numbers: &[f32]) -> f64 {
    numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn norm_of_difference(found: &[f32], exact: &[f32]) -> f64 {
    let difference: Vec<f32> = found.iter().zip(exact).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(exact).max(f64::MIN_POSITIVE)
}

/// Some of the tensors with a gradient, from everywhere in the model.
fn sampled<'e>(entries: &'e [Entry], gradient: &Gradient) -> Vec<&'e Entry> {
    let taught = |entry: &&Entry| norm(&gradient.numbers[entry.range.clone()]) > 0.0;
    let taught: Vec<&Entry> = entries.iter().filter(taught).collect();
    let (all, count) = (taught.len(), TENSORS.min(taught.len()));
    // From layer to layer, and each time another map of it.
    (0..count).map(|i| taught[(i * all / count + i * (TENSORS - 1)) % all]).collect()
}
