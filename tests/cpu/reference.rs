//! The CPU reference against the formulas: worked by hand, recomputed, and by what must hold.

use crate::common::random::{reals, rng};
use crate::common::{DeviceElement, Inputs, Sizes, assert_same_bits};
use crate::oracle::{Expect, check_samples, on_cpu, relative_error, unit_roundoff};
use crate::parts;
use approx::{abs_diff_eq, assert_abs_diff_eq};
use half::{bf16, f16};
use lora_kernels::ops::BaseForward;
use lora_kernels::{
    Accumulation, Adapter, AdapterConfig, DType, Device, LayerGradients, LoraLinear,
};
use lora_kernels::{Result, Saved, Scaling, Tensor, TensorView, TensorViewMut, Workspace};

/// Sizes with T = 1, one of everything, odd rows, and a rank above the layer's own.
const SIZES: [Sizes; 5] = [
    Sizes::new(1, 1, 1, 1),
    Sizes::new(1, 8, 5, 2),
    Sizes::new(6, 7, 9, 3),
    Sizes::new(33, 40, 24, 8),
    Sizes::new(70, 5, 6, 64),
];

fn tensor(values: &[f32], shape: [usize; 2]) -> Tensor {
    Tensor::from_f32(&Device::cpu(), values, shape, DType::F32).unwrap()
}

fn layer(w0: Tensor, a: Tensor, b: Tensor, alpha: f32) -> LoraLinear {
    LoraLinear::new(w0, Adapter::from_tensors(a, b, alpha, Scaling::Standard).unwrap()).unwrap()
}

fn layer_of<E: DeviceElement>(inputs: &Inputs<E>) -> Result<LoraLinear> {
    parts::layer(&Device::cpu(), inputs)
}

fn x_of<E: DeviceElement>(inputs: &Inputs<E>) -> Tensor {
    let [t, k, ..] = inputs.sizes.single();
    Tensor::from_slice(&Device::cpu(), &inputs.x, [t, k]).unwrap()
}

/// T = 2, k = 3, d = 2, r = 1, α = 2, so s = 2.
///
/// ```text
/// X = 1 2 3     W0 = 1 0 2     A = 1 -1 2     B = 3     dH = 1 -1
///     0 1 -1         0 1 1                        -2         2 1
///
/// X Aᵀ = (1 - 2 + 6, -1 - 2) = (5, -3)        S = 2 · (5, -3) = (10, -6)
/// X W0ᵀ = 7 5     S Bᵀ = 30 -20     H = 37 -15
///        -2 0           -18  12        -20  12
/// dH B = (3 + 2, 6 - 2) = (5, 4)              dS = (10, 8)
/// dH W0 = 1 -1 1     dS A = 10 -10 20     dX = 11 -11 21
///         2  1 5             8  -8 16          10  -7 21
/// dA = dSᵀ X = 10 · (1 2 3) + 8 · (0 1 -1) = 10 28 22
/// dB = dHᵀ S = (10 - 12, -10 - 6) = (-2, -16)
/// W0 + 2 B A = W0 + 2 · 3 -3  6 = 7 -6 14
///                      -2  2 -4  -4  5 -7
/// ```
#[test]
fn worked_by_hand() -> Result<()> {
    let w0 = tensor(&[1., 0., 2., 0., 1., 1.], [2, 3]);
    let layer = layer(w0, tensor(&[1., -1., 2.], [1, 3]), tensor(&[3., -2.], [2, 1]), 2.0);
    let x = tensor(&[1., 2., 3., 0., 1., -1.], [2, 3]);
    let dh = tensor(&[1., -1., 2., 1.], [2, 2]);

    let out = layer.forward(&x)?;
    assert_eq!(out.saved.s.to_vec::<f32>()?, [10., -6.]);
    assert_eq!(out.h[0].to_vec::<f32>()?, [37., -15., -20., 12.]);
    assert_eq!(layer.forward_base(&x)?[0].to_vec::<f32>()?, [7., 5., -2., 0.]);
    assert_eq!(layer.infer(&x)?[0].to_vec::<f32>()?, out.h[0].to_vec::<f32>()?);

    let mut grads = layer.zero_gradients()?;
    let dx = layer.backward(&[&dh], &out.saved, &mut grads, Accumulation::Overwrite)?;
    assert_eq!(dx.to_vec::<f32>()?, [11., -11., 21., 10., -7., 21.]);
    assert_eq!(grads.a.to_vec::<f32>()?, [10., 28., 22.]);
    assert_eq!(grads.b[0].to_vec::<f32>()?, [-2., -16.]);
    assert_eq!(layer.merged()?[0].to_vec::<f32>()?, [7., -6., 14., -4., 5., -7.]);
    Ok(())
}

