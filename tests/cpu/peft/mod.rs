//! The feature `peft`: adapters as PEFT keeps them, good ones, PEFT's own and hostile ones.

mod concurrent;
mod config;
mod directory;
mod experts;
mod extras;
mod files;
mod fixtures;
mod formats;
mod mutations;
mod other;
mod targets;
mod weights;
