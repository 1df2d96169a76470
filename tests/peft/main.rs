//! The feature `peft`: adapters as PEFT keeps them, good ones, PEFT's own and hostile ones.

#![cfg(feature = "peft")]

#[path = "../common/mod.rs"]
mod common;

mod concurrent;
mod config;
mod directory;
mod extras;
mod files;
mod fixtures;
mod formats;
mod other;
mod targets;
mod weights;
