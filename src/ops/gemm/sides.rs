//! Which operand goes to the left.
//!
//! outᵀ = rightᵀ·leftᵀ, and both ways each element is the same chain of the same additions. The left
//! operand is packed whole and in narrow panels, so a product with few columns (those of LoRA) is
//! cut the other way around, where most of it goes into the wide panels of the right.

use super::pack::{Direction, Source};
use super::{Content, Form, Params};

/// Products with more columns are cut as they are stated. Measured on Zen 4 with 16 columns: turning
/// makes 512 rows and more 1.2 to 1.8 times as fast, and 64 rows slower.
const FEW: usize = 32;

/// Rows to a column that make turning worth it.
const TALL: usize = 8;

/// A product as it is cut.
#[derive(Clone, Copy)]
pub(super) struct Sides<'a> {
    p: &'a Params,
    /// Whether left and right have changed places.
    pub(super) turned: bool,
}

impl<'a> Sides<'a> {
    pub(super) fn of(p: &'a Params) -> Self {
        let dense = p.products.iter().all(|product| product.right.content == Content::Dense);
        let plain = p.bias.is_null() && p.residual.address.is_null();
        let few = p.cols as usize <= FEW && p.rows as usize >= TALL * p.cols as usize;
        Self { p, turned: dense && plain && few }
    }

    pub(super) fn rows(&self) -> usize {
        (if self.turned { self.p.cols } else { self.p.rows }) as usize
    }

    pub(super) fn cols(&self) -> usize {
        (if self.turned { self.p.rows } else { self.p.cols }) as usize
    }

    pub(super) fn left(&self, product: usize) -> (Source<'a>, Direction) {
        if self.turned { self.stated_right(product) } else { self.stated_left(product) }
    }

    pub(super) fn right(&self, product: usize) -> (Source<'a>, Direction) {
        if self.turned { self.stated_left(product) } else { self.stated_right(product) }
    }

    fn stated_left(&self, product: usize) -> (Source<'a>, Direction) {
        let direction = match self.p.form {
            Form::Nt | Form::Nn => Direction::Along,
            Form::Tn => Direction::Across,
        };
        (Source::Dense(&self.p.products[product].left), direction)
    }

    fn stated_right(&self, product: usize) -> (Source<'a>, Direction) {
        let direction = match self.p.form {
            Form::Nt => Direction::Along,
            Form::Nn | Form::Tn => Direction::Across,
        };
        ((&self.p.products[product].right).into(), direction)
    }
}
