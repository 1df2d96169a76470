#![doc = include_str!("../README.md")]
#![deny(missing_docs, unsafe_code)]

mod adapter;
mod bias;
mod dropout;
mod frozen;
mod gradients;
mod graph;
mod group;
mod kernels;
mod linear;
pub mod llama;
mod memory;
pub mod nn;
mod node;
mod pass;
mod peft;

pub use adapter::LoraAdapter;
pub use frozen::FrozenLinear;
pub use gradients::check_gradients;
pub use group::LoraGroup;
pub use linear::{DEFAULT_ADAPTER, LoraLinear};
pub use lora_kernels;
pub use peft::{PeftAdapters, load_peft, save_peft};
