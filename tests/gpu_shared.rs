//! Projections that share their input on a GPU, against the CPU reference: number for number on
//! integers (see `Inputs::integers`), within what the formats allow on reals; and what is refused.

mod common;

use common::{assert_same_bits, shared_on_cpu, shared_on_cuda, DeviceElement, Place, Placement};
use common::{cuda, cuda_paths, f32_sums, few_sms, on_cuda, relative_error, unit_roundoff};
use common::{SharedInputs, SharedSizes};
use half::{bf16, f16};
use lora_kernels::cudarc::driver::DevicePtr;
use lora_kernels::ops::{self, Projection, SharedBackwardOutputs, SharedWeights};
use lora_kernels::{Accumulation, DType, Error, Result, Tensor, TensorViewMut, Workspace};

/// One to four projections with sizes around the borders of tiles, of steps along an inner
/// dimension and of splits of T (see tests/gpu_exact.rs), alike and unlike each other.
const EDGES: &[SharedSizes] = &[
    SharedSizes::new(1, 1, &[(1, 1)]),
    SharedSizes::new(1, 8, &[(1, 3), (40, 8)]),
    SharedSizes::new(3, 33, &[(77, 3), (9, 5)]),
    SharedSizes::new(2, 7, &[(9, 256), (5, 1), (33, 200)]),
    SharedSizes::new(31, 32, &[(33, 24), (128, 8), (40, 16)]),
    SharedSizes::new(33, 31, &[(129, 65), (64, 64), (1, 1), (7, 7)]),
    SharedSizes::new(127, 64, &[(40, 8), (40, 8)]),
    SharedSizes::new(128, 128, &[(256, 16), (128, 16), (128, 16)]),
    SharedSizes::new(129, 127, &[(257, 17), (255, 15)]),
    SharedSizes::new(130, 264, &[(72, 200), (136, 72)]),
    SharedSizes::new(65, 512, &[(520, 64), (64, 8), (72, 16), (8, 24)]),
    SharedSizes::new(63, 520, &[(512, 63), (40, 1)]),
    SharedSizes::new(257, 96, &[(130, 129), (96, 128), (33, 8)]),
    SharedSizes::new(511, 40, &[(64, 1), (64, 1), (64, 1), (64, 1)]),
    SharedSizes::new(513, 72, &[(136, 16), (72, 8), (136, 24)]),
    SharedSizes::new(1025, 130, &[(33, 72), (130, 16)]),
    SharedSizes::new(2049, 136, &[(264, 24), (136, 8)]),
    SharedSizes::new(2305, 64, &[(40, 3), (64, 16), (1, 5), (32, 8)]),
    // Aligned rows, and W0s of which only some are whole steps, tiles of 128×256 and more of them.
    SharedSizes::new(255, 8, &[(8, 8), (8, 8), (8, 8), (8, 8)]),
    SharedSizes::new(256, 256, &[(32, 8), (24, 16), (64, 24), (40, 8)]),
    SharedSizes::new(257, 64, &[(1032, 72), (264, 8)]),
    SharedSizes::new(256, 256, &[(512, 256), (256, 256), (256, 256), (128, 256)]),
    SharedSizes::new(385, 328, &[(2056, 128), (136, 256), (264, 40)]),
    SharedSizes::new(2305, 520, &[(776, 40), (264, 24), (264, 16)]),
    SharedSizes::new(2305, 264, &[(2056, 16), (520, 8)]),
    SharedSizes::new(1281, 712, &[(1288, 8)]),
];

/// q, k and v, and gate and up, of real models.
const LAYERS: &[SharedSizes] = &[
    SharedSizes::new(1, 4096, &[(4096, 16), (1024, 16), (1024, 16)]),
    SharedSizes::new(3, 896, &[(896, 64), (128, 64), (128, 64)]),
    SharedSizes::new(127, 896, &[(4864, 16), (4864, 16)]),
    SharedSizes::new(640, 896, &[(896, 16), (128, 8), (128, 8)]),
    SharedSizes::new(1025, 896, &[(896, 8), (128, 8), (128, 8)]),
];

