//! Tests on the CPU device, against candle's own operations and autograd.

mod adapters;
mod common;
mod errors;
mod groups;
mod layers;
mod llama;
mod nn;
mod plain;
mod training;
