//! Tests on a GPU that may run at the same time: none captures a graph or counts memory. Such tests
//! are in tests/gpu_serial. `sanitize` is for compute-sanitizer.

mod accuracy;
#[path = "../common/card_shapes.rs"]
mod card_shapes;
mod cards;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/cuda.rs"]
mod cuda;
mod device;
mod dropout;
#[path = "../common/dropout.rs"]
mod dropped;
mod empty;
#[path = "../common/empty_batch.rs"]
mod empty_batch;
mod exact;
mod group;
mod layer;
mod memory;
mod mma;
#[path = "../common/oracle.rs"]
mod oracle;
#[path = "../common/parts.rs"]
mod parts;
#[cfg(feature = "peft")]
mod peft;
#[cfg(feature = "peft")]
#[path = "../common/peft.rs"]
mod peft_fixtures;
mod sanitize;
#[path = "../common/shapes.rs"]
mod shapes;
mod small_batch;
mod streams;
