//! Single entries of the outputs, straight from the formulas in f64, for shapes whose whole
//! outputs would take the reference too long; and how far a correct kernel may be from them.
//!
//! A kernel multiplies exactly and adds in f32, the tensor cores by truncation, in an order of
//! its own. Rounding errors of n additions grow like √n rather than n: a sum Σ lᵢ rᵢ may be off
//! by √n · 2⁻²² · ‖l‖ ‖r‖, twice the 2⁻²³ that one truncation costs the largest partial sum
//! (Cauchy-Schwarz bounds each of them by ‖l‖ ‖r‖). On top comes every rounding to the element
//! type: of the output, and of dS before it is multiplied again.

use crate::common::inputs::Of;
use crate::common::random::rng;
use crate::common::run::Outputs;
use crate::common::{Buffers, DeviceElement, Inputs, Place, Sizes};
use approx::abs_diff_eq;
use lora_kernels::{DType, Device, Element};
use rand::RngExt;
use rand_pcg::Pcg64;

/// What the CPU reference makes of the inputs.
pub fn on_cpu<E: DeviceElement>(inputs: &Inputs<E>) -> Outputs<E> {
    let mut buffers = Buffers::new(&Place::aligned(&Device::cpu()), inputs);
    buffers.enqueue().expect("the CPU reference");
    buffers.outputs()
}

/// ‖got − want‖ / ‖want‖, which is NaN if anything is.
pub fn relative_error<E: Element, W: Element>(got: &[E], want: &[W]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut error, mut norm) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        error += (got.to_f64() - want.to_f64()).powi(2);
        norm += want.to_f64().powi(2);
    }
    (error / norm).sqrt()
}

/// What to ask of an entry.
#[derive(Clone, Copy, PartialEq)]
pub enum Expect {
    /// The very number: for [`Inputs::integers`].
    Exact,
    /// No further off than the bound above: for [`Inputs::reals`].
    Bounded,
}

/// The largest relative error of rounding to an element type: 8, 11 and 24 significant bits.
pub fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

/// How far rounding `value` to an element type moves it at most.
fn rounding(dtype: DType, value: f64) -> f64 {
    // Half the distance of f16's subnormals. No test reaches the subnormals of the other types.
    let subnormal = if dtype == DType::F16 { 2f64.powi(-25) } else { 0.0 };
    (unit_roundoff(dtype) * value.abs()).max(subnormal)
}

/// A sum, and how far from it a sum in f32 may be.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    error: f64,
}

impl Sum {
    fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let (mut value, mut lhs, mut rhs, mut terms) = (0.0, 0.0, 0.0, 0u32);
        for (l, r) in pairs {
            value += l * r;
            lhs += l * l;
            rhs += r * r;
            terms += 1;
        }
        let error = f64::from(terms).sqrt() * 2f64.powi(-22) * (lhs * rhs).sqrt();
        Sum { value, error }
    }

    fn plus(self, other: Sum) -> Self {
        Sum { value: self.value + other.value, error: self.error + other.error }
    }

    fn scaled(self, factor: f64) -> Self {
        Sum { value: self.value * factor, error: self.error * factor.abs() }
    }

    /// The sum as stored in an element type.
    fn rounded_to(self, dtype: DType) -> Self {
        let error = self.error + rounding(dtype, self.value.abs() + self.error);
        // The f32 roundings of the scale and of a last addition.
        Sum { value: self.value, error: error + 2f64.powi(-23) * self.value.abs() }
    }

    /// Σ lᵢ rᵢ with an uncertain lhs. Its errors are independent, so their sum exceeds six times
    /// the root of the sum of their squares once in 3e7 entries (Hoeffding), if their worst case
    /// is not lower than that anyway.
    fn of_uncertain(pairs: impl Iterator<Item = (Sum, f64)>) -> Self {
        let (mut worst, mut squares) = (0.0, 0.0);
        let sum = Sum::of(pairs.map(|(l, r)| {
            let error = l.error * r.abs();
            worst += error;
            squares += error * error;
            (l.value, r)
        }));
        Sum { value: sum.value, error: sum.error + f64::min(worst, 6.0 * squares.sqrt()) }
    }
}

fn row<E: Element>(values: &[E], cols: usize, row: usize) -> impl Iterator<Item = f64> + '_ {
    values[row * cols..][..cols].iter().map(|v| v.to_f64())
}

fn col<E: Element>(values: &[E], cols: usize, col: usize) -> impl Iterator<Item = f64> + '_ {
    values[col..].iter().step_by(cols).map(|v| v.to_f64())
}

