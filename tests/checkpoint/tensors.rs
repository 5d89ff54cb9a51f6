//! Tensor files and shards: damaged ones, and the numbers of good ones.

use qlora_train::checkpoint::tensors::{DType, TensorFile};
use qlora_train::checkpoint::weights::Weights;
use serde_json::json;

use crate::{floats, folder, one_weight, tensor_file};

#[test]
fn damaged_tensor_files_are_refused_when_opened() {
    let whole = one_weight();
    let long = [&whole[..], b"x"].concat();
    let lfs: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";
    let cases: &[(&[u8], &str)] = &[
        (b"", "is empty"),
        (b"1234567", "too few"),
        (b"Entry not found", "not a tensor file"),
        (&whole[..whole.len() - 1], "cut off"),
        (&whole[..20], "cut off"),
        (&long, "too long"),
        (lfs, "git lfs pull"),
        (b"{\"w\": 1}", "is JSON text"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "is a GGUF file"),
    ];
    for (bytes, fragment) in cases {
        let folder = folder(&[("m.safetensors", bytes)]);
        let path = folder.path().join("m.safetensors");
        let message = TensorFile::open(&path).unwrap_err().to_string();
        assert!(message.starts_with(path.to_str().unwrap()), "{message}");
        assert!(message.contains(fragment), "{message}");
    }
    let scratch = folder(&[]);
    let message = TensorFile::open(scratch.path()).unwrap_err().to_string();
    assert!(message.contains("is a folder"), "{message}");
}

#[test]
fn an_index_cannot_lead_outside_the_folder_or_to_nothing() {
    let outside = folder(&[("w.safetensors", &one_weight())]);
    let absolute = outside.path().join("w.safetensors");
    let up = format!("../{}/w.safetensors", outside.path().file_name().unwrap().to_str().unwrap());
    let cases = [
        (json!({"weight_map": {"w": absolute.to_str().unwrap()}}), "not a plain file name"),
        (json!({"weight_map": {"w": up}}), "not a plain file name"),
        (json!({"weight_map": {"w": ".."}}), "not a plain file name"),
        (json!({"weight_map": {"w": "x\\a.safetensors"}}), "not a plain file name"),
        (json!({"weight_map": {"w": ""}}), "not a plain file name"),
        (json!({"weight_map": {"w": "a.bin"}}), "not a .safetensors file"),
        (json!({"weight_map": {"w": 3}}), "expected a string"),
        (
            json!({"weight_map": {"w": "gone.safetensors"}}),
            "names the shard gone.safetensors, which is missing",
        ),
        (json!({"weight_map": {"v": "a.safetensors"}}), "tensor v: is not in"),
        (json!({"weight_map": {}}), "no tensor is named"),
        (json!({"weight_map": []}), "expected an object of file names as weight_map"),
        (json!({}), "missing field `weight_map`"),
        (json!([]), "line 1: column"),
    ];
    for (index, fragment) in cases {
        let model =
            folder(&[("a.safetensors", &one_weight()), ("i.json", index.to_string().as_bytes())]);
        let error = Weights::sharded(&model.path().join("i.json")).unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
        assert!(error.contains("i.json"), "{error}");
    }
}

#[test]
fn shards_are_read_where_the_index_says_and_leftovers_are_ignored() {
    let a = tensor_file(&[
        ("x", DType::F32, &[1], &floats(&[1.0])),
        ("y", DType::F32, &[1], &floats(&[9.0])),
    ]);
    let b = tensor_file(&[("y", DType::F32, &[1], &floats(&[2.0]))]);
    let index = json!({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}).to_string();
    let model =
        folder(&[("a.safetensors", &a), ("b.safetensors", &b), ("i.json", index.as_bytes())]);
    let weights = Weights::sharded(&model.path().join("i.json")).unwrap();
    assert_eq!(weights.tensor("y").unwrap().finite_f32().unwrap(), [2.0]);
    assert_eq!(weights.names().collect::<Vec<_>>(), ["x", "y"]);
}

