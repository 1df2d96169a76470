//! What the passes of a layer make and take.

use crate::dropout::Dropout;
use crate::tensor::{Tensor, TensorView};

/// The results of [`LoraLinear::forward`](crate::LoraLinear::forward).
#[derive(Debug)]
pub struct LayerOutput<'x> {
    /// The output h of every projection, [..., d].
    pub h: Vec<Tensor>,
    /// x and S, for the backward pass.
    pub saved: Saved<'x>,
}

/// What a backward pass needs from its forward pass: x, borrowed, and S, computed from it.
///
/// The borrow keeps x from changing, so S always belongs to x. If x has to move meanwhile, take S
/// out and put both together again: the caller must then see to it that they belong together.
#[derive(Debug)]
pub struct Saved<'x> {
    /// The input, [..., k].
    pub x: TensorView<'x>,
    /// S = [s₀ · X A₀ᵀ, s₁ · X A₁ᵀ, ...], [..., R].
    pub s: Tensor,
    /// The dropout of x in S, if there was one.
    pub dropout: Option<Dropout<'static>>,
}

/// The gradients of a layer's adapters, in f32 or in 16 bits.
#[derive(Debug)]
pub struct LayerGradients {
    /// dA of all projections, stacked, [R, k].
    pub a: Tensor,
    /// dB of every projection, [d, r].
    pub b: Vec<Tensor>,
}
