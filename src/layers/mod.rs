//! Layers and adapters that own their tensors.

mod adapter;
mod cache;
mod linear;
mod passes;
mod projection;

pub use adapter::{Adapter, AdapterConfig, Scaling};
pub use linear::LoraLinear;
pub use passes::{LayerGradients, LayerOutput, Saved};
pub use projection::LayerProjection;
