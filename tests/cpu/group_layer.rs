//! Layers that are groups of projections, on the CPU reference: against a layer of each projection.

use crate::common::{DeviceElement, Inputs, Sizes, assert_same_bits, assert_same_values};
use crate::oracle::unit_roundoff;
use crate::parts::columns;
use approx::abs_diff_eq;
use half::{bf16, f16};
use lora_kernels::ops::{BaseForward, Forward, Projection, Weights};
use lora_kernels::{
    Accumulation, Adapter, DType, Device, LayerGradients, LoraLinear, Problem, Result,
};
use lora_kernels::{Scaling, Tensor, TensorView, Workspace};

/// One to four projections, with ones, odd rows, and sizes that differ from one to the next.
const SIZES: [Sizes; 5] = [
    Sizes::group(1, 1, &[(1, 1)]),
    Sizes::group(6, 7, &[(9, 3), (4, 2)]),
    Sizes::group(13, 9, &[(11, 5), (1, 1), (6, 70)]),
    Sizes::group(33, 40, &[(24, 8), (8, 8), (8, 8)]),
    Sizes::group(5, 6, &[(3, 1), (17, 256), (2, 3), (9, 200)]),
];

const SET: Accumulation = Accumulation::Overwrite;
const ADD: Accumulation = Accumulation::Add;

fn tensor<E: DeviceElement>(values: &[E], shape: &[usize]) -> Tensor {
    Tensor::from_slice(&Device::cpu(), values, shape).unwrap()
}

/// W0 and the adapter of a projection, with both ways from α to s by turns; α/r gives the scale of
/// the inputs.
fn parts<E: DeviceElement>(inputs: &Inputs<E>, i: usize) -> (Tensor, Adapter) {
    let one = inputs.alone(i);
    let ([_, k, d, r], of) = (one.sizes.single(), &one.of[0]);
    let scaling = [Scaling::Standard, Scaling::RankStabilized][i % 2];
    let (a, b) = (tensor(&one.a, &[r, k]), tensor(&of.b, &[d, r]));
    let adapter = Adapter::from_tensors(a, b, of.scale * r as f32, scaling).unwrap();
    (tensor(&of.w0, &[d, k]), adapter)
}

fn group<E: DeviceElement>(inputs: &Inputs<E>) -> LoraLinear {
    let projections = (0..inputs.of.len()).map(|i| parts(inputs, i)).collect();
    LoraLinear::group(projections).unwrap()
}

fn alone<E: DeviceElement>(inputs: &Inputs<E>, i: usize) -> LoraLinear {
    let (w0, adapter) = parts(inputs, i);
    LoraLinear::new(w0, adapter).unwrap()
}

/// x and every dh, with two leading dimensions.
fn activations<E: DeviceElement>(inputs: &Inputs<E>) -> (Tensor, Vec<Tensor>) {
    let (Sizes { t, k, .. }, of) = (inputs.sizes, inputs.sizes.of());
    let dh = of.iter().zip(&inputs.of).map(|(&(d, _), one)| tensor(&one.dh, &[1, t, d]));
    (tensor(&inputs.x, &[1, t, k]), dh.collect())
}

fn same<E: DeviceElement>(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    assert_same_bits(what, &got.to_vec::<E>().unwrap(), &want.to_vec::<E>().unwrap());
}

fn all_same<E: DeviceElement>(what: &str, got: &[Tensor], want: &[Tensor]) {
    assert_eq!(got.len(), want.len(), "{what}");
    got.iter().zip(want).for_each(|(got, want)| same::<E>(what, got, want));
}

