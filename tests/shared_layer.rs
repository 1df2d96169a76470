//! The layer of projections that share their input, on the CPU reference: against a layer of each
//! projection.

mod common;

use common::{assert_same_bits, assert_same_values, columns, unit_roundoff};
use common::{DeviceElement, SharedInputs, SharedSizes};
use half::{bf16, f16};
use lora_kernels::ops::{self, SharedWeights, Weights};
use lora_kernels::{Accumulation, Adapter, DType, Device, InputGradient, LoraLinear, Result};
use lora_kernels::{Scaling, SharedGradients, SharedLoraLinear, SharedProblem};
use lora_kernels::{Tensor, TensorView, Workspace};

/// One to four projections, with ones, odd rows, and the sizes of one unlike those of the next.
const SIZES: [SharedSizes; 5] = [
    SharedSizes::new(1, 1, &[(1, 1)]),
    SharedSizes::new(6, 7, &[(9, 3), (4, 2)]),
    SharedSizes::new(13, 9, &[(11, 5), (1, 1), (6, 70)]),
    SharedSizes::new(33, 40, &[(24, 8), (8, 8), (8, 8)]),
    SharedSizes::new(5, 6, &[(3, 1), (17, 256), (2, 3), (9, 200)]),
];

const SET: Accumulation = Accumulation::Overwrite;
const ADD: Accumulation = Accumulation::Add;

fn tensor<E: DeviceElement>(values: &[E], shape: &[usize]) -> Tensor {
    Tensor::from_slice(&Device::cpu(), values, shape).unwrap()
}

/// W0 and the adapter of a projection, with both ways from α to s by turns; α/r gives the scale of
/// the inputs.
fn parts<E: DeviceElement>(inputs: &SharedInputs<E>, i: usize) -> (Tensor, Adapter) {
    let (one, (d, r)) = (inputs.alone(i), inputs.sizes.of[i]);
    let k = inputs.sizes.k;
    let scaling = [Scaling::Standard, Scaling::RankStabilized][i % 2];
    let (a, b) = (tensor(&one.a, &[r, k]), tensor(&one.b, &[d, r]));
    let adapter = Adapter::from_tensors(a, b, one.scale * r as f32, scaling).unwrap();
    (tensor(&one.w0, &[d, k]), adapter)
}

fn shared<E: DeviceElement>(inputs: &SharedInputs<E>) -> SharedLoraLinear {
    let projections = (0..inputs.of.len()).map(|i| parts(inputs, i)).collect();
    SharedLoraLinear::new(projections).unwrap()
}

fn alone<E: DeviceElement>(inputs: &SharedInputs<E>, i: usize) -> LoraLinear {
    let (w0, adapter) = parts(inputs, i);
    LoraLinear::new(w0, adapter).unwrap()
}

