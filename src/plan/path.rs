//! The code that serves a call.

use std::fmt;

/// The code that serves a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Path {
    /// The CPU reference.
    Reference,
    /// `mma.sync` kernels for compute capability 8.0 and newer, any shape and alignment.
    Mma,
    /// The same kernels for batches of up to 2048 tokens whose tiles would be few: narrow tiles, one
    /// launch for a backward pass, as for the forward pass of each projection. Sums have
    /// another order than in [`Path::Mma`].
    MmaShort,
    /// Up to 32 tokens by `mma.sync`, weight-bandwidth bound: one launch for a forward pass of each
    /// projection, and one for all of a backward pass of a single one; that of several is
    /// [`Path::MmaShort`].
    ///
    /// For compute capability 8.0 and newer, any shape and alignment; rows that do not start at
    /// multiples of 16 bytes take longer, and [`Path::Mma`] serves some products with a frozen
    /// weight then. On compute capability 9.0 it serves what [`Path::Hopper`] cannot.
    MmaDecode,
    /// Small batches by wgmma and TMA, weight-bandwidth bound: up to 64 tokens in the forward, up to
    /// 32 in the backward; up to 128 and 64 for layers that have more tiles than there are SMs.
    /// Needs what [`Path::Hopper`] needs. The forward of several projections launches once for each;
    /// their backward is [`Path::Hopper`].
    HopperDecode,
    /// Small batches by wgmma and TMA, one output tile per SM: up to 1024 tokens. Needs what
    /// [`Path::Hopper`] needs. The forward of several projections launches once for each, up to 128
    /// tokens; their backward is [`Path::Hopper`].
    HopperShort,
    /// The base GEMM with the adapter inside, and the gradients of A and B, by wgmma and TMA.
    ///
    /// For compute capability 9.0, and k, d and r that are multiples of 8: rows then start at
    /// multiples of 16 bytes. If a buffer itself does not, [`Path::Mma`] serves the call.
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
