//! Records in, batches of tokens with their targets out.
mod json;
mod python;
mod quiet;
mod special;
mod template;
mod tokenizer;
pub use special::TokenizerFiles;
pub use template::{ChatTemplate, Conversation, GenerationPrompt, Moment, Rendered};
pub use tokenizer::{Encoded, Special, TextStream, Tokenizer};
