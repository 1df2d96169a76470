//! What the benchmarks share: a GPU to time on, calls in turns, matrices in its memory, an adapted
//! layer on rotating buffers, sizes by name, command lines and result files.

// Each benchmark compiles these modules for itself, and none uses all of them.
#![allow(dead_code)]

pub mod args;
pub mod environment;
pub mod gpu;
pub mod layer;
pub mod matrix;
pub mod results;
pub mod shapes;
pub mod timing;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
