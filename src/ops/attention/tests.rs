use super::{Attention, Heads, Saved, Segment, backward, forward, lse_dtype};
use crate::device::{Device, Dtype, Simd};
use crate::ops::check::{download, gradient_error, normal, scaled_error, to_bf16, upload};

/// What to compute: heads, segments as (queries, keys), window and cap.
#[derive(Clone)]
struct Case {
    heads: Heads,
    segments: Vec<(usize, usize)>,
    window: Option<usize>,
    soft_cap: Option<f32>,
}

/// Everything that comes out of a case, as flat rows.
#[derive(Clone, Default, PartialEq, Debug)]
struct Outcome {
    o: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

const SCALE: f32 = 0.25;

fn case(heads: [usize; 3], lengths: &[usize]) -> Case {
    let [heads, kv_heads, head_dim] = heads;
    Case {
        heads: Heads { heads, kv_heads, head_dim },
        segments: lengths.iter().map(|len| (*len, *len)).collect(),
        window: None,
        soft_cap: None,
    }
}

impl Case {
    fn with(self, window: Option<usize>, soft_cap: Option<f32>) -> Self {
        Self { window, soft_cap, ..self }
    }

    fn rows(&self) -> (usize, usize) {
        self.segments.iter().fold((0, 0), |(q, k), segment| (q + segment.0, k + segment.1))
    }

    fn widths(&self) -> (usize, usize) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        (heads * head_dim, kv_heads * head_dim)
    }

    fn located(&self) -> Vec<Segment> {
        let (mut q_start, mut k_start) = (0, 0);
        let mut located = Vec::new();
        for (q_len, k_len) in self.segments.iter().map(|(q, k)| (*q as u32, *k as u32)) {
            located.push(Segment { q_start, q_len, k_start, k_len });
            (q_start, k_start) = (q_start + q_len, k_start + k_len);
        }
        located
    }

    /// q, k, v and dO, exact in bf16.
    fn inputs(&self) -> [Vec<f64>; 4] {
        let ((q_rows, k_rows), (q_width, k_width)) = (self.rows(), self.widths());
        let numbers = |seed, count| normal(seed, count).map(to_bf16).collect();
        [
            numbers(1, q_rows * q_width),
            numbers(2, k_rows * k_width),
            numbers(3, k_rows * k_width),
            numbers(4, q_rows * q_width),
        ]
    }
}

/// Runs forward and backward on `device`, with q, k and v (and their gradients) side by side in
/// one buffer where there are as many queries as keys.
fn run(device: &Device, case: &Case, [q, k, v, d_o]: &[Vec<f64>; 4]) -> Outcome {
    let (rows, (q_width, k_width)) = (case.rows().0, case.widths());
    assert_eq!(case.rows(), (rows, rows), "as many keys as queries");
    let width = q_width + 2 * k_width;
    let mut fused = Vec::new();
    for row in 0..rows {
        fused.extend_from_slice(&q[row * q_width..][..q_width]);
        fused.extend_from_slice(&k[row * k_width..][..k_width]);
        fused.extend_from_slice(&v[row * k_width..][..k_width]);
    }
    let dtype = device.dtype();
    let qkv = upload(device, &fused, dtype);
    let mut gradient = upload(device, &vec![f64::NAN; rows * width], dtype);
    let mut o = upload(device, &vec![f64::NAN; rows * q_width], dtype);
    let mut lse = upload(device, &vec![f64::NAN; rows * case.heads.heads], lse_dtype(dtype));
    with_attention(device, case, |attention| {
        let qkv = qkv.view(rows, width);
        let q = qkv.columns(0..q_width);
        let k = qkv.columns(q_width..q_width + k_width);
        let v = qkv.columns(q_width + k_width..width);
        let heads = case.heads.heads;
        forward(device, attention, q, k, v, o.view_mut(rows, q_width), lse.view_mut(rows, heads));
        let saved = Saved { q, k, v, o: o.view(rows, q_width), lse: lse.view(rows, heads) };
        let d_o = upload(device, d_o, dtype);
        let (dq, dkv) = gradient.view_mut(rows, width).split_columns(q_width);
        let (dk, dv) = dkv.split_columns(k_width);
        backward(device, attention, saved, d_o.view(rows, q_width), dq, dk, dv);
    });
    device.synchronize().unwrap();
    let gradient = download(device, &gradient);
    let columns = |start: usize, count: usize| {
        gradient.chunks(width).flat_map(|row| row[start..start + count].to_vec()).collect()
    };
    Outcome {
        o: download(device, &o),
        dq: columns(0, q_width),
        dk: columns(q_width, k_width),
        dv: columns(q_width + k_width, k_width),
    }
}

