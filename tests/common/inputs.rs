//! Random inputs, the same on every run.

use super::{DeviceElement, Sizes, random::*};
use lora_kernels::{Dropout, MAX_PROJECTIONS, Problem};
use rand_pcg::Pcg64;

/// The inputs of all operations. `s` is that of the backward pass, which takes any S.
#[derive(Clone)]
pub struct Inputs<E> {
    pub sizes: Sizes,
    pub x: Vec<E>,
    pub a: Vec<E>,
    pub s: Vec<E>,
    pub of: Vec<Of<E>>,
    pub dropout: Option<Dropout<'static>>,
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
            x: integers(rng, t * k, 2),
            w0: integers(rng, d * k, 31),
            a: signs(rng, r * k, k, 100),
            b: signs(rng, d * r, d, 100),
            s: integers(rng, t * r, 8),
            dh: integers(rng, t * d, 2),
        })
    }

    /// Reals, scaled so that base product, update and gradients are all of the order of one.
    pub fn reals(sizes: Sizes, seed: u64) -> Self {
        let unit_variance = |terms: usize| (3.0 / terms as f64).sqrt();
        // No scale is a power of two, so that it matters how often its product is rounded.
        Self::of_each(sizes, [0.7, -1.1, 0.3, 0.9], seed, |[t, k, d, r], rng| Layer {
            x: reals(rng, t * k, 1.0),
            w0: reals(rng, d * k, unit_variance(k)),
            a: reals(rng, r * k, unit_variance(k)),
            b: reals(rng, d * r, unit_variance(r)),
            s: reals(rng, t * r, 1.0),
            dh: reals(rng, t * d, 1.0),
        })
    }

    /// `layer` makes the numbers of a single layer of T, k, d and r. A group takes x, A and S
    /// from a layer of the sum of the ranks, and the rest from a layer for each projection.
    fn of_each(
        sizes: Sizes,
        scales: [f32; MAX_PROJECTIONS],
        seed: u64,
        layer: impl Fn([usize; 4], &mut Pcg64) -> Layer<E>,
    ) -> Self {
        let Sizes { t, k, .. } = sizes;
        if let &[(d, r)] = sizes.of() {
            let Layer { x, w0, a, b, s, dh } = layer([t, k, d, r], &mut rng(seed));
            let of = vec![Of { scale: scales[0], w0, b, dh }];
            return Inputs { sizes, x, a, s, of, dropout: None };
        }
        let Layer { x, a, s, .. } = layer([t, k, 1, sizes.rank()], &mut rng(seed));
        let one = |(i, &(d, r)): (usize, &(usize, usize))| {
            let seed = seed ^ ((i as u64 + 1) << 32);
            let Layer { w0, b, dh, .. } = layer([t, k, d, r], &mut rng(seed));
            Of { scale: scales[i], w0, b, dh }
        };
        let of = sizes.of().iter().enumerate().map(one).collect();
        Inputs { sizes, x, a, s, of, dropout: None }
    }

    pub fn problem(&self) -> Problem {
        let Sizes { t, k, .. } = self.sizes;
        let problem = Problem::new(t, k, self.sizes.of(), E::DTYPE);
        let problem = problem.expect("sizes within the crate's limits");
        problem.with_dropout(self.dropout.is_some())
    }
}
