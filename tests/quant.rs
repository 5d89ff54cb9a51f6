//! `quant` against bitsandbytes 0.50.2, bit for bit: `fixtures/quant.safetensors`, written by
//! `scripts/reference/quant.py`.

use half::bf16;
use qlora_train::quant::{
    self, BLOCK, DoubleQuantized, Dynamic, Kind, SIGNED, UNSIGNED, decode_bf16, decode_f32,
    decode_states, encode, encode_scales, encode_states, mean,
};
use safetensors::{Dtype, SafeTensors};

const CASES: [&str; 17] = [
    "n1",
    "n63",
    "n64",
    "n65",
    "n255",
    "n257",
    "n257_bf16",
    "ties_nf4",
    "ties_fp4",
    "ties_scaled_nf4",
    "ties_scaled_fp4",
    "zero_blocks",
    "all_zero",
    "outlier",
    "tiny",
    "matrix",
    "big",
];

const KINDS: [Kind; 2] = [Kind::Nf4, Kind::Fp4];

#[test]
fn maps_are_those_of_bitsandbytes() {
    let file = Fixture::open();
    for kind in KINDS {
        assert_bits(kind.values(), &file.floats(&format!("map.{}", kind.name())), kind.name());
    }
    assert_bits(SIGNED.values(), &file.floats("map.signed"), "signed");
    assert_bits(UNSIGNED.values(), &file.floats("map.unsigned"), "unsigned");
}

#[test]
fn encoded_bytes_and_scales_are_those_of_bitsandbytes() {
    let file = Fixture::open();
    for (case, kind) in cases_and_kinds() {
        let (codes, scales) = encoded(kind, &file.floats(&format!("{case}.input")));
        let name = kind.name();
        assert_eq!(codes, file.bytes(&format!("{case}.{name}.codes")), "{case}, {name}");
        assert_bits(&scales, &file.floats(&format!("{case}.absmax")), case);
    }
}

#[test]
fn double_quantized_scales_are_those_of_bitsandbytes() {
    let file = Fixture::open();
    for case in CASES {
        let scales = file.floats(&format!("{case}.absmax"));
        let offset = mean(&scales);
        assert_bits(&[offset], &file.floats(&format!("{case}.nested.offset")), case);
        let mut codes = vec![0; scales.len()];
        let mut nested = vec![0.0; quant::nested_blocks(scales.len())];
        encode_scales(&scales, offset, &mut codes, &mut nested);
        assert_eq!(codes, file.bytes(&format!("{case}.nested.codes")), "{case}");
        assert_bits(&nested, &file.floats(&format!("{case}.nested.absmax")), case);
    }
}

#[test]
fn decoded_values_are_those_of_bitsandbytes() {
    let file = Fixture::open();
    let mut compared = 0;
    for (case, kind) in cases_and_kinds() {
        let prefix = format!("{case}.{}", kind.name());
        let codes = file.bytes(&format!("{prefix}.codes"));
        let scales = file.floats(&format!("{case}.absmax"));
        let nested_codes = file.bytes(&format!("{case}.nested.codes"));
        let nested_absmax = file.floats(&format!("{case}.nested.absmax"));
        let double = DoubleQuantized {
            codes: &nested_codes,
            nested_absmax: &nested_absmax,
            offset: file.floats(&format!("{case}.nested.offset"))[0],
            map: SIGNED.values(),
        };
        compared += file.compare_decoded(&prefix, kind, &codes, |block| scales[block]);
        let prefix = format!("{prefix}.nested");
        compared += file.compare_decoded(&prefix, kind, &codes, |block| double.scale(block));
    }
    assert!(compared >= 100, "only {compared} arrays were there to compare");
}

