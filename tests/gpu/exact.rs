//! Every operation on a GPU against the CPU reference, number for number.
//!
//! The inputs are integers whose sums f32 holds exactly (see `Inputs::integers`), so there is
//! nothing to tolerate: whatever the order of a sum, h, dx and the merged weight are the
//! reference's own values, rounded once as there, and S, dA and dB are exact.

use crate::common::{DeviceElement, Inputs, Place, Placement, Sizes};
use crate::cuda::cuda_paths;
use crate::device::{few_sms, forward_path, on_cuda};
use crate::oracle::{Expect, check_samples, on_cpu};
use half::{bf16, f16};

/// Sizes around the borders of tiles (16, 32, 64, 128, 256), of steps along an inner dimension
/// (32, 64, 128 and their fourfold, the depth of the pipelines), of splits of T (512), and rows
/// that are no multiple of 16 bytes.
const EDGES: &[Sizes] = &[
    Sizes::new(1, 1, 1, 1),
    Sizes::new(1, 8, 1, 3),
    Sizes::new(3, 1, 40, 8),
    Sizes::new(3, 33, 77, 3),
    Sizes::new(2, 7, 9, 256),
    Sizes::new(31, 32, 33, 24),
    Sizes::new(33, 31, 129, 65),
    Sizes::new(127, 64, 40, 8),
    Sizes::new(128, 128, 256, 16),
    Sizes::new(129, 127, 257, 17),
    Sizes::new(127, 129, 255, 15),
    Sizes::new(130, 264, 72, 200),
    Sizes::new(64, 8, 1, 256),
    Sizes::new(65, 512, 520, 64),
    Sizes::new(63, 520, 512, 63),
    Sizes::new(257, 96, 130, 129),
    Sizes::new(511, 40, 64, 1),
    Sizes::new(513, 72, 136, 16),
    Sizes::new(1025, 130, 33, 72),
    Sizes::new(2049, 136, 264, 24),
    Sizes::new(8191, 8, 40, 3),
    Sizes::new(8191, 64, 1, 16),
    // Few tokens whose k is a single step, and two.
    Sizes::new(3, 64, 136, 16),
    Sizes::new(8, 8, 8200, 72),
    Sizes::new(5, 72, 136, 16),
    // Aligned rows around tiles of 128×256, clusters and groups of them, and several steps of r.
    Sizes::new(255, 8, 8, 8),
    Sizes::new(257, 64, 1032, 72),
    Sizes::new(385, 328, 2056, 128),
    Sizes::new(2305, 520, 776, 40),
    Sizes::new(2305, 520, 2056, 16),
    Sizes::new(1281, 712, 1288, 8),
    Sizes::new(257, 136, 2056, 16),
];

/// Layers of real models with few tokens, and others with sizes of that order.
const LAYERS: &[Sizes] = &[
    Sizes::new(1, 896, 896, 8),
    Sizes::new(1, 4096, 1024, 16),
    Sizes::new(3, 4096, 40, 64),
    Sizes::new(3, 4096, 4096, 16),
    Sizes::new(127, 896, 128, 8),
    Sizes::new(127, 896, 1024, 256),
    Sizes::new(127, 4864, 896, 64),
    Sizes::new(127, 896, 4864, 24),
    Sizes::new(640, 896, 896, 16),
    Sizes::new(8191, 896, 40, 8),
];

fn matches_reference<E: DeviceElement>(shapes: &[Sizes], placements: &[Placement]) {
    for (seed, &sizes) in shapes.iter().enumerate() {
        let inputs = Inputs::<E>::integers(sizes, seed as u64);
        let reference = on_cpu(&inputs);
        for device in cuda_paths() {
            let path = forward_path(&device, &inputs.problem());
            for &placement in placements {
                let outputs = on_cuda(&Place { device: device.clone(), placement }, &inputs);
                let context = format!("{sizes}, {}, {path}, {placement:?}", E::DTYPE);
                outputs.assert_same_values(&reference, &context);
            }
        }
        for device in few_sms() {
            let sms = device.profile().expect("a CUDA device").sms();
            let outputs = on_cuda(&Place { device, placement: Placement::Aligned }, &inputs);
            outputs.assert_same_values(&reference, &format!("{sizes}, {}, {sms} SMs", E::DTYPE));
        }
    }
}

fn matches_samples<E: DeviceElement>(sizes: Sizes, placement: Placement) {
    let inputs = Inputs::<E>::integers(sizes, 7);
    for device in cuda_paths() {
        let outputs = on_cuda(&Place { device, placement }, &inputs);
        check_samples(&inputs, &outputs, Expect::Exact);
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn edges_bf16() {
    matches_reference::<bf16>(EDGES, &Placement::ALL);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn edges_f16() {
    matches_reference::<f16>(EDGES, &Placement::ALL);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layers_bf16() {
    matches_reference::<bf16>(LAYERS, &[Placement::Aligned, Placement::Odd]);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layers_f16() {
    matches_reference::<f16>(LAYERS, &[Placement::Aligned, Placement::Odd]);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layer_bf16() {
    matches_samples::<bf16>(Sizes::new(8191, 4096, 1024, 64), Placement::Aligned);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layer_f16() {
    matches_samples::<f16>(Sizes::new(8191, 4096, 1024, 16), Placement::Aligned);
}

/// On Hopper, between two and three waves of tiles of H and of dX, so that the tail wave is split
/// along K; a test of the plan asserts that.
#[test]
#[ignore = "needs a CUDA GPU"]
fn stream_k_on_all_sms() {
    for r in [16, 72] {
        matches_samples::<bf16>(Sizes::new(4095, 4096, 2176, r), Placement::Aligned);
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layer_without_vectors() {
    matches_samples::<bf16>(Sizes::new(4095, 4095, 1023, 200), Placement::Aligned);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn long_sums_over_tokens() {
    // Rows of S that are not aligned, for every GPU, and that are, for Hopper.
    let sizes = [4, 8].map(|r| Sizes::new(262_144, 64, 40, r));
    matches_reference::<bf16>(&sizes, &[Placement::Aligned]);
}
