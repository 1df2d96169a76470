//! Tests of whole plans, and of what compute-sanitizer runs on.

mod decode;
mod fuzz;
mod linear;
mod plans;
mod short;
mod text;
