//! Random inputs, the same on every run.

use super::DeviceElement;
use lora_kernels::{Element, MAX_PROJECTIONS, Problem};
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

/// T, k, and the (d, r) of 1 to 4 projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    pub t: usize,
    pub k: usize,
    /// The first `count` are used.
    of: [(usize, usize); MAX_PROJECTIONS],
    count: usize,
}

impl Sizes {
    /// A single layer.
    pub const fn new(t: usize, k: usize, d: usize, r: usize) -> Self {
        Sizes::group(t, k, &[(d, r)])
    }

    /// A group of projections of these (d, r).
    pub const fn group(t: usize, k: usize, of: &[(usize, usize)]) -> Self {
        let (mut all, mut i) = ([(0, 0); MAX_PROJECTIONS], 0);
        while i < of.len() {
            all[i] = of[i];
            i += 1;
        }
        Sizes { t, k, of: all, count: of.len() }
    }

    /// d and r of every projection.
    pub fn of(&self) -> &[(usize, usize)] {
        &self.of[..self.count]
    }

    /// T, k, d and r of a single layer.
    pub fn single(&self) -> [usize; 4] {
        let &[(d, r)] = self.of() else { panic!("{self} is no single layer") };
        [self.t, self.k, d, r]
    }

    /// The sum of the ranks.
    pub fn rank(&self) -> usize {
        self.start(self.count)
    }

    /// The column of S at which a projection begins.
    pub fn start(&self, projection: usize) -> usize {
        self.of[..projection].iter().map(|&(_, r)| r).sum()
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { t, k, .. } = self;
        match self.of() {
            [(d, r)] => write!(f, "T={t} k={k} d={d} r={r}"),
            of => write!(f, "T={t} k={k} (d, r)={of:?}"),
        }
    }
}

/// The inputs of all operations. `s` is that of the backward pass, which takes any S.
#[derive(Clone)]
pub struct Inputs<E> {
    pub sizes: Sizes,
    pub x: Vec<E>,
    pub a: Vec<E>,
    pub s: Vec<E>,
    pub of: Vec<Of<E>>,
}

/// What a projection has for itself.
#[derive(Clone)]
pub struct Of<E> {
    pub scale: f32,
    pub w0: Vec<E>,
    pub b: Vec<E>,
    pub dh: Vec<E>,
}

/// The inputs of a single layer, without its scale.
struct Layer<E> {
    x: Vec<E>,
    w0: Vec<E>,
    a: Vec<E>,
    b: Vec<E>,
    s: Vec<E>,
    dh: Vec<E>,
}

impl<E: DeviceElement> Inputs<E> {
    /// Integers so small that no f32 sum is ever rounded, in whatever order it runs, and that S
    /// and dS are representable in bf16. What rounds is only the last step, h, dx and the merged
    /// weight to the element type: a correct kernel gives the very numbers of the reference, and
    /// a wrong index shows in every entry it touches.
    ///
    /// S is half the sum of about 100 terms of at most 2 in size, a standard deviation of at most
    /// 8 while bf16 holds the halves up to 128; the same goes for dS. The other scales are powers
    /// of two, with which S and dS have no more bits. Sums over T stay below 2^23 by far.
    pub fn integers(sizes: Sizes, seed: u64) -> Self {
        Self::of_each(sizes, [0.5, -1.0, 0.25, 2.0], seed, |[t, k, d, r], rng| Layer {
            x: rng.integers(t * k, 2),
            w0: rng.integers(d * k, 31),
            a: rng.signs(r * k, k, 100),
            b: rng.signs(d * r, d, 100),
            s: rng.integers(t * r, 8),
            dh: rng.integers(t * d, 2),
        })
    }

