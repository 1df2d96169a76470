//! How `kernels/sm90a/decode.cu` is launched.

mod schedule;
#[cfg(test)]
mod tests;

pub(crate) use schedule::{FLAGS, MOST_TOKENS, Schedule};
