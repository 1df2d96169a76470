//! Groups of projections of one x on a GPU, against the CPU reference, number for number on
//! integers (see `Inputs::integers`); and what is refused. Reals are in tests/gpu/accuracy.rs.

use crate::common::{DeviceElement, Inputs, Place, Placement, Sizes, assert_same_bits};
use crate::cuda::{cuda, cuda_paths};
use crate::device::{few_sms, forward_path, on_cuda};
use crate::oracle::on_cpu;
use crate::parts::columns;
use half::{bf16, f16};
use lora_kernels::cudarc::driver::DevicePtr;
use lora_kernels::ops::{Backward, Forward, GradientsMut, Projection, Weights};
use lora_kernels::{Accumulation, DType, Error, Problem, Result, Tensor, TensorViewMut, Workspace};

/// One to four projections with sizes around the borders of tiles, of steps along an inner
/// dimension and of splits of T (see tests/gpu/exact.rs), alike and unlike each other.
const EDGES: &[Sizes] = &[
    Sizes::group(1, 1, &[(1, 1)]),
    Sizes::group(1, 8, &[(1, 3), (40, 8)]),
    Sizes::group(3, 33, &[(77, 3), (9, 5)]),
    Sizes::group(2, 7, &[(9, 256), (5, 1), (33, 200)]),
    Sizes::group(31, 32, &[(33, 24), (128, 8), (40, 16)]),
    Sizes::group(33, 31, &[(129, 65), (64, 64), (1, 1), (7, 7)]),
    Sizes::group(127, 64, &[(40, 8), (40, 8)]),
    Sizes::group(128, 128, &[(256, 16), (128, 16), (128, 16)]),
    Sizes::group(129, 127, &[(257, 17), (255, 15)]),
    Sizes::group(130, 264, &[(72, 200), (136, 72)]),
    Sizes::group(65, 512, &[(520, 64), (64, 8), (72, 16), (8, 24)]),
    Sizes::group(63, 520, &[(512, 63), (40, 1)]),
    Sizes::group(257, 96, &[(130, 129), (96, 128), (33, 8)]),
    Sizes::group(511, 40, &[(64, 1), (64, 1), (64, 1), (64, 1)]),
    Sizes::group(513, 72, &[(136, 16), (72, 8), (136, 24)]),
    Sizes::group(1025, 130, &[(33, 72), (130, 16)]),
    Sizes::group(2049, 136, &[(264, 24), (136, 8)]),
    Sizes::group(2305, 64, &[(40, 3), (64, 16), (1, 5), (32, 8)]),
    // Aligned rows, and W0s of which only some are whole steps, tiles of 128×256 and more of them.
    Sizes::group(255, 8, &[(8, 8), (8, 8), (8, 8), (8, 8)]),
    Sizes::group(256, 256, &[(32, 8), (24, 16), (64, 24), (40, 8)]),
    Sizes::group(257, 64, &[(1032, 72), (264, 8)]),
    Sizes::group(256, 256, &[(512, 256), (256, 256), (256, 256), (128, 256)]),
    Sizes::group(385, 328, &[(2056, 128), (136, 256), (264, 40)]),
    Sizes::group(2305, 520, &[(776, 40), (264, 24), (264, 16)]),
    Sizes::group(2305, 264, &[(2056, 16), (520, 8)]),
    Sizes::group(1281, 712, &[(1288, 8)]),
];

/// q, k and v, and gate and up, of real models.
const LAYERS: &[Sizes] = &[
    Sizes::group(1, 4096, &[(4096, 16), (1024, 16), (1024, 16)]),
    Sizes::group(3, 896, &[(896, 64), (128, 64), (128, 64)]),
    Sizes::group(127, 896, &[(4864, 16), (4864, 16)]),
    Sizes::group(640, 896, &[(896, 16), (128, 8), (128, 8)]),
    Sizes::group(1025, 896, &[(896, 8), (128, 8), (128, 8)]),
];

