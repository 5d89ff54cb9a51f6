//! Inverted dropout: a number is set to zero with probability p, and divided by 1 − p otherwise.
//!
//! Nothing is kept for the backward pass: whether element e = row·cols + col stays is drawn from
//! its position, so that the same call on dy gives the gradient. The draw is word e mod 4 of
//! Philox4x32-10 with the seed as its key and (e / 4, stream) as its counter, each 64 bits, the
//! lower half first (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

use super::element::{Element, Real, per_simd, with_element};
use super::tasks::for_each_piece;
use super::{Write, slice, slice_mut};
use crate::device::{Address, Cpu, Device, Dtype, Grid, Kernel, Mat, MatMut, Queue, ScratchMemory};
use crate::error::Error;
use crate::ffi;

/// Which random numbers decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Draw {
    /// The seed of the run.
    pub seed: u64,
    /// The place in the run: another one for every step, micro-batch and layer.
    pub stream: u64,
}

/// Parameters of the kernel `dropout`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    x: Address,
    out: Address,
    rows: u64,
    cols: u64,
    x_stride: u64,
    out_stride: u64,
    draw: Draw,
    /// 1/(1 − p).
    scale: f64,
    /// A number whose draw is below this one is dropped: p·2³².
    threshold: u32,
    write: Write,
    dtype: Dtype,
}

/// out [rows, cols] (=|+=) x·mask/(1 − p), p in [0, 1).
pub fn dropout(device: &Device, x: Mat, draw: Draw, p: f32, out: MatMut, write: Write) {
    assert_eq!((out.rows, out.cols, out.dtype), (x.rows, x.cols, x.dtype), "out must be like x");
    assert!((0.0..1.0).contains(&p), "the probability {p} of [0, 1)");
    let p = f64::from(p);
    let kernel = Params {
        x: x.address,
        out: out.address,
        rows: x.rows as u64,
        cols: x.cols as u64,
        x_stride: x.stride as u64,
        out_stride: out.stride as u64,
        draw,
        scale: 1.0 / (1.0 - p),
        threshold: (p * 2f64.powi(32)) as u32,
        write,
        dtype: x.dtype,
    };
    // SAFETY: the shapes agree, and the borrows keep them valid.
    unsafe { device.launch(kernel) }
}

// SAFETY: touches rows of the stated widths and strides only; a task owns its piece of a row.
unsafe impl Kernel for Params {
    const NAME: &'static str = "dropout";

    unsafe fn run_on_cpu(&self, cpu: &Cpu, _: ScratchMemory) {
        with_element!(self.dtype, dropout_on_cpu(self, cpu));
    }

    unsafe fn run_on_gpu(&self, queue: &Queue) -> Result<(), Error> {
        queue.require_bf16(Self::NAME, self.dtype)?;
        let params = ffi::Dropout {
            x: self.x.number(),
            out: self.out.number(),
            rows: self.rows,
            cols: self.cols,
            x_stride: self.x_stride,
            out_stride: self.out_stride,
            seed: self.draw.seed,
            stream: self.draw.stream,
            threshold: self.threshold,
            scale: self.scale as f32,
            add: self.write as u32,
        };
        // Four numbers to a thread.
        let blocks = ((self.rows * self.cols) as usize).div_ceil(4 * 256);
        // SAFETY: passed on from the caller.
        unsafe { queue.launch(Self::NAME, Grid::row(blocks), &params) }
    }
}

fn dropout_on_cpu<E: Element>(p: &Params, cpu: &Cpu) {
    let cols = p.cols as usize;
    for_each_piece(cpu, p.rows as usize, cols, |row, columns| {
        let start = |stride: u64| row * stride as usize + columns.start;
        // SAFETY: the caller of `run_on_cpu` vouches for x and out; a task owns its piece.
        let (x, out) = unsafe {
            (
                slice::<E>(p.x, start(p.x_stride), columns.len()),
                slice_mut::<E>(p.out, start(p.out_stride), columns.len()),
            )
        };
        thin(cpu.simd(), x, p, row * cols + columns.start, out);
    });
}