/// Against the entry-by-entry recomputation that also judges the GPU, and that is thereby shown
/// to be right itself.
#[test]
fn agrees_with_an_independent_computation() {
    for sizes in SIZES {
        let (bf16, f16) = (Inputs::<bf16>::integers(sizes, 1), Inputs::<f16>::integers(sizes, 2));
        check_samples(&bf16, &on_cpu(&bf16), Expect::Exact);
        check_samples(&f16, &on_cpu(&f16), Expect::Exact);
        let f32 = Inputs::<f32>::reals(sizes, 3);
        check_samples(&f32, &on_cpu(&f32), Expect::Bounded);
    }
}

/// One f64 sum, one rounding: rounding to f32 on the way, or ignoring low bits, would turn this
/// sum into a tie, which then goes to the even neighbour below.
#[test]
fn outputs_are_rounded_once() -> Result<()> {
    /// The sum 1 + u + 2⁻³⁷, with u half a unit in the last place of `E`.
    fn just_above_a_tie<E: DeviceElement>(u: f64) -> Result<()> {
        let x = [1.0, 1.0, 2f64.powi(-13)].map(E::from_f64);
        for sign in [1.0, -1.0] {
            let w0 = [1.0, u, 2f64.powi(-24)].map(|w| E::from_f64(sign * w));
            let mut h = [E::from_f64(0.0)];
            let (w0_view, x) =
                (TensorView::from_host(&w0, [1, 3])?, TensorView::from_host(&x, [1, 3])?);
            let base = BaseForward::new(&Device::cpu(), 1, [1, 3], E::DTYPE)?;
            let mut workspace = Workspace::new(&Device::cpu(), base.workspace())?;
            let h_view = TensorViewMut::from_host(&mut h, [1, 1])?;
            base.run(w0_view, x, h_view, &mut workspace)?;
            assert_eq!(h[0].to_f64(), sign * (1.0 + 2.0 * u), "{}", E::DTYPE);
        }
        Ok(())
    }
    just_above_a_tie::<f32>(unit_roundoff(DType::F32))?;
    just_above_a_tie::<f16>(unit_roundoff(DType::F16))?;
    just_above_a_tie::<bf16>(unit_roundoff(DType::Bf16))
}

/// The last bit of an f32 decides whether a value is a tie of bf16 or f16.
#[test]
fn values_are_rounded_to_the_nearest() -> Result<()> {
    for dtype in [DType::Bf16, DType::F16] {
        let u = unit_roundoff(dtype) as f32;
        let (below, tie, above) = (1.0 + u * 0.999, 1.0 + u, 1.0 + u + f32::EPSILON);
        let values = [below, tie, above, -above, 1.0 + 2.0 * u + u, 1.0 + 3.0 * u - f32::EPSILON];
        let up = 1.0 + 2.0 * u;
        let tensor = Tensor::from_f32(&Device::cpu(), &values, [6], dtype)?;
        assert_eq!(tensor.to_f32_vec()?, [1.0, 1.0, up, -up, 1.0 + 4.0 * u, up], "{dtype}");
    }
    Ok(())
}

