//! Random inputs, the same on every run.

use super::DeviceElement;
use lora_kernels::{Element, Problem};
use std::fmt;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 32) as usize * n) >> 32
    }

    /// Uniform integers from -most to most.
    fn integers<E: Element>(&mut self, n: usize, most: usize) -> Vec<E> {
        let mut one = || self.below(2 * most + 1) as f64 - most as f64;
        (0..n).map(|_| E::from_f64(one())).collect()
    }

    /// -1, 0 and 1: of `row` neighbours about `ones` are not zero.
    fn signs<E: Element>(&mut self, n: usize, row: usize, ones: usize) -> Vec<E> {
        let mut one = || match self.below(row.max(ones)) < ones {
            true => 2.0 * self.below(2) as f64 - 1.0,
            false => 0.0,
        };
        (0..n).map(|_| E::from_f64(one())).collect()
    }

    /// Uniform in [-most, most), rounded to the element type.
    pub fn reals<E: Element>(&mut self, n: usize, most: f64) -> Vec<E> {
        (0..n).map(|_| E::from_f64(self.unit() * most)).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    pub t: usize,
    pub k: usize,
    pub d: usize,
    pub r: usize,
}

impl Sizes {
    pub const fn new(t: usize, k: usize, d: usize, r: usize) -> Self {
        Sizes { t, k, d, r }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { t, k, d, r } = self;
        write!(f, "T={t} k={k} d={d} r={r}")
    }
}

/// The inputs of all operations. `s` is that of the backward pass, which takes any S.
#[derive(Clone)]
pub struct Inputs<E> {
    pub sizes: Sizes,
    pub scale: f32,
    pub x: Vec<E>,
    pub w0: Vec<E>,
    pub a: Vec<E>,
    pub b: Vec<E>,
    pub s: Vec<E>,
    pub dh: Vec<E>,
}

impl<E: DeviceElement> Inputs<E> {
    /// Integers so small that no f32 sum is ever rounded, in whatever order it runs, and that S
    /// and dS are representable in bf16. What rounds is only the last step, h, dx and the merged
    /// weight to the element type: a correct kernel gives the very numbers of the reference, and
    /// a wrong index shows in every entry it touches.
    ///
    /// S is half the sum of about 100 terms of at most 2 in size, a standard deviation of at most
    /// 8 while bf16 holds the halves up to 128; the same goes for dS. Sums over T stay below
    /// 2^23 by far.
    pub fn integers(sizes: Sizes, seed: u64) -> Self {
        let Sizes { t, k, d, r } = sizes;
        let rng = &mut Rng(seed);
        Inputs {
            sizes,
            scale: 0.5,
            x: rng.integers(t * k, 2),
            w0: rng.integers(d * k, 31),
            a: rng.signs(r * k, k, 100),
            b: rng.signs(d * r, d, 100),
            s: rng.integers(t * r, 8),
            dh: rng.integers(t * d, 2),
        }
    }

    /// Reals, scaled so that base product, update and gradients are all of the order of one.
    pub fn reals(sizes: Sizes, seed: u64) -> Self {
        let Sizes { t, k, d, r } = sizes;
        let rng = &mut Rng(seed);
        let unit_variance = |terms: usize| (3.0 / terms as f64).sqrt();
        Inputs {
            sizes,
            // Not a power of two, so that it matters how often its product is rounded.
            scale: 0.7,
            x: rng.reals(t * k, 1.0),
            w0: rng.reals(d * k, unit_variance(k)),
            a: rng.reals(r * k, unit_variance(k)),
            b: rng.reals(d * r, unit_variance(r)),
            s: rng.reals(t * r, 1.0),
            dh: rng.reals(t * d, 1.0),
        }
    }

    /// The first tokens alone.
    pub fn first_tokens(&self, t: usize) -> Self {
        let Sizes { k, d, r, .. } = self.sizes;
        let mut first = self.clone();
        first.sizes.t = t;
        for (values, cols) in [(&mut first.x, k), (&mut first.s, r), (&mut first.dh, d)] {
            values.truncate(t * cols);
        }
        first
    }

    /// The same numbers in f32, for a reference whose outputs are hardly rounded.
    pub fn widened(&self) -> Inputs<f32> {
        let widen = |values: &[E]| values.iter().map(|v| v.to_f64() as f32).collect();
        Inputs {
            sizes: self.sizes,
            scale: self.scale,
            x: widen(&self.x),
            w0: widen(&self.w0),
            a: widen(&self.a),
            b: widen(&self.b),
            s: widen(&self.s),
            dh: widen(&self.dh),
        }
    }

    pub fn problem(&self) -> Problem {
        let Sizes { t, k, d, r } = self.sizes;
        Problem::new(t, k, d, r, E::DTYPE).expect("sizes within the limits of the crate")
    }
}
