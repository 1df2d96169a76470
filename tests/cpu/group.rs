//! Groups of projections of one x, on the CPU reference: against each of them alone, recomputed,
//! and by central differences.

use crate::common::{DeviceElement, Inputs, Sizes, assert_same_bits};
use crate::oracle::{Expect, check_samples, on_cpu, unit_roundoff};
use crate::parts::columns;
use approx::abs_diff_eq;
use half::{bf16, f16};
use lora_kernels::ops::{Backward, Forward, GradientsMut, Projection, Weights};
use lora_kernels::{Accumulation, DType, Device, Result, Tensor, Workspace};

/// One to four projections, with ones, odd rows, and sizes that differ from one to the next.
const SIZES: [Sizes; 7] = [
    Sizes::group(1, 1, &[(1, 1)]),
    Sizes::group(6, 7, &[(9, 3)]),
    Sizes::group(1, 8, &[(5, 2), (5, 2)]),
    Sizes::group(33, 40, &[(24, 8), (24, 16)]),
    Sizes::group(13, 9, &[(11, 5), (1, 1), (6, 70)]),
    Sizes::group(70, 16, &[(16, 8), (8, 24), (8, 16)]),
    Sizes::group(5, 6, &[(3, 1), (17, 256), (2, 3), (9, 200)]),
];

#[test]
fn each_is_what_it_would_be_alone() {
    fn holds<E: DeviceElement>(inputs: &Inputs<E>) {
        let (sizes, group) = (inputs.sizes, on_cpu(inputs));
        let rank = sizes.rank();
        for (i, &(_, r)) in sizes.of().iter().enumerate() {
            let (alone, start) = (on_cpu(&inputs.alone(i)), sizes.start(i));
            let name = |output: &str| format!("{sizes}, {}: {output} of {i}", E::DTYPE);
            assert_same_bits(&name("s"), &columns(&group.s, rank, start, r), &alone.s);
            assert_same_bits(&name("h"), &group.h[i], &alone.h[0]);
            assert_same_bits(&name("h of base"), &group.base_h[i], &alone.base_h[0]);
            assert_same_bits(&name("dx of base"), &group.base_dx[i], &alone.base_dx[0]);
            assert_same_bits(&name("merged"), &group.merged[i], &alone.merged[0]);
            let da = &group.da[start * sizes.k..(start + r) * sizes.k];
            assert_same_bits(&name("da"), da, &alone.da);
            assert_same_bits(&name("db"), &group.db[i], &alone.db[0]);
            if sizes.of().len() == 1 {
                assert_same_bits(&name("dx"), &group.dx, &alone.dx);
            }
        }
    }
    for sizes in SIZES {
        holds(&Inputs::<f32>::reals(sizes, 1));
        holds(&Inputs::<f16>::reals(sizes, 2));
        holds(&Inputs::<bf16>::reals(sizes, 3));
        holds(&Inputs::<bf16>::integers(sizes, 4));
    }
}

/// As tests/cpu/reference.rs has it of single layers.
#[test]
fn agrees_with_an_independent_computation() {
    for sizes in SIZES {
        let (bf16, f16) = (Inputs::<bf16>::integers(sizes, 10), Inputs::<f16>::integers(sizes, 11));
        check_samples(&bf16, &on_cpu(&bf16), Expect::Exact);
        check_samples(&f16, &on_cpu(&f16), Expect::Exact);
        let f32 = Inputs::<f32>::reals(sizes, 12);
        check_samples(&f32, &on_cpu(&f32), Expect::Bounded);
    }
}

