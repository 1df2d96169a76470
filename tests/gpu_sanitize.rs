//! One pass over every kernel, small enough for `compute-sanitizer` and all its tools:
//!
//! ```text
//! cargo test --test gpu_sanitize --no-run          # prints the path of the executable
//! compute-sanitizer --tool memcheck EXECUTABLE --ignored
//! ```
//!
//! The shapes have several tiles along every dimension, more steps than the pipelines are deep,
//! several splits of T, and ranks for both rank tiles; some with 16-byte accesses and some without.
//! They reach every tile of H and dX, on Hopper of its own kernels too, every way to make S and
//! every way to make dA and dB, as a test of the plan asserts.

mod common;

use common::{Buffers, DeviceElement, Inputs, Place, Placement, Sizes, cuda_paths, on_cpu};
use half::{bf16, f16};
use lora_kernels::Device;

/// For the kernels of Hopper: T, d, k and r, and the SM limit.
const HOPPER: [([usize; 4], usize); 23] = include!("common/hopper_shapes.in");

/// The same for few tokens.
const FEW_TOKENS: [([usize; 4], usize); 24] = include!("common/hopper_decode_shapes.in");

/// And for short batches.
const SHORT: [([usize; 4], usize); 11] = include!("common/hopper_short_shapes.in");

/// For few tokens on every GPU.
const MMA_DECODE: [([usize; 4], usize); 8] = include!("common/mma_decode_shapes.in");

/// For the kernels of Hopper that serve groups: T, k, d and r of every projection, and the SM limit.
const HOPPER_GROUPS: [OfProjections; 27] = include!("common/hopper_shared_shapes.in");
type OfProjections = (usize, usize, &'static [(usize, usize)], usize);

/// For the kernels of every GPU.
const GENERIC: [Sizes; 5] = [
    Sizes::new(1100, 648, 264, 72),
    Sizes::new(1100, 648, 520, 16),
    Sizes::new(1057, 259, 645, 9),
    Sizes::group(1100, 264, &[(648, 72), (136, 16), (264, 8)]),
    Sizes::group(1057, 645, &[(259, 9), (65, 70), (33, 3), (40, 8)]),
];

/// The same, for every tile of H and dX: T, d, k and r, and the SM limit.
const TILES: [([usize; 4], usize); 9] = include!("common/mma_shapes.in");

fn check<E: DeviceElement>(sizes: Sizes, device: &Device, placement: Placement) {
    let inputs = Inputs::<E>::integers(sizes, 11);
    let context = format!("{sizes}, {device:?}, {placement:?}");
    let mut buffers = Buffers::new(&Place { device: device.clone(), placement }, &inputs);
    buffers.enqueue().expect("every operation enqueued");
    buffers.outputs().assert_same_values(&on_cpu(&inputs), &context);
}

fn on_hopper<E: DeviceElement>(shapes: &[([usize; 4], usize)]) {
    let [best, _] = cuda_paths();
    for &([t, d, k, r], sms) in shapes {
        check::<E>(Sizes::new(t, k, d, r), &best.with_sm_limit(sms), Placement::Aligned);
    }
}

fn groups_on_hopper<E: DeviceElement>() {
    let [best, _] = cuda_paths();
    for (t, k, projections, sms) in HOPPER_GROUPS {
        let sizes = Sizes::group(t, k, projections);
        check::<E>(sizes, &best.with_sm_limit(sms), Placement::Aligned);
    }
}

fn on_every_gpu<E: DeviceElement>() {
    let [_, generic] = cuda_paths();
    for sizes in GENERIC {
        for placement in [Placement::Aligned, Placement::Odd, Placement::Strided] {
            check::<E>(sizes, &generic, placement);
        }
    }
    for ([t, d, k, r], sms) in TILES {
        for placement in [Placement::Aligned, Placement::Odd] {
            check::<E>(Sizes::new(t, k, d, r), &generic.with_sm_limit(sms), placement);
        }
    }
}

fn few_tokens_on_every_gpu<E: DeviceElement>() {
    let [_, generic] = cuda_paths();
    for ([t, d, k, r], sms) in MMA_DECODE {
        for placement in [Placement::Aligned, Placement::Odd, Placement::Strided] {
            check::<E>(Sizes::new(t, k, d, r), &generic.with_sm_limit(sms), placement);
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn generic_few_tokens_bf16() {
    few_tokens_on_every_gpu::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn generic_few_tokens_f16() {
    few_tokens_on_every_gpu::<f16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn generic_bf16() {
    on_every_gpu::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn generic_f16() {
    on_every_gpu::<f16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn hopper_bf16() {
    on_hopper::<bf16>(&HOPPER);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn hopper_f16() {
    on_hopper::<f16>(&HOPPER);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn few_tokens_bf16() {
    on_hopper::<bf16>(&FEW_TOKENS);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn few_tokens_f16() {
    on_hopper::<f16>(&FEW_TOKENS);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn short_bf16() {
    on_hopper::<bf16>(&SHORT);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn short_f16() {
    on_hopper::<f16>(&SHORT);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn hopper_groups_bf16() {
    groups_on_hopper::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn hopper_groups_f16() {
    groups_on_hopper::<f16>();
}
