//! Weights in bitsandbytes' 4-bit layout, written and read.

use std::path::Path;

use qlora_train::checkpoint::bitsandbytes::{
    self, CodeBook, FourBit, NewScales, NewWeight, ScaleKind, Scales, Tables,
};
use qlora_train::checkpoint::tensors::DType;
use qlora_train::checkpoint::weights::Weights;
use qlora_train::checkpoint::writer::{Align, TensorSpec, TensorWriter};
use serde_json::{Value, json};

use crate::{floats, folder, tensor_file};

const CODES: [f32; 16] = [0.0, 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
const DYNAMIC: [f32; 256] = [0.25; 256];
const TABLES: Tables<'static> = Tables { nf4: &CODES, fp4: &CODES, dynamic: &DYNAMIC };

/// Writes a store with one layer of two weights: 64 x 172, whose scale counts are odd.
fn write_store(path: &Path, scales: NewScales<'_>, kind: ScaleKind) {
    let (shape, codes) = ([64, 172], vec![0x5a; 64 * 86]);
    let weight =
        NewWeight { book: CodeBook::Nf4, shape, dtype: DType::BF16, codes: &codes, scales };
    let layer = |n: usize| {
        let mut specs = bitsandbytes::parts(&name(n), shape, DType::BF16, CodeBook::Nf4, kind);
        specs.push(TensorSpec::new(format!("{n}.norm"), DType::BF16, &[64]));
        specs
    };
    fn name(n: usize) -> String {
        format!("{n}.weight")
    }
    let mut writer = TensorWriter::create(path, vec![layer(0), layer(1)], Align::Cache).unwrap();
    for n in 0..2 {
        bitsandbytes::write(&mut writer, &name(n), &weight, TABLES).unwrap();
        writer.write(&format!("{n}.norm"), &[0; 128]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn quantized_weights_come_back_aligned_and_as_they_were() {
    let out = folder(&[]);
    let path = out.path().join("model.safetensors");
    let absmax: Vec<u8> = (0..172).collect();
    let nested =
        NewScales::Nested { absmax: &absmax, nested_absmax: &[3.5], offset: 0.054_918_345 };
    write_store(&path, nested, ScaleKind::Nested);
    let weights = Weights::single(&path).unwrap();
    assert!(FourBit::find(&weights, "0.norm", TABLES).unwrap().is_none());
    for name in ["0.weight", "1.weight"] {
        let found = FourBit::find(&weights, name, TABLES).unwrap().unwrap();
        assert_eq!((found.book, found.shape, found.dtype), (CodeBook::Nf4, [64, 172], DType::BF16));
        assert_eq!(found.codes[..], vec![0x5a; 64 * 86]);
        assert_eq!(found.codes.as_ptr() as usize % 64, 0, "codes of {name}");
        let Scales::Nested { absmax: a, nested_absmax, offset } = found.scales else {
            panic!("plain scales in {name}");
        };
        assert_eq!((&a[..], &nested_absmax[..], offset), (&absmax[..], &[3.5][..], 0.054_918_345));
    }
    let parts = weights.names().filter(|n| bitsandbytes::owner(n) == Some("0.weight"));
    assert_eq!(parts.count(), 5);
}

#[test]
fn plain_scales_come_back_as_they_were() {
    let out = folder(&[]);
    let path = out.path().join("model.safetensors");
    let absmax: Vec<f32> = (0..172_u8).map(f32::from).collect();
    write_store(&path, NewScales::Plain(&absmax), ScaleKind::Plain);
    let weights = Weights::single(&path).unwrap();
    let found = FourBit::find(&weights, "1.weight", TABLES).unwrap().unwrap();
    let Scales::Plain(bytes) = found.scales else {
        panic!("nested scales");
    };
    assert_eq!(bytes[..], floats(&absmax));
}

/// Type, shape and bytes of a tensor that takes another's place.
#[derive(Clone, Copy)]
struct Instead<'a>(DType, &'a [usize], &'a [u8]);

/// A nested 2 x 64 weight of which one part may be replaced.
fn quantized(replace: &str, with: Instead<'_>) -> Vec<u8> {
    let state = good_state().to_string();
    let (codes, dynamic) = (floats(&CODES), floats(&DYNAMIC));
    let state_name = "w.quant_state.bitsandbytes__nf4";
    let mut parts: Vec<(&str, DType, Vec<usize>, &[u8])> = vec![
        ("w", DType::U8, vec![64, 1], &[0; 64]),
        ("w.absmax", DType::U8, vec![2], &[0; 2]),
        ("w.quant_map", DType::F32, vec![16], &codes),
        ("w.nested_absmax", DType::F32, vec![1], &[0; 4]),
        ("w.nested_quant_map", DType::F32, vec![256], &dynamic),
        (state_name, DType::U8, vec![state.len()], state.as_bytes()),
    ];
    for part in parts.iter_mut().filter(|p| p.0 == replace) {
        *part = (part.0, with.0, with.1.to_vec(), with.2);
    }
    let views: Vec<_> = parts.iter().map(|(n, d, s, b)| (*n, *d, &s[..], *b)).collect();
    tensor_file(&views)
}

fn good_state() -> Value {
    json!({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [2, 64],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5})
}

fn find_quantized(bytes: &[u8]) -> Result<Option<FourBit>, String> {
    let model = folder(&[("m.safetensors", bytes)]);
    let weights = Weights::single(&model.path().join("m.safetensors")).unwrap();
    FourBit::find(&weights, "w", TABLES).map_err(|e| e.to_string())
}

#[test]
fn quantized_weights_with_a_wrong_part_are_refused_by_its_name() {
    let good = find_quantized(&quantized("", Instead(DType::U8, &[], &[]))).unwrap().unwrap();
    assert_eq!((good.dtype, good.blocks()), (DType::F16, 2));
    let mut table = CODES;
    table[3] = 3.5;
    let (table, nan) = (floats(&table), floats(&[f32::NAN]));
    let cases: &[(&str, Instead<'_>, &str)] = &[
        ("w", Instead(DType::U8, &[32, 1], &[0; 32]), "tensor w: shape [32, 1], expected [64, 1]"),
        ("w", Instead(DType::F32, &[16, 1], &[0; 64]), "only bnb_4bit_quant_storage uint8"),
        ("w.absmax", Instead(DType::U8, &[3], &[0; 3]), "tensor w.absmax: shape [3], expected [2]"),
        (
            "w.absmax",
            Instead(DType::F32, &[2], &[0; 8]),
            "tensor w.absmax: F32 elements, expected U8",
        ),
        ("w.quant_map", Instead(DType::F32, &[16], &table), "value 3 is 3.5, expected 3"),
        ("w.nested_absmax", Instead(DType::F32, &[2], &[0; 8]), "shape [2], expected [1]"),
        ("w.nested_absmax", Instead(DType::F32, &[1], &nan), "element 0 is NaN"),
        (
            "w.nested_quant_map",
            Instead(DType::F32, &[255], &[0; 1020]),
            "shape [255], expected [256]",
        ),
    ];
    for (part, with, fragment) in cases {
        let message = find_quantized(&quantized(part, *with)).unwrap_err();
        assert!(message.contains(fragment), "{message}");
    }
}

#[test]
fn quantization_states_other_than_ours_are_refused_by_field() {
    let cases = [
        ("blocksize", json!(128), "field blocksize: 128, expected 64"),
        ("quant_type", json!("fp4"), "field quant_type: \"fp4\", expected \"nf4\""),
        ("dtype", json!("float8"), "expected bfloat16, float16 or float32"),
        ("shape", json!([2]), "field shape: [2], expected two sizes"),
        ("shape", json!([u64::MAX, 3]), "expected two sizes"),
        ("shape", json!([0, 64]), "expected two sizes"),
        ("nested_blocksize", json!(128), "field nested_blocksize: 128, expected 256"),
        ("nested_dtype", json!("float16"), "field nested_dtype"),
        ("nested_offset", json!(1e300), "expected a finite number"),
        ("nested_offset", json!(null), "expected a finite number"),
    ];
    for (key, value, fragment) in cases {
        let mut state = good_state();
        state[key] = value;
        let text = state.to_string();
        let part = "w.quant_state.bitsandbytes__nf4";
        let bytes = quantized(part, Instead(DType::U8, &[text.len()], text.as_bytes()));
        let message = find_quantized(&bytes).unwrap_err();
        assert!(message.contains(fragment), "{message}");
    }
    let twice = br#"{"blocksize": 64, "blocksize": 64}"#;
    let bytes =
        quantized("w.quant_state.bitsandbytes__nf4", Instead(DType::U8, &[twice.len()], twice));
    assert!(find_quantized(&bytes).unwrap_err().contains("stands twice"));
}

#[test]
fn only_our_kind_of_quantized_model_passes() {
    let place = qlora_train::error::Place::file("config.json").field("quantization_config");
    let check = |config: &Value| bitsandbytes::check_quantization_config(config, &place);
    let ours =
        bitsandbytes::quantization_config(CodeBook::Nf4, ScaleKind::Nested, false, DType::BF16);
    check(&ours).unwrap();
    for (key, value) in [
        ("quant_method", json!("gptq")),
        ("load_in_4bit", json!(false)),
        ("bnb_4bit_quant_storage", json!("bfloat16")),
    ] {
        let mut other = ours.clone();
        other[key] = value;
        let message = check(&other).unwrap_err().to_string();
        assert!(message.contains(&format!("{key} is ")), "{message}");
    }
}
