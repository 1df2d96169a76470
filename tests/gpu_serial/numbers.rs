//! Numbers at the ends of their range: f16 that overflows, and rows that lie apart.

use super::alone;
use super::pass::PATHS;
use crate::common::{Inputs, Sizes, assert_same_values};
use crate::cuda::cuda_paths;
use half::{bf16, f16};
use lora_kernels::ops::{Backward, BaseForward, BaseInputGrad, Forward, GradientsMut};
use lora_kernels::ops::{Path, Projection, Weights};
use lora_kernels::{Accumulation, DType, Device, Problem, Tensor, TensorView, Workspace};

/// With B = 0, h is W0 x, whatever the scale; S is what f16 can hold of s · A x.
#[test]
#[ignore = "needs a CUDA GPU"]
fn f16_saturates() {
    let _alone = alone();
    for device in cuda_paths() {
        for sizes in PATHS {
            let [t, k, d, r] = sizes.single();
            let inputs = Inputs::<f16>::integers(sizes, 41);
            let zeros = vec![f16::ZERO; d * r];
            let tensor = |values: &[f16], shape: [usize; 2]| {
                Tensor::from_slice(&device, values, shape).expect("a tensor")
            };
            let (x, w0) = (tensor(&inputs.x, [t, k]), tensor(&inputs.of[0].w0, [d, k]));
            let (a, b) = (tensor(&inputs.a, [r, k]), tensor(&zeros, [d, r]));
            let (mut h, mut s) =
                (tensor(&vec![f16::NAN; t * d], [t, d]), tensor(&inputs.s, [t, r]));
            let mut frozen = tensor(&vec![f16::NAN; t * d], [t, d]);
            let problem = Problem::single(t, k, d, r, DType::F16).expect("a problem");
            let forward = Forward::new(&device, &problem).expect("an operation");
            let mut workspace = Workspace::new(&device, forward.workspace()).expect("a workspace");
            let scale = 1e7;
            let layer = [Projection::new(w0.view(), b.view(), scale)];
            let weights = Weights::new(a.view(), &layer);
            let out = &mut [h.view_mut()];
            forward.run(&weights, x.view(), out, s.view_mut(), &mut workspace).expect("forward");
            let base = BaseForward::new(&device, t, [d, k], DType::F16).expect("an operation");
            let mut workspace = Workspace::new(&device, base.workspace()).expect("a workspace");
            base.run(w0.view(), x.view(), frozen.view_mut(), &mut workspace).expect("frozen");
            let context = format!("{sizes} on {}", forward.path());
            let [h, frozen] = [h, frozen].map(|h| h.to_vec::<f16>().expect("h"));
            assert_same_values(&format!("{context}: h"), &h, &frozen);
            let s = s.to_f32_vec().expect("s");
            let most = f16::MAX.to_f32();
            assert!(s.iter().all(|s| s.abs() <= most), "{context}");
            let saturated = s.iter().filter(|s| s.abs() == most).count();
            assert!(saturated * 2 > s.len(), "{context}: {saturated} of {} saturate", s.len());

            // dS alike: dX = dH W0 + dS A has no infinity that a zero of A makes NaN.
            let a_zero = tensor(&vec![f16::ZERO; r * k], [r, k]);
            let b = tensor(&inputs.of[0].b, [d, r]);
            let dh = tensor(&inputs.of[0].dh, [t, d]);
            let [mut dx, mut base_dx] = [(); 2].map(|()| tensor(&vec![f16::NAN; t * k], [t, k]));
            let gradient = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::F32);
            let mut da = gradient([r, k]).expect("da");
            let mut db = gradient([d, r]).expect("db");
            let backward = Backward::new(&device, &problem).expect("an operation");
            let mut workspace = Workspace::new(&device, backward.workspace()).expect("a workspace");
            let layer = [Projection::new(w0.view(), b.view(), scale)];
            let weights = Weights::new(a_zero.view(), &layer);
            let s = tensor(&inputs.s, [t, r]);
            let db = &mut [db.view_mut()];
            let out = GradientsMut { da: da.view_mut(), db, accumulation: Accumulation::Overwrite };
            let (dh, x, s) = (dh.view(), x.view(), s.view());
            backward
                .run(&weights, &[dh], x, s, dx.view_mut(), out, &mut workspace)
                .expect("backward");
            let base = BaseInputGrad::new(&device, t, [d, k], DType::F16).expect("an operation");
            let mut workspace = Workspace::new(&device, base.workspace()).expect("a workspace");
            base.run(w0.view(), dh, base_dx.view_mut(), &mut workspace).expect("frozen");
            let context = format!("{sizes} on {}", backward.path());
            let [dx, base_dx] = [dx, base_dx].map(|dx| dx.to_vec::<f16>().expect("dx"));
            assert_same_values(&format!("{context}: dx"), &dx, &base_dx);
            assert!(da.to_f32_vec().expect("da").iter().all(|da| da.is_finite()), "{context}");
        }
    }
}