/// dX alone is another sum, rounded less often: it is held against the sum of what each projection
/// gives, to the bit where nothing is rounded, and otherwise up to the rounding of all of them.
#[test]
fn each_is_what_it_would_be_alone() -> Result<()> {
    fn holds<E: DeviceElement>(inputs: &Inputs<E>, exact: bool) -> Result<()> {
        let (Sizes { t, k, .. }, of) = (inputs.sizes, inputs.sizes.of());
        let (layer, (x, dh)) = (group(inputs), activations(inputs));
        let rank = inputs.sizes.rank();
        let out = layer.forward(&x)?;
        assert_eq!((out.h.len(), out.saved.s.shape().dims()), (of.len(), &[1, t, rank][..]));
        let (s, base) = (out.saved.s.to_vec::<E>()?, layer.forward_base(&x)?);
        all_same::<E>("h without s", &layer.infer(&x)?, &out.h);
        let mut gradients = layer.zero_gradients()?;
        let dh: Vec<_> = dh.iter().collect();
        let dx = layer.backward(&dh, &out.saved, &mut gradients, SET)?;
        assert_eq!((dx.shape(), gradients.a.shape().dims()), (x.shape(), &[rank, k][..]));
        let da = gradients.a.to_vec::<f32>()?;

        let (mut sum, mut sizes) = (vec![0.0; t * k], vec![0.0; t * k]);
        for (i, projection) in layer.projections().iter().enumerate() {
            let name = |output: &str| format!("{}, {}: {output} of {i}", inputs.sizes, E::DTYPE);
            let (layer, (start, r)) = (alone(inputs, i), (inputs.sizes.start(i), of[i].1));
            assert_eq!((projection.rows(), projection.rank()), (start..start + r, r));
            let one = layer.forward(&x)?;
            same::<E>(&name("h"), &out.h[i], &one.h[0]);
            same::<E>(&name("h of base"), &base[i], &layer.forward_base(&x)?[0]);
            let one_s = one.saved.s.to_vec::<E>()?;
            assert_same_bits(&name("s"), &columns(&s, rank, start, r), &one_s);
            let mut grads = layer.zero_gradients()?;
            let dx = layer.backward(&[dh[i]], &one.saved, &mut grads, SET)?;
            let da = &da[start * k..(start + r) * k];
            assert_same_bits(&name("da"), da, &grads.a.to_vec::<f32>()?);
            same::<f32>(&name("db"), &gradients.b[i], &grads.b[0]);
            for ((sum, size), dx) in sum.iter_mut().zip(&mut sizes).zip(dx.to_f32_vec()?) {
                *sum += f64::from(dx);
                *size += f64::from(dx.abs());
            }
        }
        let dx = dx.to_vec::<E>()?;
        if exact {
            let sum: Vec<E> = sum.iter().map(|&sum| E::from_f64(sum)).collect();
            assert_same_values(&format!("{}: dx", inputs.sizes), &dx, &sum);
        }
        for ((at, dx), (sum, size)) in dx.iter().enumerate().zip(sum.iter().zip(sizes)) {
            // An f16 below 2⁻¹⁴ is rounded to a multiple of 2⁻²⁴, here once more than there are
            // projections.
            let least = (of.len() + 1) as f64 * 2f64.powi(-25);
            let bound = 1.001 * unit_roundoff(E::DTYPE) * (size + dx.to_f64().abs()) + least;
            let near = abs_diff_eq!(dx.to_f64(), *sum, epsilon = bound);
            assert!(near, "{}: dx[{at}] is {dx:?}, not {sum} ± {bound:e}", inputs.sizes);
        }
        Ok(())
    }
    for sizes in SIZES {
        holds(&Inputs::<f32>::reals(sizes, 1), false)?;
        holds(&Inputs::<f16>::reals(sizes, 2), false)?;
        holds(&Inputs::<bf16>::reals(sizes, 3), false)?;
    }
    // Scales that are powers of two, with which no f32 is rounded.
    for sizes in [SIZES[0], Sizes::group(9, 12, &[(10, 4), (7, 16), (5, 2), (6, 4)])] {
        holds(&Inputs::<f32>::integers(sizes, 4), true)?;
    }
    Ok(())
}

#[test]
fn adapters_come_back_as_they_were_given() -> Result<()> {
    fn holds<E: DeviceElement>(sizes: Sizes) -> Result<()> {
        let inputs = Inputs::<E>::reals(sizes, 5);
        let layer = group(&inputs);
        assert_same_bits("the stacked A", &layer.a().to_vec::<E>()?, &inputs.a);
        let adapters = layer.adapters()?;
        assert_eq!(adapters.len(), sizes.of().len());
        let mut parameters = 0;
        for ((i, got), projection) in adapters.iter().enumerate().zip(layer.projections()) {
            let (w0, want) = parts(&inputs, i);
            same::<E>("A", got.a(), want.a());
            same::<E>("B", got.b(), want.b());
            same::<E>("B of the layer", projection.b(), want.b());
            same::<E>("W0", projection.w0(), &w0);
            let of = |adapter: &Adapter| (adapter.alpha(), adapter.scaling(), adapter.scale());
            let held = (projection.alpha(), projection.scaling(), projection.scale());
            assert_eq!((of(got), held), (of(&want), of(&want)), "{sizes}, {i}");
            parameters += want.parameters();
        }
        assert_eq!(layer.parameters(), parameters, "{sizes}");
        Ok(())
    }
    for sizes in SIZES {
        holds::<f32>(sizes)?;
        holds::<bf16>(sizes)?;
    }
    Ok(())
}

