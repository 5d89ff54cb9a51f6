//! Inputs of the cases: numbers like those of a model, in more buffers than a cache holds.
//!
//! Patterns and zeros would flatter: a card that toggles fewer wires clocks higher, and a buffer that
//! stays in the second-level cache is read at several times the speed of memory.

use std::f32::consts::TAU;
use std::sync::LazyLock;

use bytemuck::Pod;
use half::bf16;
use qlora_train::device::{Act, Buf, Device, Dtype};
use qlora_train::error::Error;
use qlora_train::quant::{self, Kind};

/// Numbers that are drawn; longer buffers repeat them. Whole groups of 256 scales of 64 weights, and
/// no power of two, so that the rows of a matrix are not all the same.
const DRAWN: usize = 253 * quant::BLOCK * quant::NESTED_BLOCK;

static NORMAL: LazyLock<Vec<f32>> = LazyLock::new(|| (0..DRAWN as u64).map(normal).collect());

static NORMAL_BF16: LazyLock<Vec<bf16>> =
    LazyLock::new(|| NORMAL.iter().map(|x| bf16::from_f32(*x)).collect());

/// [`NORMAL`] as a quantized store has it.
struct Quantized {
    codes: Vec<u8>,
    absmax: Vec<u8>,
    nested_absmax: Vec<f32>,
    offset: f32,
}

static NF4: LazyLock<Quantized> = LazyLock::new(|| {
    let mut codes = vec![0; quant::code_bytes(DRAWN)];
    let mut scales = vec![0.0; quant::blocks(DRAWN)];
    quant::encode(Kind::Nf4, &NORMAL, &mut codes, &mut scales);
    let offset = quant::mean(&scales);
    let mut absmax = vec![0; scales.len()];
    let mut nested_absmax = vec![0.0; quant::nested_blocks(scales.len())];
    quant::encode_scales(&scales, offset, &mut absmax, &mut nested_absmax);
    Quantized { codes, absmax, nested_absmax, offset }
});

/// The `i`-th number: standard normal, from the hash of a counter by Box and Muller.
fn normal(i: u64) -> f32 {
    let hash = hashed(i);
    let uniform = |bits: u64| ((bits & 0xff_ffff) as f32 + 0.5) / (1 << 24) as f32;
    (-2.0 * uniform(hash).ln()).sqrt() * (TAU * uniform(hash >> 32)).cos()
}

/// The finalizer of SplitMix64.
fn hashed(i: u64) -> u64 {
    let x = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `len` normal activations.
pub fn activations(device: &Device, len: usize) -> Result<Act, Error> {
    let mut act = device.alloc_act("bench", len)?;
    repeat(device, bytemuck::cast_slice(&NORMAL_BF16), act.bytes_mut());
    Ok(act)
}

/// `len` normal numbers in single precision.
pub fn floats(device: &Device, len: usize) -> Result<Buf<f32>, Error> {
    repeated(device, &NORMAL, len)
}

/// `len` normal logits, in single precision.
pub fn logits(device: &Device, len: usize) -> Result<Act, Error> {
    let mut act = device.alloc_dense("bench", len, Dtype::F32)?;
    repeat(device, bytemuck::cast_slice(&NORMAL), act.bytes_mut());
    Ok(act)
}

/// Normal weights in four bits, with scales in eight.
pub struct FourBitWeights {
    pub codes: Buf<u8>,
    pub absmax: Buf<u8>,
    pub nested_absmax: Buf<f32>,
    pub offset: f32,
    pub map: Buf<f32>,
}

impl FourBitWeights {
    pub fn new(device: &Device, len: usize) -> Result<Self, Error> {
        let blocks = quant::blocks(len);
        Ok(Self {
            codes: repeated(device, &NF4.codes, quant::code_bytes(len))?,
            absmax: repeated(device, &NF4.absmax, blocks)?,
            nested_absmax: repeated(device, &NF4.nested_absmax, quant::nested_blocks(blocks))?,
            offset: NF4.offset,
            map: uploaded(device, quant::SIGNED.values())?,
        })
    }
}

/// A buffer with these numbers.
pub fn uploaded<T: Pod>(device: &Device, values: &[T]) -> Result<Buf<T>, Error> {
    repeated(device, values, values.len())
}

/// A buffer of `len` numbers: `period`, again and again.
fn repeated<T: Pod>(device: &Device, period: &[T], len: usize) -> Result<Buf<T>, Error> {
    let mut buf = device.alloc("bench", len)?;
    repeat(device, period, &mut buf);
    Ok(buf)
}

fn repeat<T: Pod>(device: &Device, period: &[T], to: &mut Buf<T>) {
    for start in (0..to.len()).step_by(period.len()) {
        let end = to.len().min(start + period.len());
        device.upload_at(&period[..end - start], to, start);
    }
}

/// Buffers of a case, several times over, used in turn.
pub struct Rotation<T> {
    sets: Vec<T>,
    turn: usize,
}

impl<T> Rotation<T> {
    /// As many sets as `make` must be called for until they hold `cold_bytes` together.
    pub fn fill(
        device: &Device,
        cold_bytes: u64,
        mut make: impl FnMut() -> Result<T, Error>,
    ) -> Result<Self, Error> {
        let taken = || device.report().total.current;
        let before = taken();
        let mut sets = vec![make()?];
        while taken() - before < cold_bytes {
            sets.push(make()?);
        }
        Ok(Self { sets, turn: 0 })
    }

    /// The number of launches that use each set once.
    pub fn count(&self) -> usize {
        self.sets.len()
    }

    /// The set whose use is longest ago.
    pub fn oldest(&mut self) -> &mut T {
        self.turn = (self.turn + 1) % self.sets.len();
        &mut self.sets[self.turn]
    }
}
