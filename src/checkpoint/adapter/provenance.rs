//! What an adapter was made from, in the free metadata of its tensor file, which other programs leave alone.

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
    /// The settings that its numbers depend on, as TOML; all of them are in `train_config.toml` beside it.
    pub settings: Option<String>,
    /// The program.
    pub program: Option<String>,
}

/// The names in the metadata.
const KEYS: [&str; 5] =
    ["base_fingerprint", "data_digest", "chat_template_digest", "settings", "program"];

impl Provenance {
    /// From the metadata of a file.
    pub fn of(metadata: &BTreeMap<String, String>) -> Self {
        let [base, data, template, settings, program] = KEYS.map(|key| metadata.get(key).cloned());
        Self { base, data, template, settings, program }
    }

    /// As metadata.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let Self { base, data, template, settings, program } = self;
        let values = [base, data, template, settings, program];
        let told = |(key, value): (&str, &Option<String>)| Some((key.to_owned(), value.clone()?));
        KEYS.into_iter().zip(values).filter_map(told).collect()
    }
}
