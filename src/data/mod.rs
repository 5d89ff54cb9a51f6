//! Data files in, batches of tokens with their targets out.
//!
//! The way of a record, one file a station:
//!
//! | file | from | to |
//! |---|---|---|
//! | `source.rs` | a file | pieces of bytes with their lines |
//! | `json.rs`, `record.rs`, `chat.rs` | bytes | one of six record shapes, fields checked |
//! | `template.rs`, `rewrite.rs`, `python.rs`, `turns.rs` | a conversation | text, and where in it the answers stand |
//! | `tokenizer.rs`, `special.rs` | text | token ids |
//! | `tokenize.rs` | a record | tokens, and which of them are targets |
//! | `dataset.rs` | all records | [`Dataset`]: examples of bounded length, and a report |
//! | `batch.rs` | examples | [`MicroBatch`]: flat lists of tokens and targets, no padding |
//!
//! `report.rs` says what was read and whether it can teach what it should; `explain.rs` shows the result to
//! people. Generation goes the same way as training: render with
//! [`GenerationPrompt::Add`], encode with [`Special::Add`], so that both see the same ids.
//!
//! Nothing here knows models, devices or losses. Start with [`Dataset::load`].

mod batch;
mod chat;
mod dataset;
mod explain;
mod python;
mod quiet;
mod record;
mod report;
mod rewrite;
mod source;
mod special;
mod template;
mod tokenize;
mod tokenizer;
mod turns;
pub use batch::{Batching, MicroBatch, Order, Packing, Row, Target, Window, epoch_windows, pack};
pub use dataset::{Dataset, Example, Origin, Policy};
pub use explain::{ExplainedToken, explain};
pub use report::{Counts, DataReport, Dropped, RecordKind};
pub use special::TokenizerFiles;
pub use template::{ChatTemplate, Conversation, GenerationPrompt, Moment, Rendered};
pub use tokenize::TrainOn;
pub use tokenizer::{Encoded, Special, TextStream, Tokenizer};
pub use turns::turn_span;