fn matches_reference<E: DeviceElement>(shapes: &[SharedSizes]) {
    for (seed, &sizes) in shapes.iter().enumerate() {
        let inputs = SharedInputs::<E>::integers(sizes, seed as u64);
        let reference = shared_on_cpu(&inputs);
        for device in cuda_paths() {
            let path = ops::forward_shared_plan(&device, &sizes.problem(E::DTYPE)).path;
            for placement in Placement::ALL {
                let outputs = shared_on_cuda(&Place { device: device.clone(), placement }, &inputs);
                let context = format!("{sizes}, {}, {path}, {placement:?}", E::DTYPE);
                outputs.assert_same_values(&reference, &context);
            }
        }
        for device in few_sms() {
            let sms = device.profile().expect("a CUDA device").sms;
            let place = Place { device, placement: Placement::Aligned };
            let context = format!("{sizes}, {}, {sms} SMs", E::DTYPE);
            shared_on_cuda(&place, &inputs).assert_same_values(&reference, &context);
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

/// The bounds are those of tests/gpu_accuracy.rs, for each projection by itself, and for dX, in
/// whose sum each is one more term of the same size.
fn is_accurate<E: DeviceElement>(sizes: SharedSizes) {
    let inputs = SharedInputs::<E>::reals(sizes, 5);
    let want = shared_on_cpu(&inputs.widened());
    let u = unit_roundoff(E::DTYPE);
    let [best, generic] = cuda_paths();
    let odd = (generic.clone(), Placement::Odd);
    for (device, placement) in [(best, Placement::Aligned), (generic, Placement::Aligned), odd] {
        let got = shared_on_cuda(&Place { device, placement }, &inputs);
        let mut errors = vec![
            ("s".to_string(), relative_error(&got.s, &want.s), u),
            ("dx".to_string(), relative_error(&got.dx, &want.dx), u),
            ("da".to_string(), relative_error(&got.da, &want.da), u),
        ];
        for i in 0..sizes.of.len() {
            errors.push((format!("h[{i}]"), relative_error(&got.h[i], &want.h[i]), u));
            let db = relative_error(&got.db[i], &want.db[i]);
            errors.push((format!("db[{i}]"), db, f32_sums(sizes.t)));
        }
        for (output, error, bound) in errors {
            println!("{sizes} {}: {output} off by {error:.2e}, bound {bound:.2e}", E::DTYPE);
            assert!(error <= bound, "{sizes} {}: {output} is off by {error:e}", E::DTYPE);
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn reals_are_accurate() {
    let sizes = [
        SharedSizes::new(127, 896, &[(896, 16), (128, 8), (128, 24)]),
        SharedSizes::new(1027, 130, &[(520, 8), (33, 65)]),
    ];
    for sizes in sizes {
        is_accurate::<bf16>(sizes);
        is_accurate::<f16>(sizes);
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn one_projection_has_the_bits_of_the_layer_alone() {
    let shapes = [
        SharedSizes::new(5, 264, &[(136, 16)]),
        SharedSizes::new(513, 264, &[(1032, 72)]),
        SharedSizes::new(130, 33, &[(77, 3)]),
    ];
    for sizes in shapes {
        let inputs = SharedInputs::<bf16>::reals(sizes, 6);
        for device in cuda_paths() {
            let place = Place { device, placement: Placement::Aligned };
            let (shared, alone) =
                (shared_on_cuda(&place, &inputs), on_cuda(&place, &inputs.alone(0)));
            assert_same_bits(&format!("{sizes}: s"), &shared.s, &alone.s);
            assert_same_bits(&format!("{sizes}: h"), &shared.h[0], &alone.h);
            assert_same_bits(&format!("{sizes}: dx"), &shared.dx, &alone.dx);
            assert_same_bits(&format!("{sizes}: da"), &shared.da, &alone.da);
            assert_same_bits(&format!("{sizes}: db"), &shared.db[0], &alone.db);
        }
    }
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

const TWO: SharedSizes = SharedSizes::new(33, 40, &[(24, 8), (24, 16)]);

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
        self.b.each_ref().map(|b| Projection { w0: self.w0.view(), b: b.view(), scale: 1.0 })
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
    let weights = SharedWeights { a: two.a.view(), projections: &projections };
    let problem = TWO.problem(DType::Bf16);
    let plans =
        [ops::forward_shared_plan(&device, &problem), ops::backward_shared_plan(&device, &problem)];
    let mut workspace = Workspace::new(&device, &plans)?;

    let bytes = 33 * 24 * 2;
    let mut forward = |at: u64| -> Result<()> {
        // SAFETY: all lies within `memory`, which outlives the work that the test waits for.
        let h = |at| unsafe { TensorViewMut::from_raw(&device, at, [33, 24], DType::Bf16) };
        let h = &mut [h(start)?, h(start + at)?];
        ops::forward_shared(&device, &weights, two.x.view(), h, None, &mut workspace)
    };
    let overlap = Error::Overlap { output: "h[1]", other: "h[0]" };
    assert_eq!(forward(bytes - 2).unwrap_err(), overlap);
    assert_eq!(forward(0).unwrap_err(), overlap);
    forward(bytes)?;

    let mut da = Tensor::zeros(&device, [24, 40], DType::F32)?;
    let dh = [two.dh.view(), two.dh.view()];
    let mut backward = |at: u64| -> Result<()> {
        // SAFETY: as above.
        let db = |at, r| unsafe { TensorViewMut::from_raw(&device, at, [24, r], DType::F32) };
        let out = SharedBackwardOutputs {
            dx: None,
            da: da.view_mut(),
            db: &mut [db(start, 8)?, db(start + at, 16)?],
            accumulation: Accumulation::Overwrite,
        };
        let (x, s) = (two.x.view(), two.s.view());
        ops::backward_shared(&device, &weights, &dh, x, s, out, &mut workspace)
    };
    let overlap = Error::Overlap { output: "db[1]", other: "db[0]" };
    assert_eq!(backward(24 * 8 * 4 - 4).unwrap_err(), overlap);
    backward(24 * 8 * 4)?;
    device.synchronize()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_short_workspace_is_refused() -> Result<()> {
    let (device, two) = (cuda(), Two::new()?);
    let projections = two.projections();
    let weights = SharedWeights { a: two.a.view(), projections: &projections };
    let needed = ops::forward_shared_plan(&device, &TWO.problem(DType::Bf16)).scratch;
    let zeros = || Tensor::zeros(&device, [33, 24], DType::Bf16);
    let mut h = [zeros()?, zeros()?];
    let mut forward = |elements: usize| -> Result<()> {
        let mut workspace = Workspace::new(&device, &[])?;
        workspace.scratch = Tensor::zeros(&device, [elements], DType::F32)?;
        let h = &mut h.each_mut().map(Tensor::view_mut);
        ops::forward_shared(&device, &weights, two.x.view(), h, None, &mut workspace)
    };
    let short = |got| Error::Workspace { part: "scratch", needed, got };
    assert_eq!(forward(needed - 1).unwrap_err(), short(needed - 1));
    assert_eq!(forward(0).unwrap_err(), short(0));
    Ok(())
}
