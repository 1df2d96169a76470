//! The kernels that serve a call.

use std::fmt;

/// The kernels that serve a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Path {
    /// The CPU reference, in f64.
    Reference,
    /// `mma.sync` kernels for compute capability 8.0 and newer, any shape and alignment. Where k or
    /// d is not a multiple of 8, copies of what is read come first.
    Mma,
    /// The same kernels for batches of up to 2048 tokens that have few tiles: narrow tiles, and one
    /// launch for a backward pass and for the forward pass of each projection. Sums have another
    /// order than in [`Path::Mma`]. W0 is not copied for up to 128 tokens.
    MmaShort,
    /// Up to 32 tokens by `mma.sync`, weight-bandwidth bound: one launch for the forward pass of
    /// each projection, and one for the backward pass of a single projection. The backward of
    /// several is [`Path::MmaShort`].
    ///
    /// For compute capability 8.0 and newer, and ranks that are multiples of 8. Other ranks are
    /// [`Path::MmaShort`]. Where k or d is not a multiple of 8, copies of what is read come first,
    /// but not of W0. Where they are, and a buffer or a row of it does not start at a multiple of
    /// 16 bytes, [`Path::Mma`] serves the call. On compute capability 9.0 it serves what
    /// [`Path::Hopper`] cannot.
    MmaDecode,
    /// Small batches by wgmma and TMA, weight-bandwidth bound: up to 64 tokens in the forward and
    /// 32 in the backward; up to 128 and 64 for layers with more tiles than SMs. Same requirements
    /// as [`Path::Hopper`]. The forward of several projections launches once for each; their
    /// backward is [`Path::Hopper`].
    HopperDecode,
    /// Small batches by wgmma and TMA, one output tile per SM: up to 1024 tokens. Same requirements
    /// as [`Path::Hopper`]. The forward of several projections, up to 128 tokens, launches once for
    /// each; their backward is [`Path::Hopper`].
    HopperShort,
    /// The base GEMM with the adapter inside, and the gradients of A and B, by wgmma and TMA.
    ///
    /// For compute capability 9.0, and k, d and r that are multiples of 8. If a buffer or a row of
    /// it does not start at a multiple of 16 bytes, [`Path::Mma`] serves the call.
    Hopper,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::Reference => "reference",
            Path::Mma => "mma",
            Path::MmaShort => "mma-short",
            Path::MmaDecode => "mma-decode",
            Path::HopperDecode => "hopper-decode",
            Path::HopperShort => "hopper-short",
            Path::Hopper => "hopper",
        })
    }
}
