//! Layers on the CPU, against candle's own graph of the same formulas.

mod adapters;
mod common;
mod errors;
mod groups;
mod layers;
mod training;
