//! What the passes of a layer make and take.

use crate::tensor::{Tensor, TensorView};

/// What a forward pass makes.
#[derive(Debug)]
pub struct LayerOutput<'x> {
    /// The output h of every projection, [..., d].
    pub h: Vec<Tensor>,
    /// What the backward pass needs.
    pub saved: Saved<'x>,
}

/// What a backward pass needs of its forward pass: x, borrowed, and the S that was made of it.
///
/// As long as it lives x cannot change, so S is that of x. Where x has to go elsewhere meanwhile,
/// take S out, and put both together again: it is then yours to see that they belong together.
#[derive(Debug)]
pub struct Saved<'x> {
    /// The input, [..., k].
    pub x: TensorView<'x>,
    /// S = [s₀ · X A₀ᵀ, s₁ · X A₁ᵀ, ...], [..., R].
    pub s: Tensor,
}

/// The gradients of a layer's adapters, in f32 or in 16 bits.
#[derive(Debug)]
pub struct LayerGradients {
    /// dA of all projections, one below the other, [R, k].
    pub a: Tensor,
    /// dB of every projection, [d, r].
    pub b: Vec<Tensor>,
}