#[test]
fn b_zero_is_the_base_layer() -> Result<()> {
    for sizes in SIZES {
        let mut inputs = Inputs::<bf16>::reals(sizes, 5);
        inputs.of[0].b.fill(bf16::ZERO);
        let outputs = on_cpu(&inputs);
        assert_same_bits("h", &outputs.h[0], &outputs.base_h[0]);
        assert_same_bits("dx", &outputs.dx, &outputs.base_dx[0]);
        assert_same_bits("merged", &outputs.merged[0], &inputs.of[0].w0);
    }
    // And so is an adapter fresh from its configuration.
    let w0 =
        Tensor::from_slice(&Device::cpu(), &reals::<bf16>(&mut rng(1), 12 * 20, 1.0), [12, 20])?;
    let config = AdapterConfig::new(4).with_alpha(8.0);
    let adapter = Adapter::new(&Device::cpu(), [12, 20], DType::Bf16, &config)?;
    let layer = LoraLinear::new(w0, adapter)?;
    let x = Tensor::from_slice(&Device::cpu(), &reals::<bf16>(&mut rng(2), 3 * 20, 1.0), [3, 20])?;
    let (out, base) = (layer.forward(&x)?, layer.forward_base(&x)?);
    assert_same_bits("h", &out.h[0].to_vec::<bf16>()?, &base[0].to_vec::<bf16>()?);
    assert!(out.saved.s.to_vec::<bf16>()?.iter().any(|&s| s != bf16::ZERO), "A is Gaussian");
    Ok(())
}

/// H - W0 x is linear in α. On integers every step is exact, so twice α is twice the update to
/// the last bit.
#[test]
fn twice_alpha_is_twice_the_update() -> Result<()> {
    let mut inputs = Inputs::<f32>::integers(Sizes::new(9, 12, 10, 4), 6);
    let x = x_of(&inputs);
    let update = |inputs: &Inputs<f32>| -> Result<Vec<f32>> {
        let layer = layer_of(inputs)?;
        let (h, base) = (layer.forward(&x)?.h, layer.forward_base(&x)?);
        let (h, base) = (h[0].to_vec::<f32>()?, base[0].to_vec::<f32>()?);
        Ok(h.iter().zip(&base).map(|(h, base)| h - base).collect())
    };
    let once = update(&inputs)?;
    inputs.of[0].scale *= 2.0;
    let twice: Vec<f32> = once.iter().map(|u| 2.0 * u).collect();
    assert!(once.iter().any(|&u| u != 0.0));
    assert_eq!(update(&inputs)?, twice);
    Ok(())
}

#[test]
fn rank_stabilized_scale() -> Result<()> {
    // α = 4, r = 16: s = 4/16 = 1/4, and 4/√16 = 1.
    let (a, b) = (vec![1.0; 16 * 2], vec![1.0; 16]);
    let h = |scaling| -> Result<(f32, Vec<f32>)> {
        let adapter =
            Adapter::from_tensors(tensor(&a, [16, 2]), tensor(&b, [1, 16]), 4.0, scaling)?;
        let layer = LoraLinear::new(tensor(&[1.0, 1.0], [1, 2]), adapter)?;
        let h = layer.forward(&tensor(&[1.0, 2.0], [1, 2]))?.h[0].to_vec()?;
        Ok((layer.projections()[0].scale(), h))
    };
    // W0 x = 3, A x is 3 in all 16 rows, B A x = 48.
    assert_eq!(h(Scaling::Standard)?, (0.25, vec![3.0 + 12.0]));
    assert_eq!(h(Scaling::RankStabilized)?, (1.0, vec![3.0 + 48.0]));
    Ok(())
}