#[test]
fn optimizer_states_fall_on_the_nearest_entry() {
    let file = Fixture::open();
    for (name, map) in [("signed", &SIGNED), ("unsigned", &UNSIGNED)] {
        let array = |part: &str| file.floats(&format!("blockwise.{name}.{part}"));
        let input = array("input");
        let (codes, scales, back) = states(map, &input);
        assert_eq!(codes, file.bytes(&format!("blockwise.{name}.codes")), "{name}");
        assert_bits(&scales, &array("absmax"), name);
        assert_bits(&back, &array("f32"), name);
    }
}

/// Mean absolute error of NF4 on N(0, 1), which bitsandbytes' own tests expect to be 0.072798 at
/// block 64 with a standard deviation of 0.00008 over samples of 1024² values.
#[test]
fn nf4_loses_as_much_of_a_normal_distribution_as_the_reference_does() {
    let values = normal(1 << 20);
    let (codes, scales) = encoded(Kind::Nf4, &values);
    let mut back = vec![0.0; values.len()];
    decode_f32(Kind::Nf4, &codes, |block| scales[block], 0, &mut back);
    let sum: f64 = values.iter().zip(&back).map(|(a, b)| f64::from((a - b).abs())).sum();
    let error = sum / values.len() as f64;
    assert!((error - 0.072798).abs() < 7.0 * 0.00008, "mean absolute error {error}");
}

fn cases_and_kinds() -> impl Iterator<Item = (&'static str, Kind)> {
    CASES.into_iter().flat_map(|case| KINDS.map(|kind| (case, kind)))
}

fn encoded(kind: Kind, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0; quant::code_bytes(values.len())];
    let mut scales = vec![0.0; values.len().div_ceil(BLOCK)];
    encode(kind, values, &mut codes, &mut scales);
    (codes, scales)
}

fn states(map: &Dynamic, values: &[f32]) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let mut codes = vec![0; values.len()];
    let mut scales = vec![0.0; values.len().div_ceil(quant::STATE_BLOCK)];
    encode_states(map, values, &mut codes, &mut scales);
    let mut back = vec![0.0; values.len()];
    decode_states(map, &codes, &scales, &mut back);
    (codes, scales, back)
}

/// Standard normal values by Box and Muller, from a linear congruential generator.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 20_230_523_u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    let mut draw = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..n).map(|_| draw() as f32).collect()
}

fn assert_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.to_bits(), expected.to_bits(), "{what}[{i}]: {got:e}, not {expected:e}");
    }
}

/// bitsandbytes reads FP4's code 8 as +0 in some of its CPU paths and as -0 in others.
fn positive_zeros(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| x + 0.0).collect()
}

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quant.safetensors");
        Self(std::fs::read(path).expect(path))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file")
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).expect(name).data().to_vec()
    }

    /// An f32 or bf16 array, in f32.
    fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect(name);
        let bytes = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => panic!("{name} is {other:?}"),
        }
    }

    /// Decodes as many values as `{prefix}.f32` and `{prefix}.bf16` have; returns how many of the two
    /// the file has (the long cases have not all).
    fn compare_decoded(
        &self,
        prefix: &str,
        kind: Kind,
        codes: &[u8],
        scale_of: impl Fn(usize) -> f32,
    ) -> usize {
        let mut compared = 0;
        let there = |name: &str| self.tensors().tensor(name).is_ok().then(|| self.floats(name));
        if let Some(expected) = there(&format!("{prefix}.f32")) {
            let mut got = vec![f32::NAN; expected.len()];
            decode_f32(kind, codes, &scale_of, 0, &mut got);
            assert_bits(&positive_zeros(&got), &positive_zeros(&expected), prefix);
            compared += 1;
        }
        if let Some(expected) = there(&format!("{prefix}.bf16")) {
            let mut got = vec![bf16::NAN; expected.len()];
            decode_bf16(kind, codes, &scale_of, 0, &mut got);
            let got: Vec<f32> = got.iter().map(|x| x.to_f32()).collect();
            assert_bits(&positive_zeros(&got), &positive_zeros(&expected), prefix);
            compared += 1;
        }
        compared
    }
}
