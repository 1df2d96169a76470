//! Tests of whole plans, and of what compute-sanitizer runs on.

mod cards;
mod decode;
mod fuzz;
mod linear;
mod mma;
mod mma_decode;
mod plans;
mod short;
mod text;