/// Counters that are turned at once.
const LANES: usize = 16;

/// Numbers that one turn decides on.
const BATCH: usize = 4 * LANES;

per_simd! {
    /// `first` is the position of x[0].
    fn thin<E: Element>(x: &[E], p: &Params, first: usize, out: &mut [E]) {
        let scale = E::Real::from_f64(p.scale);
        let end = first + x.len();
        for batch in (first - first % BATCH..end).step_by(BATCH) {
            let words = words(p.draw, batch as u64 / 4);
            let (start, stop) = (batch.max(first), end.min(batch + BATCH));
            let words = &words[start - batch..stop - batch];
            let (x, out) = (&x[start - first..stop - first], &mut out[start - first..stop - first]);
            for ((out, x), word) in out.iter_mut().zip(x).zip(words) {
                let factor = if *word < p.threshold { E::Real::ZERO } else { scale };
                p.write.put(out, x.real() * factor);
            }
        }
    }
}

/// The words of [`LANES`] counters from `counter` on, in the order of positions.
#[inline(always)]
fn words(draw: Draw, counter: u64) -> [u32; BATCH] {
    let counters = std::array::from_fn::<u64, LANES, _>(|lane| counter + lane as u64);
    let mut lanes = [
        counters.map(|counter| counter as u32),
        counters.map(high),
        [draw.stream as u32; LANES],
        [high(draw.stream); LANES],
    ];
    philox(&mut lanes, [draw.seed as u32, high(draw.seed)]);
    std::array::from_fn(|position| lanes[position % 4][position / 4])
}

