//! Tests of whole plans, and of what compute-sanitizer runs on.

#[path = "../../../tests/common/card_shapes.rs"]
mod card_shapes;
mod cards;
mod decode;
mod dropout;
mod fuzz;
// What tests/gpu runs: tests here assert what it reaches.
#[path = "../../../tests/common/shapes.rs"]
mod gpu_shapes;
mod linear;
mod mma;
mod mma_decode;
mod plans;
mod short;
mod text;