/// x and every dh, with two leading dimensions.
fn activations<E: DeviceElement>(inputs: &SharedInputs<E>) -> (Tensor, Vec<Tensor>) {
    let SharedSizes { t, k, of } = inputs.sizes;
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
    fn holds<E: DeviceElement>(inputs: &SharedInputs<E>, exact: bool) -> Result<()> {
        let SharedSizes { t, k, of } = inputs.sizes;
        let (layer, (x, dh)) = (shared(inputs), activations(inputs));
        let rank = inputs.sizes.rank();
        let out = layer.forward(&x)?;
        assert_eq!((out.h.len(), out.s.shape().dims()), (of.len(), &[1, t, rank][..]));
        let (s, frozen) = (out.s.to_vec::<E>()?, layer.forward_frozen(&x)?);
        all_same::<E>("h without s", &layer.infer(&x)?, &out.h);
        let mut gradients = layer.zero_gradients()?;
        let (dh, compute): (Vec<_>, _) = (dh.iter().collect(), InputGradient::Compute);
        let dx = layer.backward(&dh, &x, &out.s, &mut gradients, SET, compute)?.expect("dX");
        assert_eq!((dx.shape(), gradients.a.shape().dims()), (x.shape(), &[rank, k][..]));
        let da = gradients.a.to_vec::<f32>()?;

        let (mut sum, mut sizes) = (vec![0.0; t * k], vec![0.0; t * k]);
        for (i, projection) in layer.projections().iter().enumerate() {
            let name = |output: &str| format!("{}, {}: {output} of {i}", inputs.sizes, E::DTYPE);
            let (layer, (start, r)) = (alone(inputs, i), (inputs.sizes.start(i), of[i].1));
            assert_eq!((projection.rows(), projection.rank()), (start..start + r, r));
            let one = layer.forward(&x)?;
            same::<E>(&name("h"), &out.h[i], &one.h);
            same::<E>(&name("h of frozen"), &frozen[i], &layer.forward_frozen(&x)?);
            assert_same_bits(&name("s"), &columns(&s, rank, start, r), &one.s.to_vec::<E>()?);
            let mut grads = layer.zero_gradients()?;
            let dx = layer.backward(dh[i], &x, &one.s, &mut grads, SET, compute)?.expect("dX");
            let da = &da[start * k..(start + r) * k];
            assert_same_bits(&name("da"), da, &grads.a.to_vec::<f32>()?);
            same::<f32>(&name("db"), &gradients.b[i], &grads.b);
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
            let off = (dx.to_f64() - sum).abs();
            assert!(off <= bound, "{}: dx[{at}] is {dx:?}, not {sum} ± {bound:e}", inputs.sizes);
        }
        Ok(())
    }
    for sizes in SIZES {
        holds(&SharedInputs::<f32>::reals(sizes, 1), false)?;
        holds(&SharedInputs::<f16>::reals(sizes, 2), false)?;
        holds(&SharedInputs::<bf16>::reals(sizes, 3), false)?;
    }
    // Scales that are powers of two, with which no f32 is rounded.
    for sizes in [SIZES[0], SharedSizes::new(9, 12, &[(10, 4), (7, 16), (5, 2), (6, 4)])] {
        holds(&SharedInputs::<f32>::integers(sizes, 4), true)?;
    }
    Ok(())
}