/// What an optimiser writes is what the layer runs with, and what its adapters hold.
#[test]
fn updates_in_place() -> Result<()> {
    let (old, new) = (Inputs::<f32>::reals(SIZES[2], 6), Inputs::reals(SIZES[2], 7));
    let (mut layer, (x, _)) = (group(&old), activations(&old));
    let before = layer.infer(&x)?;
    let (a, b) = layer.tensors_mut()?;
    assert_eq!(b.len(), 3);
    a.copy_from_slice(&new.a)?;
    for (b, new) in b.into_iter().zip(&new.of) {
        b.copy_from_slice(&new.b)?;
    }
    let mut want = new.clone();
    for (want, old) in want.of.iter_mut().zip(&old.of) {
        want.w0.clone_from(&old.w0);
    }
    let after = layer.infer(&x)?;
    all_same::<f32>("h", &after, &group(&want).infer(&x)?);
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before.to_vec::<f32>()?, after.to_vec::<f32>()?);
    }
    for (i, adapter) in layer.adapters()?.iter().enumerate() {
        assert_same_bits("A", &adapter.a().to_vec::<f32>()?, &new.alone(i).a);
        assert_same_bits("B", &adapter.b().to_vec::<f32>()?, &new.of[i].b);
    }
    Ok(())
}

/// `Add` is an overwrite followed by an f32 addition, and neither needs dX.
#[test]
fn gradients_accumulate_over_calls() -> Result<()> {
    let inputs = Inputs::<f32>::reals(SIZES[1], 8);
    let (layer, (x, dh)) = (group(&inputs), activations(&inputs));
    let (saved, dh): (_, Vec<_>) = (layer.forward(&x)?.saved, dh.iter().collect());
    let (mut once, mut twice) = (layer.zero_gradients()?, layer.zero_gradients()?);
    layer.backward(&dh, &saved, &mut once, SET)?;
    layer.backward_params(&dh, &saved, &mut twice, ADD)?;
    let all = |gradients: &LayerGradients| {
        let all = [&gradients.a].into_iter().chain(&gradients.b);
        all.map(|gradient| gradient.to_vec::<f32>()).collect::<Result<Vec<_>>>()
    };
    assert_eq!(all(&once)?, all(&twice)?, "added to zero");
    layer.backward_params(&dh, &saved, &mut twice, ADD)?;
    let once = all(&once)?;
    assert!(once.iter().flatten().all(|&gradient| gradient != 0.0));
    let doubled: Vec<Vec<f32>> =
        once.iter().map(|gradient| gradient.iter().map(|g| g + g).collect()).collect();
    assert_eq!(all(&twice)?, doubled);
    layer.backward_params(&dh, &saved, &mut twice, SET)?;
    assert_eq!(all(&twice)?, once, "overwritten");
    Ok(())
}

#[test]
fn merging_is_that_of_each_alone() -> Result<()> {
    fn holds<E: DeviceElement>() -> Result<()> {
        let inputs = Inputs::<E>::reals(SIZES[2], 9);
        let (mut layer, (x, _)) = (group(&inputs), activations(&inputs));
        let mut each: Vec<_> = (0..3).map(|i| alone(&inputs, i)).collect();
        let merged = layer.merged()?;
        layer.merge()?;
        each.iter_mut().try_for_each(LoraLinear::merge)?;
        let h = layer.forward_base(&x)?;
        for (i, (projection, alone)) in layer.projections().iter().zip(&each).enumerate() {
            let w0 = alone.projections()[0].w0();
            same::<E>("merged", &merged[i], w0);
            same::<E>("merged in place", projection.w0(), w0);
            same::<E>("h of the merged weight", &h[i], &alone.forward_base(&x)?[0]);
            assert_ne!(w0.to_vec::<E>()?, inputs.of[i].w0, "the update is a real one");
        }
        layer.unmerge()?;
        each.iter_mut().try_for_each(LoraLinear::unmerge)?;
        for (projection, alone) in layer.projections().iter().zip(&each) {
            same::<E>("unmerged", projection.w0(), alone.projections()[0].w0());
        }
        Ok(())
    }
    holds::<f32>()?;
    holds::<bf16>()
}