/// Only the output, for any count of keys.
fn run_forward(device: &Device, case: &Case, [q, k, v, _]: &[Vec<f64>; 4]) -> Vec<f64> {
    let ((q_rows, k_rows), (q_width, k_width)) = (case.rows(), case.widths());
    let dtype = device.dtype();
    let [q, k, v] = [q, k, v].map(|numbers| upload(device, numbers, dtype));
    let mut o = upload(device, &vec![f64::NAN; q_rows * q_width], dtype);
    let mut lse = upload(device, &vec![f64::NAN; q_rows * case.heads.heads], lse_dtype(dtype));
    with_attention(device, case, |attention| {
        let [k, v] = [&k, &v].map(|mat| mat.view(k_rows, k_width));
        let lse = lse.view_mut(q_rows, case.heads.heads);
        forward(device, attention, q.view(q_rows, q_width), k, v, o.view_mut(q_rows, q_width), lse);
    });
    download(device, &o)
}

fn with_attention(device: &Device, case: &Case, run: impl FnOnce(&Attention)) {
    let located = case.located();
    let mut segments = device.alloc("segments", located.len()).unwrap();
    device.upload(&located, &mut segments);
    run(&Attention {
        heads: case.heads,
        scale: SCALE,
        window: case.window,
        soft_cap: case.soft_cap,
        segments: &segments,
        segment_count: located.len(),
        longest: case.segments.iter().map(|segment| segment.0).max().unwrap(),
    });
}

/// The textbook: every score of every pair, in f64, each intermediate number through `round`.
fn textbook(case: &Case, [q, k, v, d_o]: &[Vec<f64>; 4], round: fn(f64) -> f64) -> Outcome {
    let Heads { heads, kv_heads, head_dim } = case.heads;
    let (q_width, k_width) = case.widths();
    let mut out = Outcome {
        o: vec![0.0; q.len()],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; k.len()],
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for segment in case.located() {
        for (head, i) in (0..heads).flat_map(|h| (0..segment.q_len as usize).map(move |i| (h, i))) {
            let at_q = (segment.q_start as usize + i) * q_width + head * head_dim;
            let kv_head = head / (heads / kv_heads);
            let at_k = |j: usize| (segment.k_start as usize + j) * k_width + kv_head * head_dim;
            let position = (segment.k_len - segment.q_len) as usize + i;
            let seen: Vec<usize> =
                (0..=position).filter(|j| case.window.is_none_or(|w| position - j < w)).collect();
            let (query, d_o) = (&q[at_q..at_q + head_dim], &d_o[at_q..at_q + head_dim]);
            let s = |j: &usize| {
                let z = dot(query, &k[at_k(*j)..][..head_dim]) * f64::from(SCALE);
                let cap = case.soft_cap.map(f64::from);
                round(cap.map_or(z, |cap| cap * (z / cap).tanh()))
            };
            let s: Vec<f64> = seen.iter().map(s).collect();
            let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = s.iter().map(|s| (s - max).exp()).sum();
            let p: Vec<f64> = s.iter().map(|s| round((s - max).exp() / sum)).collect();
            let dp: Vec<f64> =
                seen.iter().map(|j| round(dot(d_o, &v[at_k(*j)..][..head_dim]))).collect();
            let delta = dot(&p, &dp);
            for (n, j) in seen.iter().enumerate() {
                let slope = case.soft_cap.map_or(1.0, |cap| 1.0 - (s[n] / f64::from(cap)).powi(2));
                let ds = round(p[n] * (dp[n] - delta) * slope) * f64::from(SCALE);
                for d in 0..head_dim {
                    out.o[at_q + d] += p[n] * v[at_k(*j) + d];
                    out.dq[at_q + d] += ds * k[at_k(*j) + d];
                    out.dk[at_k(*j) + d] += ds * query[d];
                    out.dv[at_k(*j) + d] += p[n] * d_o[d];
                }
            }
        }
    }
    for numbers in [&mut out.o, &mut out.dq, &mut out.dk, &mut out.dv] {
        numbers.iter_mut().for_each(|x| *x = round(*x));
    }
    out
}

