//! Every operation on a GPU with real numbers: rounding errors within what the formats allow.
//!
//! The norm of the error is held against that of the output, entry by entry the bounds of
//! `oracle::check_samples` apply. The reference runs in f32 on the very values of the inputs, so
//! its own rounding is of no account.

use crate::common::inputs::Of;
use crate::common::run::Outputs;
use crate::common::{DeviceElement, Inputs, Place, Placement, Sizes};
use crate::cuda::cuda_paths;
use crate::device::on_cuda;
use crate::oracle::{Expect, check_samples, on_cpu, relative_error, unit_roundoff};
use approx::abs_diff_eq;
use half::{bf16, f16};

/// The largest norm-wise error of a sum over `t` tokens, of nothing but f32 additions. Tensor cores
/// truncate by up to 2⁻²³ of the partial sum, and all in the same direction; this allows for one
/// truncation every 4 products, twice as many as an mma of the older GPUs makes. Chains of tensor
/// core additions go over 2048 tokens at most where T is that long and the layer small, as here,
/// and what they come to is added with rounding, which costs next to nothing.
fn f32_sums(t: usize) -> f64 {
    (t.min(2048) as f64 / 4.0 + 2.0) * 2f64.powi(-23)
}

/// Rounding to n bits moves no entry by more than the unit roundoff u of its value, and their
/// norm by about 0.4 u. So u itself leaves room for the rounding of S under h, and of dS under
/// dx and dA, whose norms are no larger and add in quadrature; an error of twice the expected
/// size, such as another rounding on the way, it does not let pass.
pub fn check_norms<E: DeviceElement>(sizes: Sizes, got: &Outputs<E>, want: &Outputs<f32>) {
    let u = unit_roundoff(E::DTYPE);
    let mut errors = vec![
        ("s".to_string(), relative_error(&got.s, &want.s), u),
        ("dx".to_string(), relative_error(&got.dx, &want.dx), u),
        ("da".to_string(), relative_error(&got.da, &want.da), u),
    ];
    for i in 0..sizes.of().len() {
        let mut add =
            |output: &str, error, bound| errors.push((format!("{output}[{i}]"), error, bound));
        add("h of base", relative_error(&got.base_h[i], &want.base_h[i]), u);
        add("h", relative_error(&got.h[i], &want.h[i]), u);
        add("dx of base", relative_error(&got.base_dx[i], &want.base_dx[i]), u);
        add("merged", relative_error(&got.merged[i], &want.merged[i]), u);
        // S is an input of the backward pass: nothing under dB is rounded but its f32 sums.
        add("db", relative_error(&got.db[i], &want.db[i]), f32_sums(sizes.t));
    }
    for (output, error, bound) in errors {
        println!("{sizes} {}: {output} off by {error:.2e}, bound {bound:.2e}", E::DTYPE);
        assert!(error <= bound, "{sizes} {}: {output} is off by {error:e}", E::DTYPE);
    }
}

/// The same numbers in f32, for a reference whose outputs are hardly rounded.
pub fn widened<E: DeviceElement>(inputs: &Inputs<E>) -> Inputs<f32> {
    let widen = |values: &[E]| values.iter().map(|v| v.to_f64() as f32).collect();
    let of = |Of { scale, w0, b, dh }: &Of<E>| Of {
        scale: *scale,
        w0: widen(w0),
        b: widen(b),
        dh: widen(dh),
    };
    Inputs {
        sizes: inputs.sizes,
        x: widen(&inputs.x),
        a: widen(&inputs.a),
        s: widen(&inputs.s),
        of: inputs.of.iter().map(of).collect(),
        dropout: inputs.dropout,
    }
}

fn is_accurate<E: DeviceElement>(shapes: &[Sizes]) {
    for (seed, &sizes) in shapes.iter().enumerate() {
        let inputs = Inputs::<E>::reals(sizes, seed as u64);
        let reference = on_cpu(&widened(&inputs));
        let [best, generic] = cuda_paths();
        let odd = (generic.clone(), Placement::Odd);
        for (device, placement) in [(best, Placement::Aligned), (generic, Placement::Aligned), odd]
        {
            let outputs = on_cuda(&Place { device, placement }, &inputs);
            check_norms(sizes, &outputs, &reference);
            check_samples(&inputs, &outputs, Expect::Bounded);
        }
    }
}

const SHAPES: &[Sizes] = &[
    Sizes::new(127, 64, 40, 1),
    Sizes::new(200, 33, 77, 3),
    Sizes::new(64, 896, 896, 16),
    Sizes::new(127, 896, 1024, 256),
    Sizes::new(127, 4096, 1024, 64),
    Sizes::new(1027, 520, 130, 8),
    Sizes::new(8191, 64, 40, 200),
    // In dX's sum, each projection is one more term of the same size.
    Sizes::group(127, 896, &[(896, 16), (128, 8), (128, 24)]),
    Sizes::group(1027, 130, &[(520, 8), (33, 65)]),
];

#[test]
#[ignore = "needs a CUDA GPU"]
fn bf16_is_accurate() {
    is_accurate::<bf16>(SHAPES);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn f16_is_accurate() {
    is_accurate::<f16>(SHAPES);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn long_sums_over_tokens() {
    let sizes = Sizes::new(262_144, 64, 40, 8);
    let inputs = Inputs::<bf16>::reals(sizes, 3);
    let reference = on_cpu(&widened(&inputs));
    for device in cuda_paths() {
        let place = Place { device, placement: Placement::Aligned };
        let outputs = on_cuda(&place, &inputs);
        check_norms(sizes, &outputs, &reference);

        // No entry of dB may hide behind the norm of the others: all have the same variance, and
        // the error of one is that of its own partial sums, a few times the norm-wise one.
        let squares = reference.db[0].iter().map(|v| v * v).sum::<f32>();
        let rms = (squares / reference.db[0].len() as f32).sqrt();
        let bound = 4.0 * f32_sums(sizes.t) as f32 * rms;
        for (i, (got, want)) in outputs.db[0].iter().zip(&reference.db[0]).enumerate() {
            assert!(
                abs_diff_eq!(got, want, epsilon = bound),
                "db[{i}] is {got}, not {want} ± {bound}"
            );
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_large_layer_is_accurate() {
    let inputs = Inputs::<bf16>::reals(Sizes::new(8191, 4096, 1024, 16), 5);
    for device in cuda_paths() {
        let place = Place { device, placement: Placement::Aligned };
        check_samples(&inputs, &on_cuda(&place, &inputs), Expect::Bounded);
    }
}