#[inline(always)]
fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Philox4x32-10 on `N` counters side by side, so that a vector unit turns them together.
#[inline(always)]
fn philox<const N: usize>(counters: &mut [[u32; N]; 4], key: [u32; 2]) {
    let [c0, c1, c2, c3] = counters;
    for round in 0..10u32 {
        let key0 = key[0].wrapping_add(round.wrapping_mul(0x9E37_79B9));
        let key1 = key[1].wrapping_add(round.wrapping_mul(0xBB67_AE85));
        for i in 0..N {
            let product0 = u64::from(c0[i]) * 0xD251_1F53;
            let product2 = u64::from(c2[i]) * 0xCD9E_8D57;
            c0[i] = high(product2) ^ c1[i] ^ key0;
            c1[i] = product2 as u32;
            c2[i] = high(product0) ^ c3[i] ^ key1;
            c3[i] = product0 as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::normal;
    use crate::ops::host::{LENGTHS, act, assert_same_for_any_thread_count, devices, values};

    const DRAW: Draw = Draw { seed: 0x1234_5678_9abc_def0, stream: 0xfedc_ba98_7654_3210 };

    fn run(device: &Device, x: &[f64], rows: usize, draw: Draw, p: f32) -> Vec<f64> {
        let cols = x.len() / rows;
        let x = act(device, device.dtype(), x);
        let mut out = device.alloc_act("out", rows * cols).unwrap();
        dropout(device, x.view(rows, cols), draw, p, out.view_mut(rows, cols), Write::Set);
        values(device, &out)
    }

    /// Known answers of the Random123 library.
    #[test]
    fn philox_gives_the_published_words() {
        let ones = u32::MAX;
        let known: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in known {
            let mut counters = counter.map(|word| [word]);
            philox(&mut counters, key);
            assert_eq!(counters.map(|[word]| word), expected);
        }
    }

    #[test]
    fn every_length_and_instruction_set_draws_the_word_of_the_position() {
        for device in devices(Dtype::F32) {
            for len in LENGTHS {
                let found = run(&device, &vec![1.0; 3 * len], 3, DRAW, 0.25);
                let expected: Vec<f64> = (0..3 * len as u64)
                    .map(|position| {
                        let mut counter =
                            [position / 4, 0, DRAW.stream, DRAW.stream >> 32].map(|c| [c as u32]);
                        philox(&mut counter, [DRAW.seed as u32, high(DRAW.seed)]);
                        let kept = counter[position as usize % 4][0] >= 1 << 30;
                        if kept { f64::from(4.0f32 / 3.0) } else { 0.0 }
                    })
                    .collect();
                assert_eq!(found, expected, "{len}");
            }
        }
    }

    #[test]
    fn the_share_of_dropped_numbers_is_p_and_the_mean_stays() {
        let device = Device::cpu(2, Dtype::F32, u64::MAX);
        let count = 400_000;
        for p in [0.05f32, 0.5, 0.9] {
            let out = run(&device, &vec![1.0; count], 8, DRAW, p);
            let dropped = out.iter().filter(|x| **x == 0.0).count() as f64 / count as f64;
            let deviation = (f64::from(p) * f64::from(1.0 - p) / count as f64).sqrt();
            assert!((dropped - f64::from(p)).abs() < 4.0 * deviation, "{p}: {dropped}");
            let mean = out.iter().sum::<f64>() / count as f64;
            let allowed = 4.0 * deviation / f64::from(1.0 - p);
            assert!((mean - 1.0).abs() < allowed, "{p}: mean {mean}");
        }
    }

    #[test]
    fn the_backward_pass_drops_what_the_forward_pass_dropped() {
        let device = Device::cpu(2, Dtype::Bf16, u64::MAX);
        let (x, dy) = (vec![1.0; 5 * 333], normal(1, 5 * 333).collect::<Vec<_>>());
        let forward = run(&device, &x, 5, DRAW, 0.3);
        let backward = run(&device, &dy, 5, DRAW, 0.3);
        assert!(forward.iter().zip(&backward).all(|(y, dx)| (*y == 0.0) == (*dx == 0.0)));
    }

    #[test]
    fn another_stream_or_seed_draws_another_mask() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let mask = |draw| run(&device, &[1.0; 256], 1, draw, 0.5);
        let Draw { seed, stream } = DRAW;
        for bit in [0, 32, 63] {
            assert_ne!(mask(DRAW), mask(Draw { seed, stream: stream ^ 1 << bit }), "stream {bit}");
            assert_ne!(mask(DRAW), mask(Draw { seed: seed ^ 1 << bit, stream }), "seed {bit}");
        }
    }

    #[test]
    fn without_probability_nothing_is_dropped() {
        let device = Device::cpu(1, Dtype::F32, u64::MAX);
        let x: Vec<f64> = (0..5000).map(f64::from).collect();
        assert_eq!(run(&device, &x, 1, DRAW, 0.0), x);
    }

    #[test]
    fn a_strided_sum_adds_the_dense_result() {
        let device = Device::cpu(2, Dtype::F64, u64::MAX);
        let numbers: Vec<f64> = normal(1, 4 * 9).collect();
        let x = act(&device, Dtype::F64, &numbers);
        let mut out = act(&device, Dtype::F64, &[1.0; 4 * 8]);
        let view = out.view_mut(4, 8).columns(1..6);
        dropout(&device, x.view(4, 9).columns(3..8), DRAW, 0.4, view, Write::Add);
        let inner: Vec<f64> = numbers.chunks_exact(9).flat_map(|row| row[3..8].to_vec()).collect();
        let dense = run(&device, &inner, 4, DRAW, 0.4);
        for (i, found) in values(&device, &out).into_iter().enumerate() {
            let (row, col) = (i / 8, i % 8);
            let added = if (1..6).contains(&col) { dense[row * 5 + col - 1] } else { 0.0 };
            assert_eq!(found, 1.0 + added, "{row}, {col}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() {
        let x: Vec<f64> = normal(1, 3 * 20_001).collect();
        assert_same_for_any_thread_count(Dtype::F32, |device| run(device, &x, 3, DRAW, 0.1));
    }
}
