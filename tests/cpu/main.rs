//! Everything that needs no GPU.

mod calibration;
#[path = "../common/mod.rs"]
mod common;
mod dropout;
#[path = "../common/dropout.rs"]
mod dropped;
mod empty;
#[path = "../common/empty_batch.rs"]
mod empty_batch;
mod errors;
mod group;
mod group_layer;
mod hopper_sass;
mod imports;
mod layer;
mod numbers;
#[path = "../common/oracle.rs"]
mod oracle;
#[path = "../common/parts.rs"]
mod parts;
#[cfg(feature = "peft")]
mod peft;
#[cfg(feature = "peft")]
#[path = "../common/peft.rs"]
mod peft_fixtures;
mod reference;
mod views;