/// Both ends, both sides of every tile border in reach, and some at random.
fn positions(n: usize, random: usize, rng: &mut Pcg64) -> Vec<usize> {
    let mut at = vec![0, n / 2, n - 1, n.saturating_sub(2)];
    at.extend([31, 32, 63, 64, 127, 128, 255, 256].iter().filter(|&&i| i < n));
    at.extend((0..random).map(|_| rng.random_range(0..n)));
    at.sort_unstable();
    at.dedup();
    at
}

/// Checks a few hundred entries of every output, O(k), O(d) or O(T) each.
pub fn check_samples<E: DeviceElement>(inputs: &Inputs<E>, outputs: &Outputs<E>, expect: Expect) {
    let (Sizes { t, k, .. }, rank) = (inputs.sizes, inputs.sizes.rank());
    let Inputs { x, a, s: s_in, .. } = inputs;
    let rng = &mut rng(1);
    let (t_at, k_at) = (positions(t, 12, rng), positions(k, 12, rng));
    let check = Check { sizes: inputs.sizes, expect };
    let mut dx = vec![Sum::default(); t_at.len() * k_at.len()];

    for (p, (of, &(d, r))) in inputs.of.iter().zip(inputs.sizes.of()).enumerate() {
        let (Of { w0, b, dh, .. }, start) = (of, inputs.sizes.start(p));
        let scale = f64::from(of.scale);
        let name = |output: &str| format!("{output} of projection {p}");
        let (d_at, r_at) = (positions(d, 12, rng), positions(r, 2, rng));
        let ds = |row_: usize, j: usize| {
            Sum::of(row(dh, d, row_).zip(col(b, r, j))).scaled(scale).rounded_to(E::DTYPE)
        };

        for (&i, dx) in t_at.iter().zip(dx.chunks_mut(k_at.len())) {
            for &j in &r_at {
                let s = Sum::of(row(x, k, i).zip(row(a, k, start + j))).scaled(scale);
                check.entry(&name("s"), [i, j], outputs.s[i * rank + start + j], s);
            }
            for &j in &d_at {
                // S as the kernel rounded it: checked above, and what it multiplies from here on.
                let s = row(&outputs.s, rank, i).skip(start);
                let base = Sum::of(row(x, k, i).zip(row(w0, k, j)));
                let update = Sum::of(s.zip(row(b, r, j)));
                check.entry(&name("h of base"), [i, j], outputs.base_h[p][i * d + j], base);
                check.entry(&name("h"), [i, j], outputs.h[p][i * d + j], base.plus(update));
            }
            let ds: Vec<Sum> = (0..r).map(|j| ds(i, j)).collect();
            for (&j, dx) in k_at.iter().zip(dx) {
                let base = Sum::of(row(dh, d, i).zip(col(w0, k, j)));
                let a = col(a, k, j).skip(start);
                let update = Sum::of_uncertain(ds.iter().copied().zip(a));
                check.entry(&name("dx of base"), [i, j], outputs.base_dx[p][i * k + j], base);
                *dx = dx.plus(base).plus(update);
            }
        }
        for &i in &r_at {
            let ds: Vec<Sum> = (0..t).map(|row| ds(row, i)).collect();
            for &j in &k_at {
                let da = Sum::of_uncertain(ds.iter().copied().zip(col(x, k, j)));
                check.entry(&name("da"), [i, j], outputs.da[(start + i) * k + j], da);
            }
            for &j in &d_at {
                let db = Sum::of(col(dh, d, j).zip(col(s_in, rank, start + i)));
                check.entry(&name("db"), [j, i], outputs.db[p][j * r + i], db);
            }
        }
        for &i in &d_at {
            for &j in &k_at {
                let w = Sum { value: w0[i * k + j].to_f64(), error: 0.0 };
                let a = col(a, k, j).skip(start);
                let update = Sum::of(row(b, r, i).zip(a)).scaled(scale);
                check.entry(&name("merged"), [i, j], outputs.merged[p][i * k + j], w.plus(update));
            }
        }
    }
    for (&i, dx) in t_at.iter().zip(dx.chunks(k_at.len())) {
        for (&j, &dx) in k_at.iter().zip(dx) {
            check.entry("dx", [i, j], outputs.dx[i * k + j], dx);
        }
    }
}

struct Check {
    sizes: Sizes,
    expect: Expect,
}

impl Check {
    fn entry<E: DeviceElement>(&self, output: &str, at: [usize; 2], got: E, want: Sum) {
        let (number, bound) = match self.expect {
            Expect::Exact => (E::from_f64(want.value).to_f64(), 0.0),
            Expect::Bounded => (want.value, want.rounded_to(E::DTYPE).error),
        };
        assert!(
            abs_diff_eq!(got.to_f64(), number, epsilon = bound),
            "{}, {}: {output}{at:?} is {got:?}, not {number:e} ± {bound:e}",
            self.sizes,
            E::DTYPE
        );
    }
}