/// (W0 + s B A) x = W0 x + s B (A x), up to the f32 roundings of each merged weight and of both h.
#[test]
fn merged_weight_gives_the_adapted_output() -> Result<()> {
    for sizes in SIZES {
        let inputs = Inputs::<f32>::reals(sizes, 8);
        let (layer, x) = (layer_of(&inputs)?, x_of(&inputs));
        let h = layer.forward(&x)?.h[0].to_vec::<f32>()?;
        let merged = layer.merged()?.remove(0);
        let [t, k, d, _] = sizes.single();
        let mut h_merged = Tensor::zeros(&Device::cpu(), [t, d], DType::F32)?;
        let base = BaseForward::new(&Device::cpu(), t, [d, k], DType::F32)?;
        let mut workspace = Workspace::new(&Device::cpu(), base.workspace())?;
        base.run(merged.view(), x.view(), h_merged.view_mut(), &mut workspace)?;
        let h_merged = h_merged.to_vec::<f32>()?;

        let merged = merged.to_vec::<f32>()?;
        for (at, (got, want)) in h_merged.iter().zip(&h).enumerate() {
            let (w, x) = (&merged[at % d * k..][..k], &inputs.x[at / d * k..][..k]);
            let weights: f64 = w.iter().zip(x).map(|(w, x)| f64::from(w * x).abs()).sum();
            // Each is off by the unit roundoff of itself at most; the excess is for f64's sums
            // and for the bound being taken at the rounded values.
            let both_h = f64::from(got.abs()) + f64::from(want.abs());
            let bound = 1.001 * unit_roundoff(DType::F32) * (weights + both_h);
            let near = abs_diff_eq!(f64::from(*got), f64::from(*want), epsilon = bound);
            assert!(near, "{sizes}: h[{at}] is {got}, not {want} ± {bound:e}");
        }
    }
    Ok(())
}

/// W0 comes back up to two roundings, of the merged weight and of the result.
#[test]
fn unmerging_gives_the_weight_back() -> Result<()> {
    fn returns<E: DeviceElement>() -> Result<()> {
        let inputs = Inputs::<E>::reals(Sizes::new(1, 40, 24, 8), 9);
        let (mut layer, w0) = (layer_of(&inputs)?, &inputs.of[0].w0);
        let own = |layer: &LoraLinear| layer.projections()[0].w0().to_vec::<E>();
        layer.merge()?;
        let merged = own(&layer)?;
        assert!(relative_error(&merged, w0) > 0.1, "the update is a real one");
        assert_same_bits("merged", &merged, &on_cpu(&inputs).merged[0]);
        layer.unmerge()?;
        let u = unit_roundoff(E::DTYPE);
        for ((back, merged), w0) in own(&layer)?.iter().zip(&merged).zip(w0) {
            let (back, merged, w0) = (back.to_f64(), merged.to_f64(), w0.to_f64());
            let bound = u * merged.abs() + u * (back.abs() + u);
            assert_abs_diff_eq!(back, w0, epsilon = 1.01 * bound);
        }
        Ok(())
    }
    returns::<f32>()?;
    returns::<bf16>()?;
    returns::<f16>()
}

/// What backward needs, with an S of the inputs' own.
fn saved<'x, E: DeviceElement>(inputs: &Inputs<E>, x: &'x Tensor) -> Result<Saved<'x>> {
    let [t, _, _, r] = inputs.sizes.single();
    Ok(Saved {
        x: x.view(),
        s: Tensor::from_slice(&Device::cpu(), &inputs.s, [t, r])?,
        dropout: None,
    })
}

/// `Add` is an overwrite followed by an f32 addition, and the pass without dX changes neither
/// gradient. `Buffers::outputs` holds every run of `on_cpu` to both; here they go through the
/// layer.
#[test]
fn gradients_accumulate_over_calls() -> Result<()> {
    let inputs = Inputs::<f32>::reals(Sizes::new(6, 7, 9, 3), 10);
    let [t, _, d, _] = inputs.sizes.single();
    let (layer, x) = (layer_of(&inputs)?, x_of(&inputs));
    let (dh, saved) = (tensor(&inputs.of[0].dh, [t, d]), saved(&inputs, &x)?);
    let (mut once, mut twice) = (layer.zero_gradients()?, layer.zero_gradients()?);
    let (set, add) = (Accumulation::Overwrite, Accumulation::Add);
    layer.backward(&[&dh], &saved, &mut once, set)?;
    layer.backward_params(&[&dh], &saved, &mut twice, set)?;
    layer.backward_params(&[&dh], &saved, &mut twice, add)?;
    for (once, twice) in [(&once.a, &twice.a), (&once.b[0], &twice.b[0])] {
        let doubled: Vec<f32> = once.to_vec::<f32>()?.iter().map(|g| g + g).collect();
        assert!(doubled.iter().all(|&g| g != 0.0));
        assert_same_bits("gradient", &twice.to_vec::<f32>()?, &doubled);
    }
    Ok(())
}

