//! What is trained, and where it attaches to the frozen model.
//!
//! A method adds entries to the flat array of trainable numbers and tells the decoder's linear maps
//! where theirs lie; the algebra itself is in `model/linear.rs`. Read [`lora`] next.

pub mod lora;