/// NaN in x stays NaN in S of its token.
#[test]
#[ignore = "needs a CUDA GPU"]
fn nan_is_not_saturated() {
    let _alone = alone();
    for device in cuda_paths() {
        for sizes in PATHS {
            let [t, k, d, r] = sizes.single();
            let mut inputs = Inputs::<f16>::reals(sizes, 42);
            inputs.x[0] = f16::NAN;
            let tensor = |values: &[f16], shape: [usize; 2]| {
                Tensor::from_slice(&device, values, shape).expect("a tensor")
            };
            let (x, w0) = (tensor(&inputs.x, [t, k]), tensor(&inputs.of[0].w0, [d, k]));
            let (a, b) = (tensor(&inputs.a, [r, k]), tensor(&inputs.of[0].b, [d, r]));
            let (mut h, mut s) = (tensor(&inputs.of[0].dh, [t, d]), tensor(&inputs.s, [t, r]));
            let problem = Problem::single(t, k, d, r, DType::F16).expect("a problem");
            let forward = Forward::new(&device, &problem).expect("an operation");
            let mut workspace = Workspace::new(&device, forward.workspace()).expect("a workspace");
            let layer = [Projection::new(w0.view(), b.view(), 1e7)];
            let weights = Weights::new(a.view(), &layer);
            let out = &mut [h.view_mut()];
            forward.run(&weights, x.view(), out, s.view_mut(), &mut workspace).expect("forward");
            let s = s.to_f32_vec().expect("s");
            assert!(s[..r].iter().all(|s| s.is_nan()), "{sizes} on {}", forward.path());
            assert!(s[r..].iter().all(|s| s.is_finite()), "{sizes} on {}", forward.path());
        }
    }
}

/// The matrix in the middle columns of a wider one, whose other columns are NaN.
struct Wide {
    tensor: Tensor,
    before: usize,
    cols: usize,
}

impl Wide {
    fn new(device: &Device, values: &[bf16], [rows, cols]: [usize; 2], gap: usize) -> Self {
        let width = cols + 2 * gap;
        let mut all = vec![bf16::NAN; rows * width];
        for (to, from) in all.chunks_mut(width).zip(values.chunks(cols)) {
            to[gap..gap + cols].copy_from_slice(from);
        }
        let tensor = Tensor::from_slice(device, &all, [rows, width]).expect("a tensor");
        Wide { tensor, before: gap, cols }
    }

