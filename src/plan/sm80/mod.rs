//! How the kernels of `kernels/sm80` are launched.

pub(crate) mod decode;
mod linear;

pub(crate) use linear::{
    linear_blocks, merge_blocks, project_blocks, rank_tile, round_blocks, GradSplit,
};
