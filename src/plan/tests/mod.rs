//! Tests of whole plans, and of what compute-sanitizer runs on.

mod fuzz;
mod hopper;
mod hopper_decode;
mod hopper_short;
mod plans;
mod text;