/// LayerGradients in the layer's element type are those in f32, rounded.
#[test]
fn gradients_in_sixteen_bits() -> Result<()> {
    // Integers: the f32 gradients are exact, and so are few enough of them that nothing ties.
    let inputs = Inputs::<bf16>::integers(Sizes::new(6, 7, 9, 3), 13);
    let [t, _, d, _] = inputs.sizes.single();
    let (layer, x) = (layer_of(&inputs)?, x_of(&inputs));
    let (dh, saved) =
        (Tensor::from_slice(&Device::cpu(), &inputs.of[0].dh, [t, d])?, saved(&inputs, &x)?);
    let (mut wide, mut narrow) = (layer.zero_gradients()?, layer.zero_gradients_in(DType::Bf16)?);
    for accumulation in [Accumulation::Overwrite, Accumulation::Add] {
        let dx = layer.backward(&[&dh], &saved, &mut wide, accumulation)?;
        let narrow_dx = layer.backward(&[&dh], &saved, &mut narrow, accumulation)?;
        assert_same_bits("dx", &narrow_dx.to_vec::<bf16>()?, &dx.to_vec::<bf16>()?);
        for (wide, narrow) in [(&wide.a, &narrow.a), (&wide.b[0], &narrow.b[0])] {
            let rounded: Vec<bf16> =
                wide.to_vec::<f32>()?.into_iter().map(bf16::from_f32).collect();
            assert!(rounded.iter().any(|&g| g != bf16::ZERO));
            assert_same_bits("gradient", &narrow.to_vec::<bf16>()?, &rounded);
        }
    }
    let mut of_another_type = layer.zero_gradients_in(DType::F16)?;
    let error = layer.backward(&[&dh], &saved, &mut of_another_type, Accumulation::Add);
    let words = "gradients holds f16, expected f32, or the element type of x";
    assert_eq!(error.unwrap_err().to_string(), words);
    Ok(())
}

#[test]
fn leading_dimensions_count_as_rows() -> Result<()> {
    let inputs = Inputs::<bf16>::reals(Sizes::new(6, 7, 9, 3), 11);
    let (layer, cpu) = (layer_of(&inputs)?, Device::cpu());
    let flat_x = x_of(&inputs);
    let flat = layer.forward(&flat_x)?;
    let x = Tensor::from_slice(&cpu, &inputs.x, [2, 3, 7])?;
    let out = layer.forward(&x)?;
    let shapes = (out.h[0].shape(), out.saved.s.shape());
    assert_eq!((shapes.0.dims(), shapes.1.dims()), (&[2, 3, 9][..], &[2, 3, 3][..]));
    assert_same_bits("h", &out.h[0].to_vec::<bf16>()?, &flat.h[0].to_vec::<bf16>()?);
    assert_same_bits("s", &out.saved.s.to_vec::<bf16>()?, &flat.saved.s.to_vec::<bf16>()?);

    let dh = Tensor::from_slice(&cpu, &inputs.of[0].dh, [2, 3, 9])?;
    let (mut grads, set) = (layer.zero_gradients()?, Accumulation::Overwrite);
    let dx = layer.backward(&[&dh], &out.saved, &mut grads, set)?;
    assert_eq!(dx.shape().dims(), [2, 3, 7]);
    let dh = Tensor::from_slice(&cpu, &inputs.of[0].dh, [6, 9])?;
    let mut flat_grads = layer.zero_gradients()?;
    let flat_dx = layer.backward(&[&dh], &flat.saved, &mut flat_grads, set)?;
    assert_same_bits("dx", &dx.to_vec::<bf16>()?, &flat_dx.to_vec::<bf16>()?);
    let gradients = |gradients: &LayerGradients| -> Result<[Vec<f32>; 2]> {
        Ok([gradients.a.to_vec()?, gradients.b[0].to_vec()?])
    };
    let ([da, db], [flat_da, flat_db]) = (gradients(&grads)?, gradients(&flat_grads)?);
    assert_same_bits("da", &da, &flat_da);
    assert_same_bits("db", &db, &flat_db);
    Ok(())
}

