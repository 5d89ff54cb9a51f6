//! Tensor files: headers that lie, data that cannot be, tensors that do not fit the config.

use std::fs;

use serde_json::{Map, Value, json};

use crate::{Case, Done, Folder, IDS, Refused, Verdict, battery, case, ids_model, train};

/// A tensor file taken apart.
struct Parts {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Parts {
    fn read() -> Self {
        let bytes = fs::read(ids_model().join("model.safetensors")).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..start]).unwrap();
        Self { header, data: bytes[start..].to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        with_header(&serde_json::to_string(&self.header).unwrap(), &self.data)
    }

    fn entry(&mut self, name: &str) -> &mut Value {
        self.header.get_mut(name).unwrap()
    }

    fn range(&mut self, name: &str) -> std::ops::Range<usize> {
        let offsets = &self.entry(name)["data_offsets"];
        let at = |i: usize| offsets[i].as_u64().unwrap() as usize;
        at(0)..at(1)
    }
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

/// The model with these bytes as its weights.
fn given(name: &str, verdict: Verdict, bytes: impl Fn() -> Vec<u8> + 'static) -> Case {
    case(name, verdict, move |folder| {
        let model = folder.model();
        folder.write("model/model.safetensors", bytes());
        train(model, folder.write("data.jsonl", IDS))
    })
}

/// The model with a changed header or changed data.
fn changed(name: &str, fragment: &'static str, change: impl Fn(&mut Parts) + 'static) -> Case {
    given(name, Refused(fragment), move || {
        let mut parts = Parts::read();
        change(&mut parts);
        parts.bytes()
    })
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const K: &str = "model.layers.0.self_attn.k_proj.weight";
const NORM: &str = "model.norm.weight";

#[test]
fn headers_that_lie() {
    let empty = |header: &'static str| move || with_header(header, b"");
    battery(&[
        given("untouched", Done, || Parts::read().bytes()),
        given("no bytes", Refused("model.safetensors: "), Vec::new),
        given("seven bytes", Refused("too few"), || vec![0; 7]),
        given("zeros", Refused("model.safetensors: "), || vec![0; 4096]),
        given("claims 3 GB", Refused("model.safetensors: "), || {
            [&3_000_000_000u64.to_le_bytes()[..], &[b'{'; 100]].concat()
        }),
        given("claims 99 MB", Refused("cut off"), || {
            [&99_000_000u64.to_le_bytes()[..], &[b'{'; 100]].concat()
        }),
        given("claims everything", Refused("model.safetensors: "), || vec![255; 64]),
        given("empty header", Refused("model.safetensors: "), empty("")),
        given("a space first", Refused("begin with `{`"), empty(" {}")),
        given("no tensors", Refused("model.safetensors: "), empty("{}")),
        given("an array", Refused("begin with `{`"), empty("[]")),
        given("unfinished", Refused("damaged header"), empty("{\"a\":")),
        given("not UTF-8", Refused("not UTF-8"), || {
            [&4u64.to_le_bytes()[..], b"{\xff\xfe}"].concat()
        }),
        given("nested 100k deep", Refused("damaged header"), || {
            with_header(&format!("{{\"a\":{}", "[".repeat(100_000)), b"")
        }),
        given("200k empty tensors", Refused("more than 100000 tensors"), || {
            let entry =
                |i| format!("\"t{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
            with_header(
                &format!("{{{}}}", (0..200_000).map(entry).collect::<Vec<_>>().join(",")),
                b"",
            )
        }),
        given("equal names", Refused("twice"), || {
            let entry = "\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}";
            with_header(&format!("{{{entry},{entry}}}"), b"")
        }),
        given("equal keys of one tensor", Refused("duplicate field `dtype`"), || {
            with_header(
                "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                b"",
            )
        }),
        given("escape codes in a name", Refused("model.safetensors: tensor"), || {
            with_header(
                "{\"\\u001b[31mred\\u0007\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                b"",
            )
        }),
        given("a name of 1 MB", Refused("a name of"), || {
            let name = "n".repeat(1 << 20);
            with_header(
                &format!(
                    "{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}}}"
                ),
                b"",
            )
        }),
        given("metadata that is no text", Refused("damaged header"), || {
            let mut parts = Parts::read();
            parts.header.insert("__metadata__".into(), json!({"a": 1}));
            parts.bytes()
        }),
    ]);
}

#[test]
fn offsets_and_shapes_that_cannot_be() {
    battery(&[
        changed("cut at the end", "cut off", |parts| parts.data.truncate(parts.data.len() - 1)),
        changed("cut in the middle", "cut off", |parts| parts.data.truncate(parts.data.len() / 2)),
        changed("no data", "cut off", |parts| parts.data.clear()),
        changed("more at the end", "too long", |parts| parts.data.extend(b"PK\x03\x04 a zip")),
        changed("overlap", "tensor", |parts| {
            let offsets = parts.entry(Q)["data_offsets"].clone();
            parts.entry(K)["data_offsets"] = offsets;
        }),
        changed("hole", "tensor", |parts| drop(parts.header.remove(K))),
        changed("backwards", "data offsets 100..4", |parts| {
            parts.entry(Q)["data_offsets"] = json!([100, 4]);
        }),
        changed("negative", "damaged header", |parts| {
            parts.entry(Q)["data_offsets"] = json!([-4, 4]);
        }),
        changed("beyond 64 bits", "damaged header", |parts| {
            parts.entry(Q)["data_offsets"] = json!([0, 1e300]);
        }),
        changed("largest offsets", "tensor", |parts| {
            parts.entry(Q)["data_offsets"] = json!([u64::MAX - 1, u64::MAX]);
        }),
        changed("10^12 values", "tensor", |parts| {
            parts.entry(Q)["shape"] = json!([1_000_000, 1_000_000])
        }),
        changed("a product beyond 64 bits", "tensor", |parts| {
            parts.entry(Q)["shape"] = json!([1u64 << 40, 1u64 << 40]);
        }),
        changed("1000 dimensions", "dimensions", |parts| {
            parts.entry(Q)["shape"] = json!(vec![1; 1000]);
        }),
        changed("a shape of text", "damaged header", |parts| parts.entry(Q)["shape"] = json!("64")),
        changed("no shape", "damaged header", |parts| {
            drop(parts.entry(Q).as_object_mut().unwrap().remove("shape"));
        }),
        changed("unknown type", "unknown dtype Q4_K", |parts| {
            parts.entry(Q)["dtype"] = json!("Q4_K")
        }),
        changed("type of another size", "tensor", |parts| parts.entry(Q)["dtype"] = json!("BF16")),
    ]);
}

#[test]
fn tensors_that_do_not_fit_the_config() {
    battery(&[
        changed("missing", Q, |parts| {
            let entry = parts.header.remove(Q).unwrap();
            parts.header.insert("other".into(), entry);
        }),
        changed("one more", "model.layers.9.mlp.up_proj.weight", |parts| {
            let end = parts.data.len();
            parts.data.extend([0; 16]);
            let entry = json!({"dtype": "F32", "shape": [2, 2], "data_offsets": [end, end + 16]});
            parts.header.insert("model.layers.9.mlp.up_proj.weight".into(), entry);
        }),
        changed("transposed", K, |parts| {
            parts.entry(K)["shape"].as_array_mut().unwrap().reverse();
        }),
        changed("flat", Q, |parts| parts.entry(Q)["shape"] = json!([4096])),
        changed("another dimension", Q, |parts| parts.entry(Q)["shape"] = json!([64, 64, 1])),
        changed("I32", Q, |parts| parts.entry(Q)["dtype"] = json!("I32")),
        changed("U32", NORM, |parts| parts.entry(NORM)["dtype"] = json!("U32")),
        changed("I64", Q, |parts| {
            parts.entry(Q)["dtype"] = json!("I64");
            parts.entry(Q)["shape"] = json!([32, 64]);
        }),
        changed("NaN", "NaN", |parts| fill(parts, Q, f32::NAN)),
        changed("infinity", "is inf", |parts| fill(parts, Q, f32::INFINITY)),
        changed("NaN in a norm", "NaN", |parts| fill(parts, NORM, f32::NAN)),
        changed("NaN in the embedding", "NaN", |parts| {
            fill(parts, "model.embed_tokens.weight", f32::NAN);
        }),
    ]);
}

/// Puts one value into the middle of a tensor.
fn fill(parts: &mut Parts, name: &str, value: f32) {
    let range = parts.range(name);
    let at = range.start + (range.len() / 8) * 4;
    parts.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn files_that_are_something_else() {
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    let cases: [(&str, &'static str, Vec<u8>); 9] = [
        ("LFS pointer", "LFS", lfs.into()),
        ("HTML page", "web page", b"<!DOCTYPE html><html>404</html>".to_vec()),
        ("GGUF", "GGUF", [b"GGUF\x03\0\0\0".as_slice(), &[0; 64]].concat()),
        ("zip of pickles", "pickle", [b"PK\x03\x04".as_slice(), &[0; 64]].concat()),
        ("bare pickle", "pickle", [b"\x80\x02}q\0.".as_slice(), &[0; 64]].concat()),
        ("gzip", "model.safetensors: ", [b"\x1f\x8b\x08".as_slice(), &[0; 64]].concat()),
        ("JSON", "model.safetensors: ", b"{\"error\": \"Repository not found\"}".to_vec()),
        ("text", "model.safetensors: ", b"Access to this model is restricted.".to_vec()),
        ("PNG", "model.safetensors: ", [b"\x89PNG\r\n\x1a\n".as_slice(), &[0; 64]].concat()),
    ];
    let case = |(name, fragment, bytes): (&str, &'static str, Vec<u8>)| {
        given(name, Refused(fragment), move || bytes.clone())
    };
    battery(&cases.map(case));
}

/// Splits the model in two shards and gives its index to `change`.
fn sharded(name: &str, verdict: Verdict, change: impl Fn(&Folder, &mut Value) + 'static) -> Case {
    case(name, verdict, move |folder| {
        let model = folder.model();
        let parts = Parts::read();
        let mut map = Map::new();
        for (i, shard) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
            let (mut header, mut data) = (Map::new(), Vec::new());
            for (name, entry) in
                parts.header.iter().filter(|(name, _)| *name != "__metadata__").skip(i).step_by(2)
            {
                let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
                let (start, mut entry) = (data.len(), entry.clone());
                data.extend(&parts.data[at(0)..at(1)]);
                entry["data_offsets"] = json!([start, data.len()]);
                header.insert(name.clone(), entry);
                map.insert(name.clone(), json!(shard));
            }
            let header = serde_json::to_string(&header).unwrap();
            folder.write(&format!("model/{shard}"), with_header(&header, &data));
        }
        fs::remove_file(folder.at("model/model.safetensors")).unwrap();
        let mut index = json!({"metadata": {"total_size": 1}, "weight_map": map});
        change(folder, &mut index);
        let text = index.as_str().map_or_else(|| index.to_string(), str::to_owned);
        folder.write("model/model.safetensors.index.json", text);
        train(model, folder.write("data.jsonl", IDS))
    })
}

#[test]
fn an_index_reads_nothing_outside_its_folder_and_leaves_nothing_open() {
    let points = |name: &str, to: &'static str, fragment| {
        sharded(name, Refused(fragment), move |folder, index| {
            fs::copy(folder.at("model/a.safetensors"), folder.at("a.safetensors")).unwrap();
            let absolute = folder.name("a.safetensors");
            index["weight_map"][Q] = json!(if to == "/" { &absolute } else { to });
        })
    };
    let becomes = |name: &str, fragment, value: Value| {
        sharded(name, Refused(fragment), move |_, index| *index = value.clone())
    };
    battery(&[
        sharded("whole", Done, |_, _| {}),
        points("parent folder", "../a.safetensors", "not a plain file name"),
        points("absolute", "/", "not a plain file name"),
        points("missing shard", "c.safetensors", "c.safetensors"),
        points("a pickle", "a.bin", "not a .safetensors file"),
        points("no name", "", "not a plain file name"),
        points("a NUL", "a\0.safetensors", "not a plain file name"),
        points("the other shard", "a.safetensors", Q),
        sharded("a tensor left out", Refused(Q), |_, index| {
            drop(index["weight_map"].as_object_mut().unwrap().remove(Q));
        }),
        sharded("a number for a shard", Refused("index.json"), |_, index| {
            index["weight_map"][Q] = json!(1);
        }),
        sharded("shard removed", Refused("b.safetensors"), |folder, _| {
            fs::remove_file(folder.at("model/b.safetensors")).unwrap();
        }),
        sharded("shard cut", Refused("b.safetensors"), |folder, _| {
            let path = folder.at("model/b.safetensors");
            let length = fs::metadata(&path).unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(length - 4).unwrap();
        }),
        sharded("shard a folder", Refused("b.safetensors"), |folder, _| {
            fs::remove_file(folder.at("model/b.safetensors")).unwrap();
            fs::create_dir(folder.at("model/b.safetensors")).unwrap();
        }),
        becomes("no map", "weight_map", json!({})),
        becomes("empty map", "weight_map", json!({"weight_map": {}})),
        becomes("map an array", "index.json", json!({"weight_map": []})),
        becomes("not JSON", "index.json", json!("<html>")),
        becomes(
            "equal names",
            "twice",
            json!("{\"weight_map\": {\"a\": \"a.safetensors\", \"a\": \"b.safetensors\"}}"),
        ),
    ]);
}
