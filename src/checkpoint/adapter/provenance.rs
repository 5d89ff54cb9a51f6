//! What an adapter was made from, in the free metadata of its tensor file, which other programs leave alone.
//! With which settings is in `train_config.toml` beside it.

use std::collections::BTreeMap;

/// Where an adapter comes from; what is not told is empty. Digests are those of this program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Fingerprint of the base: see `model::fingerprint`.
    pub base: Option<String>,
    /// Digest of the tokens and targets.
    pub data: Option<String>,
    /// Digest of the chat template.
    pub template: Option<String>,
    /// The program.
    pub program: Option<String>,
}

/// The names in the metadata.
const KEYS: [&str; 4] = ["base_fingerprint", "data_digest", "chat_template_digest", "program"];

impl Provenance {
    /// From the metadata of a file.
    pub fn of(metadata: &BTreeMap<String, String>) -> Self {
        let [base, data, template, program] = KEYS.map(|key| metadata.get(key).cloned());
        Self { base, data, template, program }
    }

    /// As metadata.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let Self { base, data, template, program } = self;
        let values = [base, data, template, program];
        let told = |(key, value): (&str, &Option<String>)| Some((key.to_owned(), value.clone()?));
        KEYS.into_iter().zip(values).filter_map(told).collect()
    }
}