/// Scaled errors of o, dq, dk and dv.
fn errors(a: &Outcome, b: &Outcome) -> [f64; 4] {
    [(&a.o, &b.o), (&a.dq, &b.dq), (&a.dk, &b.dk), (&a.dv, &b.dv)].map(|(a, b)| scaled_error(a, b))
}

/// Every kind of head, and lengths at both sides of every block edge.
fn cases() -> Vec<Case> {
    vec![
        case([4, 2, 16], &[1, 63, 64, 65]),
        case([7, 1, 5], &[130]),
        case([2, 2, 1], &[3, 70]),
        case([3, 3, 80], &[66]).with(Some(7), None),
        case([2, 1, 96], &[129]).with(Some(64), Some(1.5)),
        case([14, 2, 64], &[40, 20]).with(None, Some(30.0)),
        case([2, 1, 128], &[67]),
        case([2, 1, 256], &[65]).with(Some(65), None),
        case([9, 1, 33], &[17]),
    ]
}

#[test]
fn gradient_equals_finite_differences_in_f64() {
    let device = Device::cpu(2, Dtype::F64, u64::MAX);
    let small = case([4, 2, 5], &[6, 3]);
    for case in [
        small.clone(),
        small.clone().with(Some(3), None),
        small.with(Some(4), Some(0.7)),
        case([2, 1, 3], &[67]).with(Some(20), None),
    ] {
        let [q, k, v, _] = case.inputs();
        let flat = [q.clone(), k.clone(), v.clone()].concat();
        let inputs = |x: &[f64], d_o: &[f64]| {
            let (x, v) = x.split_at(q.len() + k.len());
            let (q, k) = x.split_at(q.len());
            [q, k, v, d_o].map(<[f64]>::to_vec)
        };
        let error = gradient_error(
            &flat,
            |x| run_forward(&device, &case, &inputs(x, &q)),
            |x, d_o| {
                let Outcome { dq, dk, dv, .. } = run(&device, &case, &inputs(x, d_o));
                [dq, dk, dv].concat()
            },
        );
        assert!(error < 1e-7, "{:?} {:?}: {error}", case.heads, case.segments);
    }
}

#[test]
fn every_element_and_instruction_set_agrees_with_the_textbook() {
    for case in cases() {
        let inputs = case.inputs();
        let exact = textbook(&case, &inputs, |x| x);
        for simd in Simd::available() {
            for (dtype, bound) in [(Dtype::F64, 1e-12), (Dtype::F32, 1e-5)] {
                let device = Device::cpu_with(2, simd, dtype, u64::MAX);
                let errors = errors(&run(&device, &case, &inputs), &exact);
                assert!(
                    errors.iter().all(|error| *error < bound),
                    "{simd:?} {dtype:?} {:?} {:?}: {errors:?}",
                    case.heads,
                    case.segments
                );
            }
        }
    }
}

#[test]
fn bf16_is_as_good_as_plain_bf16_arithmetic() {
    let device = Device::cpu(2, Dtype::Bf16, u64::MAX);
    for case in cases() {
        let inputs = case.inputs();
        let exact = textbook(&case, &inputs, |x| x);
        let plain = errors(&textbook(&case, &inputs, to_bf16), &exact);
        let ours = errors(&run(&device, &case, &inputs), &exact);
        for ((ours, plain), factor) in ours.into_iter().zip(plain).zip([2.0, 3.0, 3.0, 3.0]) {
            assert!(
                ours <= factor * plain && ours < 0.02,
                "{:?} {:?}: {ours} where plain bf16 has {plain}",
                case.heads,
                case.segments
            );
        }
    }
}

#[test]
fn thread_count_changes_no_bit() {
    for case in [case([7, 1, 20], &[70, 5, 130]), case([4, 4, 16], &[100])] {
        let inputs = case.inputs();
        let on = |threads| run(&Device::cpu(threads, Dtype::F32, u64::MAX), &case, &inputs);
        let alone = on(1);
        for threads in [2, 3, 8] {
            assert!(on(threads) == alone, "{threads} threads differ from one");
        }
    }
}