#[test]
fn every_float_type_converts_from_any_alignment() {
    let values = [0.0, -1.5, 65504.0, 2.0_f32.powi(-14), -0.099_975_586];
    let f16: Vec<u8> = values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bf16: Vec<u8> =
        values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let f64: Vec<u8> = values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
    for shift in 0..8 {
        let bytes = tensor_file(&[
            ("pad", DType::U8, &[shift], &vec![0; shift]),
            ("f16", DType::F16, &[5], &f16),
            ("bf16", DType::BF16, &[5], &bf16),
            ("f32", DType::F32, &[5], &floats(&values)),
            ("f64", DType::F64, &[5], &f64),
        ]);
        let model = folder(&[("m.safetensors", &bytes)]);
        let file = TensorFile::open(model.path().join("m.safetensors")).unwrap();
        let read = |name: &str| file.find(name).unwrap().finite_f32().unwrap();
        assert_eq!(read("f32"), values);
        assert_eq!(read("f64"), values);
        assert_eq!(read("f16"), values.map(|v| half::f16::from_f32(v).to_f32()));
        assert_eq!(read("bf16"), values.map(|v| half::bf16::from_f32(v).to_f32()));
        let mut piece = [0.0; 2];
        file.find("f16").unwrap().to_f32_at(3, &mut piece).unwrap();
        assert_eq!(piece, [2.0_f32.powi(-14), half::f16::from_f32(values[4]).to_f32()]);
    }
}

#[test]
fn tensors_that_cannot_be_weights_are_named() {
    let mut long = vec![0.0; 3000];
    long[2500] = f32::NEG_INFINITY;
    let bytes = tensor_file(&[
        ("ids", DType::I32, &[1], &[0; 4]),
        ("nan", DType::F32, &[2], &floats(&[1.0, f32::NAN])),
        ("long", DType::F32, &[3000], &floats(&long)),
        ("layers.0.q_proj.weight", DType::F32, &[2, 1], &[0; 8]),
    ]);
    let model = folder(&[("m.safetensors", &bytes)]);
    let weights = Weights::single(&model.path().join("m.safetensors")).unwrap();
    let number = |name: &str| weights.tensor(name).unwrap().finite_f32().unwrap_err().to_string();
    assert!(number("ids").contains("tensor ids: I32 elements, expected BF16, F16 or F32"));
    assert!(number("nan").contains("tensor nan: element 1 is NaN"));
    assert!(number("long").contains("tensor long: element 2500 is -inf"));
    let shape = weights.require("layers.0.q_proj.weight", &[1, 2]).unwrap_err().to_string();
    assert!(shape.contains("shape [2, 1], expected [1, 2]"), "{shape}");
    let missing = weights.tensor("layers.1.q_proj.weight").unwrap_err().to_string();
    assert!(missing.contains("missing; the model holds layers.0.q_proj.weight"), "{missing}");
}

#[test]
fn mapped_bytes_outlive_the_file_object() {
    let model = folder(&[("m.safetensors", &one_weight())]);
    let bytes = {
        let file = TensorFile::open(model.path().join("m.safetensors")).unwrap();
        file.find("w").unwrap().mapped()
    };
    drop(model);
    assert_eq!(bytes[..], floats(&[1.0, 2.0]));
    assert_eq!(bytes.slice(4..8)[..], floats(&[2.0]));
}

#[test]
fn hostile_headers_are_refused_before_they_cost_much() {
    let huge = |begin: &str, item: &str, end: &str, count: usize| {
        let header = [begin, &item.repeat(count), end].concat();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    };
    let tensors: String = (0..200_000)
        .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#))
        .collect();
    let shape = r#"{"t":{"shape":["#;
    for (bytes, fragment) in [
        (huge("{", &tensors, "}", 1), "more than 100000 tensors"),
        (huge(shape, "1,", "1]}}", 10_000_000), "more than 16 dimensions"),
        (huge("{", "\"t\":", "{}}", 1_000_000), "damaged header"),
    ] {
        let model = folder(&[("m.safetensors", &bytes)]);
        let path = model.path().join("m.safetensors");
        let start = std::time::Instant::now();
        let message = TensorFile::open(&path).unwrap_err().to_string();
        let seconds = start.elapsed().as_secs_f64();
        assert!(message.contains(fragment), "{message}");
        assert!(seconds < 1.0, "{fragment} took {seconds} s");
    }
}