    /// Reals, scaled so that base product, update and gradients are all of the order of one.
    pub fn reals(sizes: Sizes, seed: u64) -> Self {
        let unit_variance = |terms: usize| (3.0 / terms as f64).sqrt();
        // No scale is a power of two, so that it matters how often its product is rounded.
        Self::of_each(sizes, [0.7, -1.1, 0.3, 0.9], seed, |[t, k, d, r], rng| Layer {
            x: rng.reals(t * k, 1.0),
            w0: rng.reals(d * k, unit_variance(k)),
            a: rng.reals(r * k, unit_variance(k)),
            b: rng.reals(d * r, unit_variance(r)),
            s: rng.reals(t * r, 1.0),
            dh: rng.reals(t * d, 1.0),
        })
    }

    /// `layer` makes the numbers of a single layer of T, k, d and r. A group takes x, A and S
    /// from a layer of the sum of the ranks, and the rest from a layer for each projection.
    fn of_each(
        sizes: Sizes,
        scales: [f32; MAX_PROJECTIONS],
        seed: u64,
        layer: impl Fn([usize; 4], &mut Rng) -> Layer<E>,
    ) -> Self {
        let Sizes { t, k, .. } = sizes;
        if let &[(d, r)] = sizes.of() {
            let Layer { x, w0, a, b, s, dh } = layer([t, k, d, r], &mut Rng(seed));
            return Inputs { sizes, x, a, s, of: vec![Of { scale: scales[0], w0, b, dh }] };
        }
        let Layer { x, a, s, .. } = layer([t, k, 1, sizes.rank()], &mut Rng(seed));
        let one = |(i, &(d, r)): (usize, &(usize, usize))| {
            let seed = seed ^ ((i as u64 + 1) << 32);
            let Layer { w0, b, dh, .. } = layer([t, k, d, r], &mut Rng(seed));
            Of { scale: scales[i], w0, b, dh }
        };
        Inputs { sizes, x, a, s, of: sizes.of().iter().enumerate().map(one).collect() }
    }

    /// The inputs of one projection, as a single layer.
    pub fn alone(&self, i: usize) -> Self {
        let (Sizes { t, k, .. }, (d, r)) = (self.sizes, self.sizes.of()[i]);
        let start = self.sizes.start(i);
        Inputs {
            sizes: Sizes::new(t, k, d, r),
            x: self.x.clone(),
            a: self.a[start * k..(start + r) * k].to_vec(),
            s: columns(&self.s, self.sizes.rank(), start, r),
            of: vec![self.of[i].clone()],
        }
    }

    /// The first tokens alone.
    pub fn first_tokens(&self, t: usize) -> Self {
        let mut first = self.clone();
        first.sizes.t = t;
        first.x.truncate(t * self.sizes.k);
        first.s.truncate(t * self.sizes.rank());
        for (of, (d, _)) in first.of.iter_mut().zip(self.sizes.of()) {
            of.dh.truncate(t * d);
        }
        first
    }

    /// The same numbers in f32, for a reference whose outputs are hardly rounded.
    pub fn widened(&self) -> Inputs<f32> {
        let widen = |values: &[E]| values.iter().map(|v| v.to_f64() as f32).collect();
        let of = |Of { scale, w0, b, dh }: &Of<E>| Of {
            scale: *scale,
            w0: widen(w0),
            b: widen(b),
            dh: widen(dh),
        };
        Inputs {
            sizes: self.sizes,
            x: widen(&self.x),
            a: widen(&self.a),
            s: widen(&self.s),
            of: self.of.iter().map(of).collect(),
        }
    }

    pub fn problem(&self) -> Problem {
        let Sizes { t, k, .. } = self.sizes;
        Problem::new(t, k, self.sizes.of(), E::DTYPE).expect("sizes within the crate's limits")
    }
}

/// So many columns from `start` on, of a matrix of `cols`.
pub fn columns<E: Copy>(values: &[E], cols: usize, start: usize, n: usize) -> Vec<E> {
    values.chunks(cols).flat_map(|row| &row[start..start + n]).copied().collect()
}