fn matches_reference<E: DeviceElement>(shapes: &[Sizes]) {
    for (seed, &sizes) in shapes.iter().enumerate() {
        let inputs = Inputs::<E>::integers(sizes, seed as u64);
        let reference = on_cpu(&inputs);
        for device in cuda_paths() {
            let path = forward_path(&device, &inputs.problem());
            for placement in Placement::ALL {
                let outputs = on_cuda(&Place { device: device.clone(), placement }, &inputs);
                let context = format!("{sizes}, {}, {path}, {placement:?}", E::DTYPE);
                outputs.assert_same_values(&reference, &context);
            }
        }
        for device in few_sms() {
            let sms = device.profile().expect("a CUDA device").sms();
            let place = Place { device, placement: Placement::Aligned };
            let context = format!("{sizes}, {}, {sms} SMs", E::DTYPE);
            on_cuda(&place, &inputs).assert_same_values(&reference, &context);
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn edges_bf16() {
    matches_reference::<bf16>(EDGES);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn edges_f16() {
    matches_reference::<f16>(EDGES);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layers_bf16() {
    matches_reference::<bf16>(LAYERS);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layers_f16() {
    matches_reference::<f16>(LAYERS);
}

/// q, k and v as columns of one matrix, as a fused attention kernel takes them.
#[test]
#[ignore = "needs a CUDA GPU"]
fn outputs_may_be_columns_of_one_matrix() -> Result<()> {
    for (t, k) in [(5, 264), (300, 264), (1100, 520)] {
        let sizes = Sizes::group(t, k, &[(136, 16), (64, 8), (64, 24)]);
        let inputs = Inputs::<bf16>::reals(sizes, 6);
        for device in cuda_paths() {
            let want = on_cuda(&Place::aligned(&device), &inputs);
            let matrix =
                |values: &[bf16], shape: [usize; 2]| Tensor::from_slice(&device, values, shape);
            let owned = inputs.of.iter().zip(sizes.of()).map(|(of, &(d, r))| {
                Ok((matrix(&of.w0, [d, k])?, matrix(&of.b, [d, r])?, of.scale))
            });
            let owned = owned.collect::<Result<Vec<_>>>()?;
            let projections: Vec<_> =
                owned.iter().map(|(w0, b, s)| Projection::new(w0.view(), b.view(), *s)).collect();
            let (a, x) = (matrix(&inputs.a, [sizes.rank(), k])?, matrix(&inputs.x, [t, k])?);
            let forward = Forward::new(&device, &inputs.problem())?;
            let mut workspace = Workspace::new(&device, forward.workspace())?;

            let stream = device.stream().expect("a CUDA device");
            let width = 136 + 64 + 64;
            let memory = stream.clone_htod(&vec![bf16::NAN; t * width]).expect("memory");
            let start = memory.device_ptr(stream).0;
            let columns_from = |col: usize, cols: usize| {
                let at = start + 2 * col as u64;
                // SAFETY: the columns do not overlap, and `memory` outlives the work, which the
                // copy back waits for.
                unsafe { TensorViewMut::from_raw(&device, at, [t, cols], width, DType::Bf16) }
            };
            let h = &mut [columns_from(0, 136)?, columns_from(136, 64)?, columns_from(200, 64)?];
            let weights = Weights::new(a.view(), &projections);
            forward.run(&weights, x.view(), h, None, &mut workspace)?;
            let got = stream.clone_dtoh(&memory).expect("memory");
            device.synchronize()?;
            for (i, (start, d)) in [(0, 136), (136, 64), (200, 64)].into_iter().enumerate() {
                let h = columns(&got, width, start, d);
                assert_same_bits(&format!("{sizes}: h[{i}]"), &h, &want.h[i]);
            }
        }
    }
    Ok(())
}

/// Two projections of 24×40 with ranks 8 and 16, for 33 tokens.
struct Two {
    w0: Tensor,
    b: [Tensor; 2],
    a: Tensor,
    x: Tensor,
    s: Tensor,
    dh: Tensor,
}

const TWO: &[(usize, usize)] = &[(24, 8), (24, 16)];

impl Two {
    fn new() -> Result<Self> {
        let zeros = |shape: [usize; 2]| Tensor::zeros(&cuda(), shape, DType::Bf16);
        Ok(Two {
            w0: zeros([24, 40])?,
            b: [zeros([24, 8])?, zeros([24, 16])?],
            a: zeros([24, 40])?,
            x: zeros([33, 40])?,
            s: zeros([33, 24])?,
            dh: zeros([33, 24])?,
        })
    }

    fn projections(&self) -> [Projection<'_>; 2] {
        self.b.each_ref().map(|b| Projection::new(self.w0.view(), b.view(), 1.0))
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn outputs_are_held_apart() -> Result<()> {
    let (device, two) = (cuda(), Two::new()?);
    let stream = device.stream().expect("a CUDA device");
    let memory = stream.alloc_zeros::<f32>(33 * 24 * 2).expect("memory");
    let start = memory.device_ptr(stream).0;
    let projections = two.projections();
    let weights = Weights::new(two.a.view(), &projections);
    let problem = Problem::new(33, 40, TWO, DType::Bf16)?;
    let (forward, backward) = (Forward::new(&device, &problem)?, Backward::new(&device, &problem)?);
    let mut workspace = Workspace::new(&device, forward.workspace().max(backward.workspace()))?;

    let bytes = 33 * 24 * 2;
    let mut run = |at: u64, stride: usize| -> Result<()> {
        // SAFETY: all lies within `memory`, which outlives the work that the test waits for.
        let h = |at| unsafe { TensorViewMut::from_raw(&device, at, [33, 24], stride, DType::Bf16) };
        let h = &mut [h(start)?, h(start + at)?];
        forward.run(&weights, two.x.view(), h, None, &mut workspace)
    };
    let overlap = Error::Overlap { output: "h[1]", other: "h[0]" };
    assert_eq!(run(bytes - 2, 24).unwrap_err(), overlap);
    assert_eq!(run(0, 24).unwrap_err(), overlap);
    run(bytes, 24)?;
    // Columns beside each other, of one matrix of 48.
    assert_eq!(run(46, 48).unwrap_err(), overlap);
    run(48, 48)?;

    let mut da = Tensor::zeros(&device, [24, 40], DType::F32)?;
    let dh = [two.dh.view(), two.dh.view()];
    let mut run = |at: u64| -> Result<()> {
        // SAFETY: as above.
        let db = |at, r| unsafe { TensorViewMut::from_raw(&device, at, [24, r], r, DType::F32) };
        let out = GradientsMut {
            da: da.view_mut(),
            db: &mut [db(start, 8)?, db(start + at, 16)?],
            accumulation: Accumulation::Overwrite,
        };
        backward.run_params(&weights, &dh, two.x.view(), two.s.view(), out, &mut workspace)
    };
    let overlap = Error::Overlap { output: "db[1]", other: "db[0]" };
    assert_eq!(run(24 * 8 * 4 - 4).unwrap_err(), overlap);
    run(24 * 8 * 4)?;
    device.synchronize()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_short_workspace_is_refused() -> Result<()> {
    let (device, two) = (cuda(), Two::new()?);
    let projections = two.projections();
    let weights = Weights::new(two.a.view(), &projections);
    let forward = Forward::new(&device, &Problem::new(33, 40, TWO, DType::Bf16)?)?;
    let mut whole = Workspace::new(&device, forward.workspace())?;
    let needed = whole.scratch_mut().shape().elements();
    assert!(needed > 1, "this path has no scratch to be too small");
    let zeros = || Tensor::zeros(&device, [33, 24], DType::Bf16);
    let mut h = [zeros()?, zeros()?];
    let mut run = |elements: usize| -> Result<()> {
        let mut workspace = Workspace::new(&device, forward.workspace())?;
        *workspace.scratch_mut() = Tensor::zeros(&device, [elements], DType::F32)?;
        let h = &mut h.each_mut().map(Tensor::view_mut);
        forward.run(&weights, two.x.view(), h, None, &mut workspace)
    };
    let short = |got| Error::Workspace { part: "scratch", needed, got };
    assert_eq!(run(needed - 1).unwrap_err(), short(needed - 1));
    assert_eq!(run(0).unwrap_err(), short(0));
    Ok(())
}
