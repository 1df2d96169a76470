//! Tests on the CPU device, against candle's own operations and autograd.

mod adapters;
mod common;
#[path = "../shared/compare.rs"]
mod compare;
mod dropout;
#[path = "../shared/dropped.rs"]
mod dropped;
mod errors;
mod groups;
mod layers;
mod llama;
mod nn;
mod plain;
#[path = "../shared/small.rs"]
mod small;
mod training;
