//! What all test binaries share: inputs, and a run of every operation on any device. A binary
//! declares those of the other files in this folder that it uses, so that none has dead code.

mod buffer;
mod compare;
mod gradient;
pub mod inputs;
pub mod random;
pub mod run;
mod sizes;

pub use buffer::{DeviceElement, Place, Placement};
pub use compare::{assert_same_bits, assert_same_values};
pub use inputs::Inputs;
pub use run::Buffers;
pub use sizes::Sizes;
