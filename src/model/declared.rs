//! The tensors that a model of some shape has, as its files name them.

/// What the names of the tensors of layers begin with.
pub(super) const LAYERS: &str = "model.layers.";

/// What a tensor of a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Embeddings, which may be the head too.
    Table,
    /// The head, where it is a matrix of its own.
    Head,
    /// The weight of a linear map of a layer.
    Linear,
    /// Its bias.
    Bias,
    /// The weight of a norm.
    Norm,
}

/// A tensor that a model of some shape has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name in files.
    pub name: String,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
}

impl Declared {
    /// The layer that it belongs to.
    pub fn layer(&self) -> Option<usize> {
        self.name.strip_prefix(LAYERS)?.split('.').next()?.parse().ok()
    }
}