#[test]
fn adapters_come_back_as_they_were_given() -> Result<()> {
    fn holds<E: DeviceElement>(sizes: SharedSizes) -> Result<()> {
        let inputs = SharedInputs::<E>::reals(sizes, 5);
        let layer = shared(&inputs);
        assert_same_bits("the stacked A", &layer.a().to_vec::<E>()?, &inputs.a);
        let adapters = layer.adapters()?;
        assert_eq!(adapters.len(), sizes.of.len());
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
    let (old, new) = (SharedInputs::<f32>::reals(SIZES[2], 6), SharedInputs::reals(SIZES[2], 7));
    let (mut layer, (x, _)) = (shared(&old), activations(&old));
    let before = layer.infer(&x)?;
    let (a, b) = layer.tensors_mut();
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
    all_same::<f32>("h", &after, &shared(&want).infer(&x)?);
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
    let inputs = SharedInputs::<f32>::reals(SIZES[1], 8);
    let (layer, (x, dh)) = (shared(&inputs), activations(&inputs));
    let (s, dh): (_, Vec<_>) = (layer.forward(&x)?.s, dh.iter().collect());
    let (mut once, mut twice) = (layer.zero_gradients()?, layer.zero_gradients()?);
    let skip = InputGradient::Skip;
    layer.backward(&dh, &x, &s, &mut once, SET, InputGradient::Compute)?;
    assert!(layer.backward(&dh, &x, &s, &mut twice, ADD, skip)?.is_none());
    let all = |gradients: &SharedGradients| {
        let all = [&gradients.a].into_iter().chain(&gradients.b);
        all.map(|gradient| gradient.to_vec::<f32>()).collect::<Result<Vec<_>>>()
    };
    assert_eq!(all(&once)?, all(&twice)?, "added to zero");
    layer.backward(&dh, &x, &s, &mut twice, ADD, skip)?;
    let once = all(&once)?;
    assert!(once.iter().flatten().all(|&gradient| gradient != 0.0));
    let doubled: Vec<Vec<f32>> =
        once.iter().map(|gradient| gradient.iter().map(|g| g + g).collect()).collect();
    assert_eq!(all(&twice)?, doubled);
    layer.backward(&dh, &x, &s, &mut twice, SET, skip)?;
    assert_eq!(all(&twice)?, once, "overwritten");
    Ok(())
}

#[test]
fn merging_is_that_of_each_alone() -> Result<()> {
    fn holds<E: DeviceElement>() -> Result<()> {
        let inputs = SharedInputs::<E>::reals(SIZES[2], 9);
        let (mut layer, (x, _)) = (shared(&inputs), activations(&inputs));
        let mut each: Vec<_> = (0..3).map(|i| alone(&inputs, i)).collect();
        let merged = layer.merged()?;
        layer.merge()?;
        each.iter_mut().try_for_each(LoraLinear::merge)?;
        let h = layer.forward_frozen(&x)?;
        for (i, (projection, alone)) in layer.projections().iter().zip(&each).enumerate() {
            same::<E>("merged", &merged[i], alone.w0());
            same::<E>("merged in place", projection.w0(), alone.w0());
            same::<E>("h of the merged weight", &h[i], &alone.forward_frozen(&x)?);
            assert_ne!(alone.w0().to_vec::<E>()?, inputs.of[i].w0, "the update is a real one");
        }
        layer.unmerge()?;
        each.iter_mut().try_for_each(LoraLinear::unmerge)?;
        for (projection, alone) in layer.projections().iter().zip(&each) {
            same::<E>("unmerged", projection.w0(), alone.w0());
        }
        Ok(())
    }
    holds::<f32>()?;
    holds::<bf16>()
}

/// The weights go into operations on buffers of the caller's own: all of them at once, and those of
/// one projection, with its rows of A.
#[test]
fn operations_take_the_weights() -> Result<()> {
    let inputs = SharedInputs::<bf16>::reals(SIZES[2], 11);
    let (layer, (x, _)) = (shared(&inputs), activations(&inputs));
    let SharedSizes { t, k, of } = inputs.sizes;
    let (cpu, want) = (Device::cpu(), layer.infer(&x)?);
    let problem = SharedProblem::new(t, k, of, DType::Bf16)?;
    let mut workspace = Workspace::new(&cpu, &[ops::forward_shared_plan(&cpu, &problem)])?;
    let outputs = || of.iter().map(|&(d, _)| Tensor::zeros(&cpu, [1, t, d], DType::Bf16));
    let mut h = outputs().collect::<Result<Vec<_>>>()?;
    let projections: Vec<_> = layer.projections().iter().map(|one| one.view()).collect();
    let weights = SharedWeights { a: layer.a().view(), projections: &projections };
    let mut views: Vec<_> = h.iter_mut().map(Tensor::view_mut).collect();
    ops::forward_shared(&cpu, &weights, x.view(), &mut views, None, &mut workspace)?;
    all_same::<bf16>("h", &h, &want);

    for ((projection, h), want) in layer.projections().iter().zip(outputs()).zip(&want) {
        let mut h = h?;
        let a = layer.a().view().rows(projection.rows())?;
        let (w0, b) = (projection.w0().view(), projection.b().view());
        let weights = Weights { w0, a, b, scale: projection.scale() };
        ops::forward(&cpu, &weights, x.view(), h.view_mut(), None, &mut workspace)?;
        same::<bf16>("h of one", &h, want);
    }
    Ok(())
}

#[test]
fn rows_of_views() -> Result<()> {
    // The product with the identity gives the rows themselves.
    let (cpu, values) = (Device::cpu(), [0f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let (all, identity) = (tensor(&values, &[2, 2, 2]), tensor(&[1f32, 0.0, 0.0, 1.0], &[2, 2]));
    for (rows, want) in [(0..4, &values[..]), (1..3, &values[2..6]), (3..4, &values[6..])] {
        for view in [all.view(), TensorView::from_host(&values, [4, 2])?] {
            let part = view.rows(rows.clone())?;
            assert_eq!((part.shape().dims(), part.dtype()), (&[rows.len(), 2][..], DType::F32));
            let mut h = Tensor::zeros(&cpu, [rows.len(), 2], DType::F32)?;
            ops::frozen(&cpu, &identity.view(), part, h.view_mut())?;
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
