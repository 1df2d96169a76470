//! Random numbers, the same on every run.

use lora_kernels::Element;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

pub fn rng(seed: u64) -> Pcg64 {
    Pcg64::seed_from_u64(seed)
}

/// Uniform in [-most, most), rounded to the element type.
pub fn reals<E: Element>(rng: &mut Pcg64, n: usize, most: f64) -> Vec<E> {
    (0..n).map(|_| E::from_f64(rng.random_range(-most..most))).collect()
}

/// Uniform integers from -most to most.
pub fn integers<E: Element>(rng: &mut Pcg64, n: usize, most: i32) -> Vec<E> {
    (0..n).map(|_| E::from_f64(rng.random_range(-most..=most).into())).collect()
}

/// -1, 0 and 1: of `row` neighbours about `ones` are not zero.
pub fn signs<E: Element>(rng: &mut Pcg64, n: usize, row: usize, ones: usize) -> Vec<E> {
    let mut one = || match rng.random_range(0..row.max(ones)) < ones {
        true => [-1.0, 1.0][rng.random_range(0..2)],
        false => 0.0,
    };
    (0..n).map(|_| E::from_f64(one())).collect()
}
