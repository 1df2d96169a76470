//! Numbers at the ends of the element types, on the CPU reference: where S and dS saturate, what
//! overflows, and that NaN stays NaN; and f32 rounded to 16 bits.

use crate::common::{DeviceElement, Inputs, Sizes, assert_same_bits};
use crate::oracle::on_cpu;
use half::{bf16, f16};
use lora_kernels::ops;
use lora_kernels::{DType, Device, Error, Result, Tensor};

/// A layer with the adapter of a single number for each letter: k = d = r = 1, and a row for each
/// token.
fn single<E: DeviceElement>(
    scale: f32,
    [w0, a, b]: [f64; 3],
    x: &[f64],
    s: &[f64],
    dh: &[f64],
) -> Inputs<E> {
    let mut inputs = Inputs::<E>::reals(Sizes::new(x.len(), 1, 1, 1), 0);
    let of = &mut inputs.of[0];
    let vector = |values: &[f64]| values.iter().map(|&v| E::from_f64(v)).collect::<Vec<_>>();
    (of.scale, of.w0, of.b, of.dh) = (scale, vector(&[w0]), vector(&[b]), vector(dh));
    (inputs.x, inputs.a, inputs.s) = (vector(x), vector(&[a]), vector(s));
    inputs
}

fn values<E: DeviceElement>(values: &[E]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

/// B = 0: h is W0 x, whatever the scale, though s · A x is more than f16 can hold.
#[test]
fn h_is_that_of_w0_where_b_is_zero() {
    for scale in [1e6, -1e6, 1e30, f32::MAX] {
        for sizes in [Sizes::new(6, 7, 9, 3), Sizes::group(6, 7, &[(9, 3), (4, 2)])] {
            let mut inputs = Inputs::<f16>::reals(sizes, 1);
            for of in &mut inputs.of {
                of.scale = scale;
                of.b.fill(f16::ZERO);
            }
            // A product of zero has no sign to saturate to.
            inputs.x.iter_mut().for_each(|x| *x = f16::from_f64(x.to_f64().abs() + 0.5));
            inputs.a.iter_mut().for_each(|a| *a = f16::from_f64(a.to_f64().abs() + 0.5));
            let outputs = on_cpu(&inputs);
            for (h, base_h) in outputs.h.iter().zip(&outputs.base_h) {
                assert_same_bits("h", h, base_h);
                assert!(h.iter().all(|h| h.is_finite()), "{scale}");
            }
            let most = f64::from(scale.signum()) * 65504.0;
            assert!(outputs.s.iter().all(|s| s.to_f64() == most), "{scale}: {:?}", outputs.s);
        }
    }
}

#[test]
fn s_saturates_in_f16_alone() {
    let x = [1.0, -1.0, 0.0, 60000.0, 0.03125];
    let inputs = single::<f16>(1e6, [3.0, 2.0, 0.0], &x, &[0.0; 5], &[0.0; 5]);
    let outputs = on_cpu(&inputs);
    assert_eq!(values(&outputs.s), [65504.0, -65504.0, 0.0, 65504.0, 62496.0]);
    assert_eq!(values(&outputs.h[0])[..3], [3.0, -3.0, 0.0]);

    // What is more than the largest number is that number, where rounding would have it infinite.
    let inputs = single::<f16>(1.0, [0.0, 1.0, 1.0], &[65504.0], &[0.0], &[0.0]);
    assert_eq!(values(&on_cpu(&inputs).s), [65504.0]);
    let inputs = single::<f16>(1.001, [0.0, 1.0, 1.0], &[65504.0], &[0.0], &[0.0]);
    let outputs = on_cpu(&inputs);
    assert_eq!((values(&outputs.s), values(&outputs.h[0])), (vec![65504.0], vec![65504.0]));

    // bf16 and f32 have the exponents of f32: nothing to saturate to.
    let inputs = single::<bf16>(1e6, [3.0, 2.0, 0.0], &x, &[0.0; 5], &[0.0; 5]);
    let s = values(&on_cpu(&inputs).s);
    assert!(s[0] > 1.99e6 && s[1] < -1.99e6, "{s:?}");
    let inputs = single::<f32>(1e6, [3.0, 2.0, 0.0], &x, &[0.0; 5], &[0.0; 5]);
    assert_eq!(values(&on_cpu(&inputs).s), [2e6, -2e6, 0.0, f64::from(1.2e11f32), 62500.0]);
}

/// Only S and dS saturate: the sums that they go into overflow.
#[test]
fn everything_else_overflows_to_infinity() {
    let inputs = single::<f16>(1e6, [0.0, 1.0, 2.0], &[1.0, -1.0], &[1.0; 2], &[1.0; 2]);
    let outputs = on_cpu(&inputs);
    assert_eq!(values(&outputs.h[0]), [f64::INFINITY, f64::NEG_INFINITY]);
    let inputs = single::<f16>(0.0, [40000.0, 0.0, 0.0], &[2.0], &[0.0], &[-2.0]);
    let outputs = on_cpu(&inputs);
    assert_eq!(values(&outputs.base_h[0]), [f64::INFINITY]);
    assert_eq!(values(&outputs.base_dx[0]), [f64::NEG_INFINITY]);
    assert_eq!(values(&outputs.dx), [f64::NEG_INFINITY]);
}

#[test]
fn ds_saturates() {
    // dS = 1e6 · dH · 2: ±65504; dX = dH · 3 + dS · 0.5, and dA = Σ dS x.
    let inputs =
        single::<f16>(1e6, [3.0, 0.5, 2.0], &[1.0, 2.0, 3.0], &[1.0; 3], &[1.0, -1.0, 0.0]);
    let outputs = on_cpu(&inputs);
    // f16 has multiples of 32 there: 32755 is rounded to 32752.
    assert_eq!(values(&outputs.dx), [32752.0, -32752.0, 0.0]);
    assert_eq!(outputs.da, [65504.0 - 2.0 * 65504.0]);
    assert_eq!(outputs.db[0], [0.0]);

    let inputs = single::<bf16>(1e6, [3.0, 0.5, 2.0], &[1.0], &[1.0], &[1.0]);
    assert_eq!(on_cpu(&inputs).da, [2e6]);
}

#[test]
fn nan_stays_nan() {
    let (x, dh) = ([f64::NAN, 1.0], [1.0, f64::NAN]);
    let inputs = single::<f16>(1e6, [1.0, 1.0, 1.0], &x, &[1.0; 2], &dh);
    // `on_cpu` compares what runs made in both ways; NaN is not equal to itself.
    let cpu = Device::cpu();
    let tensor = |values: &[f16], n| Tensor::from_slice(&cpu, values, [n, 1]).unwrap();
    let (x, a, w0) = (tensor(&inputs.x, 2), tensor(&inputs.a, 1), tensor(&inputs.of[0].w0, 1));
    let (b, s_in, dh) =
        (tensor(&inputs.of[0].b, 1), tensor(&inputs.s, 2), tensor(&inputs.of[0].dh, 2));
    let (mut h, mut s, mut dx) = (tensor(&inputs.s, 2), tensor(&inputs.s, 2), tensor(&inputs.s, 2));
    let zero = || Tensor::zeros(&cpu, [1, 1], DType::F32).unwrap();
    let (mut da, mut db) = (zero(), zero());
    let projections = [ops::Projection::new(w0.view(), b.view(), 1e6)];
    let weights = ops::Weights::new(a.view(), &projections);
    let problem = inputs.problem();
    let forward = ops::Forward::new(&cpu, &problem).unwrap();
    let backward = ops::Backward::new(&cpu, &problem).unwrap();
    let mut workspace = lora_kernels::Workspace::new(&cpu, forward.workspace()).unwrap();
    let h_view = &mut [h.view_mut()];
    forward.run(&weights, x.view(), h_view, s.view_mut(), &mut workspace).unwrap();
    let out = ops::GradientsMut {
        da: da.view_mut(),
        db: &mut [db.view_mut()],
        accumulation: lora_kernels::Accumulation::Overwrite,
    };
    let (dh, dx_view) = ([dh.view()], dx.view_mut());
    backward.run(&weights, &dh, x.view(), s_in.view(), dx_view, out, &mut workspace).unwrap();
    let values = |tensor: &Tensor| tensor.to_f32_vec().unwrap();
    assert!(values(&s)[0].is_nan() && values(&s)[1] == 65504.0);
    assert!(values(&h)[0].is_nan() && values(&h)[1] == 65504.0);
    assert!(values(&dx)[0] == 65504.0 && values(&dx)[1].is_nan());
    assert!(values(&da)[0].is_nan() && values(&db)[0].is_nan());
}

fn source(values: &[f32], shape: [usize; 2]) -> Tensor {
    Tensor::from_slice(&Device::cpu(), values, shape).unwrap()
}

/// Several tensors at once, each rounded to the nearest, ties to even.
#[test]
fn masters_are_rounded() -> Result<()> {
    fn holds<E: DeviceElement>(u: f32) -> Result<()> {
        let cpu = Device::cpu();
        let numbers = [
            (0.0, 0.0),
            (-0.0, -0.0),
            (1.0 + u, 1.0),
            (-1.0 - u, -1.0),
            (1.0 + u + f32::EPSILON, 1.0 + 2.0 * u),
            (1.0 + 3.0 * u, 1.0 + 4.0 * u),
            (f32::INFINITY, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (f32::MAX, f32::INFINITY),
            (2f32.powi(-149), 0.0),
        ];
        let (from, want): (Vec<f32>, Vec<f32>) = numbers.into_iter().unzip();
        let want: Vec<E> = want.iter().map(|&v| E::from_f64(v.into())).collect();
        for count in [1, 2, 8] {
            let sources: Vec<_> = (0..count)
                .map(|i| {
                    let mut rotated = from.clone();
                    rotated.rotate_left(i);
                    source(&rotated, [2, 5])
                })
                .collect();
            // Rows and columns count, whatever the leading dimensions.
            let mut outputs = (0..count)
                .map(|_| Tensor::zeros(&cpu, [1, 2, 5], E::DTYPE))
                .collect::<Result<Vec<_>>>()?;
            let views: Vec<_> = sources.iter().map(Tensor::view).collect();
            let mut views_mut: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
            ops::round(&cpu, &views, &mut views_mut)?;
            for (i, output) in outputs.iter().enumerate() {
                let mut rotated = want.clone();
                rotated.rotate_left(i);
                assert_same_bits(&format!("output {i}"), &output.to_vec::<E>()?, &rotated);
            }
        }
        let (nan, mut output) =
            (source(&[f32::NAN], [1, 1]), Tensor::zeros(&cpu, [1, 1], E::DTYPE)?);
        ops::round(&cpu, &[nan.view()], &mut [output.view_mut()])?;
        assert!(output.to_f32_vec()?[0].is_nan());
        Ok(())
    }
    holds::<bf16>(2f32.powi(-8))?;
    holds::<f16>(2f32.powi(-11))?;
    // f16 ends where f32 goes on.
    let (from, mut to) = (
        source(&[65504.0, 65519.0, 65520.0, -1e9], [2, 2]),
        Tensor::zeros(&Device::cpu(), [2, 2], DType::F16)?,
    );
    ops::round(&Device::cpu(), &[from.view()], &mut [to.view_mut()])?;
    assert_eq!(to.to_f32_vec()?, [65504.0, 65504.0, f32::INFINITY, f32::NEG_INFINITY]);
    Ok(())
}

#[test]
fn roundings_that_do_not_fit() -> Result<()> {
    let cpu = Device::cpu();
    ops::round(&cpu, &[], &mut [])?;
    let from = source(&[1.0; 6], [2, 3]);
    let zeros = |dtype| Tensor::zeros(&cpu, [2, 3], dtype);
    let mut to = [zeros(DType::Bf16)?, zeros(DType::F16)?, zeros(DType::F32)?];
    let refused = |sources: usize, outputs: &[usize], words: &str| {
        let mut to =
            outputs.iter().map(|&i| to[i].try_clone()).collect::<Result<Vec<_>>>().unwrap();
        let mut views: Vec<_> = to.iter_mut().map(Tensor::view_mut).collect();
        let error = ops::round(&cpu, &vec![from.view(); sources], &mut views).unwrap_err();
        assert_eq!(error.to_string(), words);
        for to in to {
            assert_eq!(to.to_f32_vec().unwrap(), [0.0; 6], "{words}: an output was written");
        }
        error
    };
    let error = refused(9, &[0; 9], "sources is a list of 9, expected 8 at most");
    assert!(matches!(error, Error::Count { argument: "sources", got: 9, .. }));
    let error = refused(2, &[0], "outputs is a list of 1, expected 2, as sources");
    assert!(matches!(error, Error::Count { argument: "outputs", got: 1, .. }));
    refused(0, &[0], "outputs is a list of 1, expected 0, as sources");
    refused(1, &[2], "outputs holds f32, expected bf16 or f16");
    refused(2, &[0, 2], "outputs holds f32, expected bf16 or f16");
    refused(2, &[0, 1], "outputs holds f16, expected bf16");
    to[0] = Tensor::zeros(&cpu, [3, 2], DType::Bf16)?;
    let error = ops::round(&cpu, &[from.view()], &mut [to[0].view_mut()]).unwrap_err();
    assert_eq!(error.to_string(), "outputs has shape [3, 2], expected 2 rows of 3");
    Ok(())
}