/// dX entry by entry, rounded once: the bound is that of one rounding, and f64's sums.
#[test]
fn dx_is_summed_before_it_is_rounded() {
    fn holds<E: DeviceElement>(inputs: &Inputs<E>) {
        let (Sizes { t, k, .. }, of) = (inputs.sizes, inputs.sizes.of());
        let got = on_cpu(inputs).dx;
        for (at, got) in (0..t * k).zip(got) {
            let (row, col) = (at / k, at % k);
            let mut want = 0.0;
            for (i, (&(d, r), one)) in of.iter().zip(&inputs.of).enumerate() {
                let dh = &one.dh[row * d..][..d];
                for (j, dh) in dh.iter().enumerate() {
                    want += dh.to_f64() * one.w0[j * k + col].to_f64();
                }
                for j in 0..r {
                    let b = one.b[j..].iter().step_by(r);
                    let ds: f64 = dh.iter().zip(b).map(|(dh, b)| dh.to_f64() * b.to_f64()).sum();
                    let a = inputs.a[(inputs.sizes.start(i) + j) * k + col].to_f64();
                    want += f64::from(one.scale) * ds * a;
                }
            }
            // An f16 below 2⁻¹⁴ is rounded to a multiple of 2⁻²⁴.
            let least = if E::DTYPE == DType::F16 { 2f64.powi(-25) } else { 1e-12 };
            let bound = (1.001 * unit_roundoff(E::DTYPE) * want.abs()).max(least);
            let near = abs_diff_eq!(got.to_f64(), want, epsilon = bound);
            assert!(near, "{}: dx[{row}, {col}] is {got:?}, not {want}", inputs.sizes);
        }
    }
    for sizes in SIZES {
        holds(&Inputs::<f32>::reals(sizes, 5));
        holds(&Inputs::<bf16>::reals(sizes, 6));
        holds(&Inputs::<f16>::integers(sizes, 7));
    }
}

/// The gradients of the loss L = Σᵢ Gᵢ ∘ Hᵢ, whose dHᵢ are Gᵢ. L is linear in every entry of A, Bᵢ
/// and x, so that a central difference of any step is the derivative, and on these integers nothing
/// is rounded on the way.
#[test]
fn gradients_are_central_differences() {
    for sizes in SIZES {
        let mut inputs = Inputs::<f32>::integers(sizes, 8);
        inputs.s = on_cpu(&inputs).s;
        let got = on_cpu(&inputs);
        let point = Point::of(&inputs);
        let check =
            |name: &str, gradient: &[f32], entry: &dyn Fn(&mut Point, usize) -> &mut f64| {
                for (at, &got) in gradient.iter().enumerate() {
                    let loss = |step: f64| {
                        let mut point = point.clone();
                        *entry(&mut point, at) += step;
                        point.loss(&inputs)
                    };
                    let want = (loss(1.0) - loss(-1.0)) / 2.0;
                    assert_eq!(f64::from(got), want, "{sizes}: {name}[{at}]");
                }
            };
        check("dA", &got.da, &|point, at| &mut point.a[at]);
        check("dX", &got.dx, &|point, at| &mut point.x[at]);
        for (i, db) in got.db.iter().enumerate() {
            check("dB", db, &|point, at| &mut point.b[i][at]);
        }
    }
}

/// What of the loss's arguments has gradients, in f64.
#[derive(Clone)]
struct Point {
    x: Vec<f64>,
    a: Vec<f64>,
    b: Vec<Vec<f64>>,
}

impl Point {
    fn of(inputs: &Inputs<f32>) -> Self {
        let widen = |values: &Vec<f32>| values.iter().map(|&v| f64::from(v)).collect();
        let b = inputs.of.iter().map(|one| widen(&one.b)).collect();
        Point { x: widen(&inputs.x), a: widen(&inputs.a), b }
    }

