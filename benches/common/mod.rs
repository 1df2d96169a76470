//! What both benchmarks share: a GPU to time on, matrices in its memory, and an adapted layer on
//! rotating buffers.

// Each benchmark compiles these modules for itself, and neither uses all of them.
#![allow(dead_code)]

pub mod gpu;
pub mod layer;
pub mod matrix;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