#[test]
fn records_packed_together_equal_each_alone() {
    let device = Device::cpu(2, Dtype::F32, u64::MAX);
    let lengths = [63, 1, 130, 64];
    let together = case([6, 2, 20], &lengths).with(Some(100), None);
    let inputs = together.inputs();
    let packed = run(&device, &together, &inputs);
    let (q_width, k_width) = together.widths();
    let mut start = 0;
    for len in lengths {
        let alone = case([6, 2, 20], &[len]).with(Some(100), None);
        let cut = |x: &[f64], width: usize| x[start * width..][..len * width].to_vec();
        let [q, k, v, d_o] = &inputs;
        let own = [cut(q, q_width), cut(k, k_width), cut(v, k_width), cut(d_o, q_width)];
        let expected = Outcome {
            o: cut(&packed.o, q_width),
            dq: cut(&packed.dq, q_width),
            dk: cut(&packed.dk, k_width),
            dv: cut(&packed.dv, k_width),
        };
        assert!(run(&device, &alone, &own) == expected, "record of {len} at {start}");
        start += len;
    }
}

#[test]
fn later_tokens_change_nothing_before_them() {
    let device = Device::cpu(1, Dtype::F32, u64::MAX);
    let case = case([2, 1, 8], &[130]);
    let (q_width, k_width) = case.widths();
    let before = run_forward(&device, &case, &case.inputs());
    for token in [1, 63, 64, 100] {
        let mut inputs = case.inputs();
        inputs[0][token * q_width..].fill(3.0);
        inputs[1][token * k_width..].fill(-3.0);
        inputs[2][token * k_width..].fill(5.0);
        let after = run_forward(&device, &case, &inputs);
        assert_eq!(before[..token * q_width], after[..token * q_width], "token {token}");
        assert_ne!(before[token * q_width..], after[token * q_width..], "token {token}");
    }
}

#[test]
fn queries_behind_cached_keys_equal_those_of_the_whole_record() {
    let device = Device::cpu(2, Dtype::F32, u64::MAX);
    for (window, total, queries) in [(None, 131, 1), (None, 130, 70), (Some(40), 140, 3)] {
        let whole = case([4, 2, 24], &[total]).with(window, None);
        let mut inputs = whole.inputs();
        let expected = run_forward(&device, &whole, &inputs);
        let cached = Case { segments: vec![(queries, total)], ..whole };
        let skipped = (total - queries) * cached.widths().0;
        inputs[0].drain(..skipped);
        let got = run_forward(&device, &cached, &inputs);
        assert_eq!(got, expected[skipped..], "{queries} queries behind {total} keys");
    }
}

/// The gradients at q and k are differences of nearly equal numbers here: they need only be numbers.
#[test]
fn great_scores_do_not_overflow() {
    let device = Device::cpu(1, Dtype::F32, u64::MAX);
    let case = case([1, 1, 4], &[66]);
    let mut inputs = case.inputs();
    inputs[0].iter_mut().for_each(|q| *q *= 64.0);
    inputs[1].iter_mut().for_each(|k| *k *= 64.0);
    let got = run(&device, &case, &inputs);
    let [o, dq, dk, dv] = errors(&got, &textbook(&case, &inputs, |x| x));
    assert!(o < 1e-5 && dv < 1e-5, "o {o}, dv {dv}");
    assert!(dq < 0.1 && dk < 0.1, "dq {dq}, dk {dk}");
}

#[test]
#[should_panic(expected = "share queries")]
fn records_that_overlap_are_refused() {
    let device = Device::cpu(1, Dtype::F32, u64::MAX);
    let act = upload(&device, &[0.0; 8], Dtype::F32);
    let [mut o, mut lse] = [(); 2].map(|()| upload(&device, &[0.0; 8], Dtype::F32));
    let mut segments = device.alloc("segments", 2).unwrap();
    let segment = |start| Segment { q_start: start, q_len: 2, k_start: start, k_len: 2 };
    device.upload(&[segment(0), segment(1)], &mut segments);
    let attention = Attention {
        heads: Heads { heads: 1, kv_heads: 1, head_dim: 1 },
        scale: SCALE,
        window: None,
        soft_cap: None,
        segments: &segments,
        segment_count: 2,
        longest: 2,
    };
    let [q, k, v] = [act.view(8, 1); 3];
    forward(&device, &attention, q, k, v, o.view_mut(8, 1), lse.view_mut(8, 1));
}