    /// Σᵢ Gᵢ ∘ (X W0ᵢᵀ + sᵢ · X Aᵢᵀ Bᵢᵀ).
    fn loss(&self, inputs: &Inputs<f32>) -> f64 {
        let (Sizes { k, .. }, of) = (inputs.sizes, inputs.sizes.of());
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let mut loss = 0.0;
        for (row, x) in self.x.chunks(k).enumerate() {
            for (i, (&(d, r), one)) in of.iter().zip(&inputs.of).enumerate() {
                let a = self.a.chunks(k).skip(inputs.sizes.start(i)).take(r);
                let low: Vec<f64> = a.map(|a| f64::from(one.scale) * dot(x, a)).collect();
                let g = &one.dh[row * d..][..d];
                for ((w0, b), g) in one.w0.chunks(k).zip(self.b[i].chunks(r)).zip(g) {
                    let base: f64 = w0.iter().zip(x).map(|(w0, x)| f64::from(*w0) * x).sum();
                    loss += f64::from(*g) * (base + dot(&low, b));
                }
            }
        }
        loss
    }
}

#[test]
fn leading_dimensions_count_as_rows() -> Result<()> {
    let inputs = Inputs::<bf16>::reals(Sizes::group(6, 7, &[(9, 3), (4, 2)]), 9);
    let (cpu, flat) = (Device::cpu(), on_cpu(&inputs));
    let tensor = |values: &[bf16], shape: &[usize]| Tensor::from_slice(&cpu, values, shape);
    let owned =
        inputs.of.iter().zip(inputs.sizes.of()).map(|(one, &(d, r))| {
            Ok((tensor(&one.w0, &[d, 7])?, tensor(&one.b, &[d, r])?, one.scale))
        });
    let owned = owned.collect::<Result<Vec<_>>>()?;
    let projections =
        owned.iter().map(|(w0, b, scale)| Projection::new(w0.view(), b.view(), *scale));
    let projections: Vec<_> = projections.collect();
    let a = tensor(&inputs.a, &[5, 7])?;
    let weights = Weights::new(a.view(), &projections);
    let x = tensor(&inputs.x, &[2, 3, 7])?;

    let zeros = |shape: &[usize], dtype| Tensor::zeros(&cpu, shape, dtype);
    let forward = Forward::new(&cpu, &inputs.problem())?;
    let backward = Backward::new(&cpu, &inputs.problem())?;
    let mut workspace = Workspace::new(&cpu, forward.workspace().max(backward.workspace()))?;
    let mut h = [zeros(&[2, 3, 9], DType::Bf16)?, zeros(&[2, 3, 4], DType::Bf16)?];
    let mut s = zeros(&[2, 3, 5], DType::Bf16)?;
    let mut views = h.each_mut().map(Tensor::view_mut);
    forward.run(&weights, x.view(), &mut views, s.view_mut(), &mut workspace)?;
    for (h, flat) in h.iter().zip(&flat.h) {
        assert_same_bits("h", &h.to_vec::<bf16>()?, flat);
    }
    assert_same_bits("s", &s.to_vec::<bf16>()?, &flat.s);

    let dh = [(0, 9), (1, 4)].map(|(i, d)| tensor(&inputs.of[i].dh, &[2, 3, d]));
    let dh = dh.into_iter().collect::<Result<Vec<_>>>()?;
    let dh: Vec<_> = dh.iter().map(Tensor::view).collect();
    let s = tensor(&inputs.s, &[6, 5])?;
    let mut dx = zeros(&[2, 3, 7], DType::Bf16)?;
    let mut da = zeros(&[5, 7], DType::F32)?;
    let mut db = [zeros(&[9, 3], DType::F32)?, zeros(&[4, 2], DType::F32)?];
    let out = GradientsMut {
        da: da.view_mut(),
        db: &mut db.each_mut().map(Tensor::view_mut),
        accumulation: Accumulation::Overwrite,
    };
    let (x, s) = (x.view(), s.view());
    backward.run(&weights, &dh, x, s, dx.view_mut(), out, &mut workspace)?;
    assert_same_bits("dx", &dx.to_vec::<bf16>()?, &flat.dx);
    assert_same_bits("da", &da.to_vec::<f32>()?, &flat.da);
    for (db, flat) in db.iter().zip(&flat.db) {
        assert_same_bits("db", &db.to_vec::<f32>()?, flat);
    }
    Ok(())
}
