//! Dropout on the CPU reference: against the formulas with the mask by hand, by central differences,
//! and what a layer does with it.

use crate::common::run::Outputs;
use crate::common::{Inputs, Sizes, assert_same_bits};
use crate::oracle::on_cpu;
use crate::parts;
use approx::assert_relative_eq;
use lora_kernels::ops::{Forward, Projection, Weights};
use lora_kernels::{Accumulation, Device, Dropout, DropoutState, Error, LoraLinear, Problem};
use lora_kernels::{DType, Result, Tensor, Workspace};

const SIZES: [Sizes; 3] =
    [Sizes::new(1, 1, 1, 1), Sizes::new(6, 7, 9, 3), Sizes::new(33, 70, 24, 8)];

fn dropped(sizes: Sizes, p: f32) -> Inputs<f32> {
    Inputs::reals(sizes, 12).dropped(p, 5, 1 << 40)
}

/// The loss L = Σ G ∘ (X W0ᵀ + s · (m ∘ X / (1 − p)) Aᵀ Bᵀ) in f64.
struct Loss {
    sizes: Sizes,
    scale: f64,
    factors: Vec<f64>,
    w0: Vec<f64>,
    g: Vec<f64>,
}

impl Loss {
    fn of(&self, [x, a, b]: &[Vec<f64>; 3]) -> f64 {
        let [t, k, d, r] = self.sizes.single();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let mut loss = 0.0;
        for row in 0..t {
            let x = &x[row * k..][..k];
            let factors = &self.factors[row * k..][..k];
            let kept: Vec<f64> = x.iter().zip(factors).map(|(x, factor)| x * factor).collect();
            let s: Vec<f64> = a.chunks(k).map(|a| self.scale * dot(&kept, a)).collect();
            let of = self.w0.chunks(k).zip(b.chunks(r)).zip(&self.g[row * d..][..d]);
            loss += of.map(|((w0, b), g)| g * (dot(x, w0) + dot(&s, b))).sum::<f64>();
        }
        loss
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// H is linear in each of A, B and x: the central difference of any step is the derivative.
#[test]
fn gradients_match_central_differences() {
    for (sizes, p) in SIZES.into_iter().zip([0.5, 0.3, 0.1]) {
        let [t, k, ..] = sizes.single();
        let mut inputs = dropped(sizes, p);
        let kept = inputs.dropout.unwrap().kept([t, k]).unwrap();
        let factor = |kept: bool| if kept { 1.0 / (1.0 - f64::from(p)) } else { 0.0 };
        let of = &inputs.of[0];
        let loss = Loss {
            sizes,
            scale: of.scale.into(),
            factors: kept.into_iter().map(factor).collect(),
            w0: wide(&of.w0),
            g: wide(&of.dh),
        };
        let point = [wide(&inputs.x), wide(&inputs.a), wide(&of.b)];
        // The backward pass takes the S of this forward pass.
        inputs.s = on_cpu(&inputs).s;
        let Outputs { dx, da, db, .. } = on_cpu(&inputs);
        for (which, gradient) in [wide(&dx), wide(&da), wide(&db[0])].into_iter().enumerate() {
            assert_eq!(gradient.len(), point[which].len());
            let rms = (gradient.iter().map(|g| g * g).sum::<f64>() / gradient.len() as f64).sqrt();
            for (i, &got) in gradient.iter().enumerate() {
                let at = |step: f64| {
                    let mut point = point.clone();
                    point[which][i] += step;
                    loss.of(&point)
                };
                let want = (at(1.0) - at(-1.0)) / 2.0;
                // As without dropout: tests/cpu/reference.rs.
                assert_relative_eq!(
                    got,
                    want,
                    epsilon = 2f64.powi(-23) * rms,
                    max_relative = 2f64.powi(-23)
                );
            }
        }
    }
}

#[test]
fn nothing_is_dropped_with_p_zero() {
    for sizes in SIZES {
        let (with, without) = (on_cpu(&dropped(sizes, 0.0)), on_cpu(&Inputs::reals(sizes, 12)));
        with.assert_same_bits(&without, &sizes.to_string());
    }
}

/// A mask with a zero where x is infinite.
#[test]
fn an_infinity_is_dropped() {
    let sizes = Sizes::new(33, 70, 24, 8);
    let mut inputs = dropped(sizes, 0.5);
    let kept = inputs.dropout.unwrap().kept([33, 70]).unwrap();
    inputs.x[kept.iter().position(|kept| !kept).unwrap()] = f32::INFINITY;
    assert!(on_cpu(&inputs).s.iter().all(|s| s.is_finite()));
}

fn layer(inputs: &Inputs<f32>) -> LoraLinear {
    parts::layer(&Device::cpu(), inputs).unwrap()
}

fn x_of(inputs: &Inputs<f32>) -> Tensor {
    let Sizes { t, k, .. } = inputs.sizes;
    Tensor::from_slice(&Device::cpu(), &inputs.x, [t, k]).unwrap()
}

#[test]
fn a_layer_drops_in_training_only() -> Result<()> {
    let inputs = Inputs::<f32>::reals(Sizes::group(33, 70, &[(24, 8), (9, 4)]), 3);
    let (mut layer, x) = (layer(&inputs), x_of(&inputs));
    let bits = |h: &[Tensor]| -> Result<Vec<Vec<f32>>> { h.iter().map(Tensor::to_vec).collect() };
    let whole = bits(&layer.forward(&x)?.h)?;

    layer.train(0.25, 9, 7)?;
    let first = layer.forward(&x)?;
    let second = layer.forward(&x)?;
    let of = |out: &lora_kernels::LayerOutput<'_>| {
        out.saved.dropout.map(|dropout| (dropout.p(), dropout.seed_and_offset().unwrap()))
    };
    assert_eq!(of(&first), Some((0.25, (9, 7))));
    assert_eq!(of(&second), Some((0.25, (9, 7 + 33))));
    let (h1, h2) = (bits(&first.h)?, bits(&second.h)?);
    assert!(h1 != whole && h2 != whole && h1 != h2);
    assert_eq!(bits(&layer.infer(&x)?)?, whole);

    // From the same place again, as after a checkpoint.
    let next = layer.dropout().unwrap();
    assert_eq!(next.seed_and_offset(), Some((9, 7 + 66)));
    layer.train(0.25, 9, 7)?;
    assert_eq!(bits(&layer.forward(&x)?.h)?, h1);

    // The backward pass drops what its forward pass did, whatever the layer does now.
    layer.eval();
    assert_eq!(bits(&layer.forward(&x)?.h)?, whole);
    assert!(layer.dropout().is_none());
    let dh: Vec<Tensor> = (inputs.of.iter().zip(inputs.sizes.of()))
        .map(|(of, &(d, _))| Tensor::from_slice(&Device::cpu(), &of.dh, [33, d]))
        .collect::<Result<_>>()?;
    let mut gradients = layer.zero_gradients()?;
    let dh: Vec<&Tensor> = dh.iter().collect();
    let dx = layer.backward(&dh, &first.saved, &mut gradients, Accumulation::Overwrite)?;
    let mut by_operations = inputs.clone().dropped(0.25, 9, 7);
    by_operations.s = first.saved.s.to_vec()?;
    let want = on_cpu(&by_operations);
    assert_same_bits("dx", &dx.to_vec::<f32>()?, &want.dx);
    assert_same_bits("da", &gradients.a.to_vec::<f32>()?, &want.da);
    Ok(())
}

#[test]
fn a_layer_refuses_what_is_no_probability() -> Result<()> {
    let mut layer = layer(&Inputs::reals(Sizes::new(2, 8, 8, 2), 1));
    for p in [1.0, -0.5, f32::NAN] {
        assert!(matches!(layer.train(p, 0, 0), Err(Error::Dropout { .. })));
    }
    layer.train(0.0, 0, 0)?;
    assert!(layer.dropout().is_none());
    Ok(())
}

/// An operation was made for calls with dropout or for calls without.
#[test]
fn calls_fit_their_operation() -> Result<()> {
    let device = Device::cpu();
    let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::F32);
    let (x, w0, a, b, mut h) =
        (zeros([2, 8])?, zeros([4, 8])?, zeros([2, 8])?, zeros([4, 2])?, zeros([2, 4])?);
    let state = DropoutState::new(&device, 1, 2)?;
    let layer = [Projection::new(w0.view(), b.view(), 1.0)];
    let whole = Weights::new(a.view(), &layer);
    let dropped = whole.with_dropout(Dropout::from_state(0.5, &state)?);
    let problem = Problem::single(2, 8, 4, 2, DType::F32)?;
    let mut run = |weights: &Weights<'_>, dropout| {
        let forward = Forward::new(&device, &problem.with_dropout(dropout))?;
        let mut workspace = Workspace::new(&device, forward.workspace())?;
        forward.run(weights, x.view(), &mut [h.view_mut()], None, &mut workspace)
    };
    run(&whole, false)?;
    run(&dropped, true)?;
    let message = |result: Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        message(run(&whole, true)),
        "dropout must be given, as the operation was made with it, got none"
    );
    assert_eq!(
        message(run(&dropped, false)),
        "dropout must be none, as the operation was made without it, got p = 0.5"
    );
    Ok(())
}
