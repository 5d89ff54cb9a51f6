//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! The index names files and is not trusted with paths: a shard is a plain file name in the index's
//! own folder (links that a download cache puts there are followed when it is opened). Only the key
//! `weight_map` counts; the sums under `metadata` are wrong in many published models.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, Place, escape};
use crate::json::{self, repeated};

/// Largest index file, in bytes; the largest known have about 10 MB.
const LARGEST_INDEX: u64 = 32 << 20;
/// Most tensors of one model.
const MOST_TENSORS: usize = 1_000_000;
/// Most shards of one model.
const MOST_SHARDS: usize = 4096;

/// The checked content of an index.
#[derive(Debug)]
pub(super) struct ShardIndex {
    /// Plain file names, sorted.
    pub shards: Vec<String>,
    /// For each tensor its place in `shards`.
    pub tensors: BTreeMap<String, usize>,
}

impl ShardIndex {
    /// Reads the index at `path`. Whether the shards exist is not checked.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = json::read_text(path, LARGEST_INDEX)?;
        let WeightMap(map) = json::typed::<Raw>(&text, path)?.weight_map;
        let place = || Place::file(path).field("weight_map");
        if map.is_empty() {
            return Err(Error::input(place(), "empty: no tensor is named"));
        }
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        for (tensor, shard) in &map {
            check_shard_name(shard).map_err(|what| {
                let field = format!("weight_map.{tensor}");
                Error::input(Place::file(path).field(&field), what)
            })?;
            shards.insert(shard, 0);
        }
        if shards.len() > MOST_SHARDS {
            let what = format!("{} files, at most {MOST_SHARDS} are opened", shards.len());
            return Err(Error::input(place(), what));
        }
        shards.values_mut().zip(0..).for_each(|(slot, i)| *slot = i);
        Ok(Self {
            shards: shards.keys().map(|&name| name.to_owned()).collect(),
            tensors: map.iter().map(|(t, s)| (t.clone(), shards[s.as_str()])).collect(),
        })
    }
}

fn check_shard_name(name: &str) -> Result<(), String> {
    let plain = !name.contains(['/', '\\', '\0', ':']) && !matches!(name, "" | "." | "..");
    let fault = if !plain {
        "is not a plain file name: shards must lie in the model folder"
    } else if !name.ends_with(".safetensors") {
        "is not a .safetensors file: give a .safetensors version of the model"
    } else {
        return Ok(());
    };
    Err(format!("\"{}\" {fault}", escape(name)))
}

#[derive(Deserialize)]
struct Raw {
    weight_map: WeightMap,
}

/// Tensor name to file name, without repeated names.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of file names as weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<WeightMap, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((tensor, shard)) = entries.next_entry::<String, String>()? {
            if map.len() == MOST_TENSORS {
                let what = format_args!("more than {MOST_TENSORS} tensors");
                return Err(A::Error::custom(what));
            }
            match map.entry(tensor) {
                Entry::Occupied(twice) => return Err(repeated(twice.key())),
                Entry::Vacant(free) => free.insert(shard),
            };
        }
        Ok(WeightMap(map))
    }
}
