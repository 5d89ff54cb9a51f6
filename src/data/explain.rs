//! What will be learned from an example, token by token: for `inspect` and the first lines of a run.

use super::dataset::Example;
use super::tokenizer::Tokenizer;

/// One token of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedToken {
    /// The token as the vocabulary writes it; `#id` where there is none.
    pub text: String,
    /// Its id.
    pub id: u32,
    /// Whether it is a target.
    pub supervised: bool,
}

/// The tokens of an example with their texts.
pub fn explain(example: &Example, tokenizer: Option<&Tokenizer>) -> Vec<ExplainedToken> {
    let tokens = example.tokens.iter().zip(&example.supervised);
    let explained = |(&id, &supervised): (&u32, &bool)| ExplainedToken {
        text: text(tokenizer, id),
        id,
        supervised,
    };
    tokens.map(explained).collect()
}

fn text(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    let name = tokenizer.and_then(|tokenizer| tokenizer.token_name(id));
    name.unwrap_or_else(|| format!("#{id}"))
}