/// The gradients of the loss L = Σ G ∘ H, whose dH is G.
///
/// H is linear in each of A, B and x, so the central difference of any step is the derivative, but
/// for the rounding of L. L is summed in f64, and with a step of 1 rounds to some 1e-14.
#[test]
fn gradients_match_central_differences() -> Result<()> {
    for sizes in SIZES {
        let [t, k, d, r] = sizes.single();
        let inputs = Inputs::<f32>::reals(sizes, 12);
        let (layer, x) = (layer_of(&inputs)?, x_of(&inputs));
        let saved = layer.forward(&x)?.saved;
        let mut grads = layer.zero_gradients()?;
        let dh = tensor(&inputs.of[0].dh, [t, d]);
        let dx = layer.backward(&[&dh], &saved, &mut grads, Accumulation::Overwrite)?;

        let scale = f64::from(layer.projections()[0].scale());
        let point = Point::of(&inputs, scale);
        let (da, db) = (grads.a.to_vec::<f32>()?, grads.b[0].to_vec::<f32>()?);
        let dx = dx.to_vec::<f32>()?;
        compare("dA", &da, |i, step| point.loss(|p| p.a[i] += step));
        compare("dB", &db, |i, step| point.loss(|p| p.b[i] += step));
        compare("dX", &dx, |i, step| point.loss(|p| p.x[i] += step));
        assert_eq!((da.len(), db.len(), dx.len()), (r * k, d * r, t * k));
    }
    Ok(())
}

/// A gradient is stored with a relative error of 2⁻²⁴, and dB is computed from an S that is, too,
/// whose errors add up as its terms do, to 2⁻²⁴ of the size dB typically has. Twice their sum; a
/// wrong factor or index anywhere is of order one.
fn compare(name: &str, gradient: &[f32], loss: impl Fn(usize, f64) -> f64) {
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    let rms = (norm / gradient.len() as f64).sqrt();
    for (i, &got) in gradient.iter().enumerate() {
        let want = (loss(i, 1.0) - loss(i, -1.0)) / 2.0;
        let bound = 2f64.powi(-23) * (rms + want.abs());
        let near = abs_diff_eq!(f64::from(got), want, epsilon = bound);
        assert!(near, "{name}[{i}] is {got}, not {want} ± {bound:e}");
    }
}

/// What the loss depends on, in f64.
#[derive(Clone)]
struct Point {
    sizes: Sizes,
    scale: f64,
    x: Vec<f64>,
    w0: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    g: Vec<f64>,
}

impl Point {
    fn of(inputs: &Inputs<f32>, scale: f64) -> Self {
        let widen = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
        Point {
            sizes: inputs.sizes,
            scale,
            x: widen(&inputs.x),
            w0: widen(&inputs.of[0].w0),
            a: widen(&inputs.a),
            b: widen(&inputs.of[0].b),
            g: widen(&inputs.of[0].dh),
        }
    }

    /// Σ G ∘ (X W0ᵀ + s · X Aᵀ Bᵀ), after a change.
    fn loss(&self, change: impl Fn(&mut Point)) -> f64 {
        let mut p = self.clone();
        change(&mut p);
        let [t, k, d, r] = p.sizes.single();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let mut loss = 0.0;
        for (x, g) in p.x.chunks(k).zip(p.g.chunks(d)).take(t) {
            let low: Vec<f64> = p.a.chunks(k).map(|a| p.scale * dot(x, a)).collect();
            for ((w0, b), g) in p.w0.chunks(k).zip(p.b.chunks(r)).zip(g) {
                loss += g * (dot(x, w0) + dot(&low, b));
            }
        }
        loss
    }
}
