//! How `kernels/sm90a/linear.cuh` is launched: its tiles, where S comes from, and the tile order.
//!
//! `model` predicts the time of a schedule; `search` finds the fastest.

mod model;
mod schedule;
mod search;
#[cfg(test)]
mod tests;

pub(crate) use schedule::{CLUSTER_M, GROUP};
pub(crate) use schedule::{Projection, Schedule};
pub(crate) use search::{
    all_forward, all_input_grad, base, forward, forward_dropout, input_grad, input_grad_dropout,
};
