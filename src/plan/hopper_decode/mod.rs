//! How `kernels/sm90a/decode.cu` is launched.

mod schedule;
#[cfg(test)]
mod tests;

pub(crate) use schedule::{Schedule, FLAGS, FOOTPRINT, INPUT_GRAD_FOOTPRINT};
pub(crate) use schedule::{INPUT_GRAD_TILES_T, MOST_TOKENS, TILES_T};