    fn view(&self) -> TensorView<'_> {
        self.tensor.view().columns(self.before..self.before + self.cols).expect("its columns")
    }

    /// The matrix, and whether the rest is still NaN.
    fn get(&self) -> (Vec<u16>, bool) {
        let all = self.tensor.to_vec::<bf16>().expect("a tensor");
        let (mut inside, mut outside) = (Vec::new(), true);
        for row in all.chunks(self.cols + 2 * self.before) {
            let columns = self.before..self.before + self.cols;
            inside.extend(row[columns.clone()].iter().map(|value| value.to_bits()));
            outside &= row[..columns.start].iter().all(|value| value.to_f64().is_nan());
            outside &= row[columns.end..].iter().all(|value| value.to_f64().is_nan());
        }
        (inside, outside)
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn rows_may_lie_apart() {
    let _alone = alone();
    for device in cuda_paths() {
        for sizes in PATHS {
            // Rows at multiples of 16 bytes, and not; dense last, to compare with.
            let [aligned, odd, dense] = [8, 3, 0].map(|gap| strided(&device, sizes, gap));
            assert_eq!(aligned.0, dense.0, "{sizes} on {}", dense.1);
            // Unaligned rows take the path for every GPU, with sums in another order, which is that
            // of its aligned ones but for few tokens.
            let generic = [0, 3].map(|gap| strided(&device.generic(), sizes, gap));
            if generic[0].1 != Path::MmaDecode.to_string() {
                assert_eq!(generic[1].0, generic[0].0, "{sizes} unaligned");
            }
            match generic[0].1 == Path::Mma.to_string() {
                true => assert_eq!(odd.0, generic[0].0, "{sizes} unaligned"),
                false => assert_eq!(odd.0, strided(&device, sizes, 5).0, "{sizes} unaligned"),
            }
        }
    }
}

/// The bits of both passes and of the frozen layer's, and the path.
fn strided(device: &Device, sizes: Sizes, gap: usize) -> (Vec<Vec<u16>>, String) {
    let [t, k, d, r] = sizes.single();
    let inputs = Inputs::<bf16>::reals(sizes, 43);
    let wide = |values: &[bf16], shape| Wide::new(device, values, shape, gap);
    let nan = |rows: usize, cols: usize| wide(&vec![bf16::NAN; rows * cols], [rows, cols]);
    let (x, w0) = (wide(&inputs.x, [t, k]), wide(&inputs.of[0].w0, [d, k]));
    let (a, b, dh) =
        (wide(&inputs.a, [r, k]), wide(&inputs.of[0].b, [d, r]), wide(&inputs.of[0].dh, [t, d]));
    let (mut h, mut dx) = (nan(t, d), nan(t, k));
    let (mut base_h, mut base_dx) = (nan(t, d), nan(t, k));
    let mut s = Tensor::zeros(device, [t, r], DType::Bf16).expect("s");
    let gradient = |shape: [usize; 2]| Tensor::zeros(device, shape, DType::F32).expect("zeros");
    let (mut da, mut db) = (gradient([r, k]), gradient([d, r]));

    let problem = Problem::single(t, k, d, r, DType::Bf16).expect("a problem");
    let forward = Forward::new(device, &problem).expect("an operation");
    let backward = Backward::new(device, &problem).expect("an operation");
    let size = forward.workspace().max(backward.workspace());
    let mut workspace = Workspace::new(device, size).expect("a workspace");
    let layer = [Projection::new(w0.view(), b.view(), inputs.of[0].scale)];
    let weights = Weights::new(a.view(), &layer);
    fn output(wide: &mut Wide) -> lora_kernels::TensorViewMut<'_> {
        let columns = wide.before..wide.before + wide.cols;
        wide.tensor.view_mut().columns(columns).expect("its columns")
    }
    let out = &mut [output(&mut h)];
    forward.run(&weights, x.view(), out, s.view_mut(), &mut workspace).expect("forward");
    let db_out = &mut [db.view_mut()];
    let out = GradientsMut { da: da.view_mut(), db: db_out, accumulation: Accumulation::Overwrite };
    backward
        .run(&weights, &[dh.view()], x.view(), s.view(), output(&mut dx), out, &mut workspace)
        .expect("backward");
    let base = BaseForward::new(device, t, [d, k], DType::Bf16).expect("an operation");
    let mut workspace = Workspace::new(device, base.workspace()).expect("a workspace");
    base.run(w0.view(), x.view(), output(&mut base_h), &mut workspace).expect("frozen");
    let base = BaseInputGrad::new(device, t, [d, k], DType::Bf16).expect("an operation");
    let mut workspace = Workspace::new(device, base.workspace()).expect("a workspace");
    base.run(w0.view(), dh.view(), output(&mut base_dx), &mut workspace).expect("frozen");

    let mut all = Vec::new();
    for (name, wide) in [("h", &h), ("dx", &dx), ("base h", &base_h), ("base dx", &base_dx)] {
        let (inside, outside) = wide.get();
        assert!(outside, "{sizes}: {name} was written beside its rows");
        all.push(inside);
    }
    let halves = |tensor: &Tensor| -> Vec<u16> {
        let bits = tensor.to_f32_vec().expect("a tensor").into_iter().map(f32::to_bits);
        bits.flat_map(|bits| [(bits >> 16) as u16, bits as u16]).collect()
    };
    all.extend([halves(&s), halves(&da), halves(&db)]);
    (all, forward.path().to_string())
}