/// The weights go into operations on buffers of the caller's own: all of them at once, and one
/// projection with its rows of A.
#[test]
fn operations_take_the_weights() -> Result<()> {
    let inputs = Inputs::<bf16>::reals(SIZES[2], 11);
    let (layer, (x, _)) = (group(&inputs), activations(&inputs));
    let (Sizes { t, k, .. }, of) = (inputs.sizes, inputs.sizes.of());
    let (cpu, want) = (Device::cpu(), layer.infer(&x)?);
    let forward = Forward::new(&cpu, &inputs.problem())?;
    let mut workspace = Workspace::new(&cpu, forward.workspace())?;
    let outputs = || of.iter().map(|&(d, _)| Tensor::zeros(&cpu, [1, t, d], DType::Bf16));
    let mut h = outputs().collect::<Result<Vec<_>>>()?;
    let projections = layer.views()?;
    let weights = Weights::new(layer.a().view(), &projections);
    let mut views: Vec<_> = h.iter_mut().map(Tensor::view_mut).collect();
    forward.run(&weights, x.view(), &mut views, None, &mut workspace)?;
    all_same::<bf16>("h", &h, &want);

    for ((projection, h), want) in layer.projections().iter().zip(outputs()).zip(&want) {
        let mut h = h?;
        let a = layer.a().view().rows(projection.rows())?;
        let (w0, b) = (projection.w0().view(), projection.b().view());
        let (d, r) = (w0.shape().rows(), projection.rank());
        let forward = Forward::new(&cpu, &Problem::single(t, k, d, r, DType::Bf16)?)?;
        let one = [Projection::new(w0, b, projection.scale())];
        let h_view = &mut [h.view_mut()];
        forward.run(&Weights::new(a, &one), x.view(), h_view, None, &mut workspace)?;
        same::<bf16>("h of one", &h, want);
    }
    Ok(())
}

/// What an optimiser keeps in f32 is what the layer runs with, rounded.
#[test]
fn masters_are_rounded_into_the_layer() -> Result<()> {
    let inputs = Inputs::<bf16>::reals(SIZES[2], 13);
    let (mut layer, masters) = (group(&inputs), Inputs::<f32>::reals(SIZES[2], 14));
    let a = tensor(&masters.a, &[76, 9]);
    let b = masters.of.iter().zip(inputs.sizes.of());
    let b: Vec<_> = b.map(|(of, &(d, r))| tensor(&of.b, &[d, r])).collect();
    let b: Vec<_> = b.iter().collect();
    layer.round_from(&a, &b)?;
    let rounded = |values: &[f32]| values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
    assert_same_bits("A", &layer.a().to_vec::<bf16>()?, &rounded(&masters.a));
    for (projection, of) in layer.projections().iter().zip(&masters.of) {
        assert_same_bits("B", &projection.b().to_vec::<bf16>()?, &rounded(&of.b));
    }
    let error = layer.round_from(&a, &b[..2]).unwrap_err().to_string();
    assert_eq!(error, "b is a list of 2, expected 3, one for every projection");
    let error = layer.round_from(b[0], &b).unwrap_err().to_string();
    assert_eq!(error, "outputs has shape [76, 9], expected 11 rows of 5");
    assert_same_bits("A", &layer.a().to_vec::<bf16>()?, &rounded(&masters.a));
    Ok(())
}

#[test]
fn rows_of_views() -> Result<()> {
    // The product with the identity gives the rows themselves.
    let (cpu, values) = (Device::cpu(), [0f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let (all, identity) = (tensor(&values, &[2, 2, 2]), tensor(&[1f32, 0.0, 0.0, 1.0], &[2, 2]));
    for (rows, want) in [(0..4, &values[..]), (1..3, &values[2..6]), (3..4, &values[6..])] {
        let base = BaseForward::new(&cpu, rows.len(), [2, 2], DType::F32)?;
        for view in [all.view(), TensorView::from_host(&values, [4, 2])?] {
            let part = view.rows(rows.clone())?;
            assert_eq!((part.shape().dims(), part.dtype()), (&[rows.len(), 2][..], DType::F32));
            let mut h = Tensor::zeros(&cpu, [rows.len(), 2], DType::F32)?;
            base.run(
                identity.view(),
                part,
                h.view_mut(),
                &mut Workspace::new(&cpu, base.workspace())?,
            )?;
            assert_eq!(h.to_vec::<f32>()?, want);
        }
    }
    assert_eq!(all.view().rows(2..2)?.shape().dims(), [0, 2]);
    #[allow(clippy::reversed_empty_ranges)] // as a wrong caller has it
    for (rows, words) in [(3..5, "3..5"), (5..5, "5..5"), (3..2, "3..2")] {
        let error = all.view().rows(rows).unwrap_err().to_string();
        assert_eq!(error, format!("tensor has shape [2, 2, 2], expected one with rows {words}"));
    }
    Ok(())
}
