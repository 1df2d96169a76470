//! One pass over every kernel, small enough for `compute-sanitizer` and all its tools:
//!
//! ```text
//! cargo test --test gpu --no-run          # prints the path of the executable
//! compute-sanitizer --tool memcheck EXECUTABLE sanitize:: --ignored --test-threads 1
//! compute-sanitizer --tool racecheck EXECUTABLE sanitize::hopper_f16 --exact --ignored
//! ```
//!
//! The shapes have several tiles along every dimension, more steps than the pipelines are deep,
//! several splits of T, and ranks for both rank tiles; some with 16-byte accesses and some without.
//! They reach every tile of H and dX, on Hopper of its own kernels too, every way to make S and
//! every way to make dA and dB, as a test of the plan asserts.

use crate::common::{Buffers, DeviceElement, Inputs, Place, Placement, Sizes};
use crate::cuda::cuda_paths;
use crate::oracle::on_cpu;
use crate::shapes::{self, HOPPER, HOPPER_DECODE, HOPPER_GROUPS, HOPPER_SHORT};
use crate::shapes::{MMA, MMA_DECODE, MMA_WHOLE_S};
use half::{bf16, f16};
use lora_kernels::Device;

/// For the kernels of every GPU.
const GENERIC: [Sizes; 5] = [
    Sizes::new(1100, 648, 264, 72),
    Sizes::new(1100, 648, 520, 16),
    Sizes::new(1057, 259, 645, 9),
    Sizes::group(1100, 264, &[(648, 72), (136, 16), (264, 8)]),
    Sizes::group(1057, 645, &[(259, 9), (65, 70), (33, 3), (40, 8)]),
];

fn check<E: DeviceElement>(sizes: Sizes, device: &Device, placement: Placement) {
    check_inputs(&Inputs::<E>::integers(sizes, 11), device, placement);
}

fn check_inputs<E: DeviceElement>(inputs: &Inputs<E>, device: &Device, placement: Placement) {
    let context = format!("{}, {device:?}, {placement:?}", inputs.sizes);
    let mut buffers = Buffers::new(&Place { device: device.clone(), placement }, inputs);
    buffers.enqueue().expect("every operation enqueued");
    buffers.outputs().assert_same_values(&on_cpu(inputs), &context);
}

fn on_hopper<E: DeviceElement>(shapes: &[shapes::Layer]) {
    let [best, _] = cuda_paths();
    for &([t, d, k, r], sms) in shapes {
        check::<E>(Sizes::new(t, k, d, r), &best.with_sm_limit(sms), Placement::Aligned);
    }
}

fn groups_on_hopper<E: DeviceElement>() {
    let [best, _] = cuda_paths();
    for &(t, k, projections, sms) in HOPPER_GROUPS {
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
}

fn every_tile_of_every_gpu<E: DeviceElement>() {
    let [_, generic] = cuda_paths();
    for &([t, d, k, r], sms) in MMA {
        for placement in [Placement::Aligned, Placement::Odd, Placement::OddWeights] {
            check::<E>(Sizes::new(t, k, d, r), &generic.with_sm_limit(sms), placement);
        }
    }
    for &(t, k, projections, sms) in MMA_WHOLE_S {
        let sizes = Sizes::group(t, k, projections);
        check::<E>(sizes, &generic.with_sm_limit(sms), Placement::Aligned);
    }
}

/// With dropout: all of Hopper's kernels that have it, and those of every GPU.
fn dropout<E: DeviceElement>() {
    let [best, generic] = cuda_paths();
    let run = |sizes: Sizes, device: &Device, placement| {
        let inputs = Inputs::<E>::integers(sizes, 11).dropped(0.5, 5, 99);
        check_inputs(&inputs, device, placement);
    };
    for &([t, d, k, r], sms) in HOPPER.iter().step_by(2) {
        run(Sizes::new(t, k, d, r), &best.with_sm_limit(sms), Placement::Aligned);
    }
    for &(t, k, projections, sms) in HOPPER_GROUPS.iter().step_by(4) {
        run(Sizes::group(t, k, projections), &best.with_sm_limit(sms), Placement::Aligned);
    }
    for sizes in GENERIC {
        for placement in [Placement::Aligned, Placement::Odd] {
            run(sizes, &generic, placement);
        }
    }
}

fn few_tokens_on_every_gpu<E: DeviceElement>() {
    let [_, generic] = cuda_paths();
    for &([t, d, k, r], sms) in MMA_DECODE {
        for placement in [Placement::Aligned, Placement::Odd, Placement::Strided] {
            check::<E>(Sizes::new(t, k, d, r), &generic.with_sm_limit(sms), placement);
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn dropout_bf16() {
    dropout::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn dropout_f16() {
    dropout::<f16>();
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
fn generic_tiles_bf16() {
    every_tile_of_every_gpu::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn generic_tiles_f16() {
    every_tile_of_every_gpu::<f16>();
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
    on_hopper::<bf16>(HOPPER);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn hopper_f16() {
    on_hopper::<f16>(HOPPER);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn few_tokens_bf16() {
    on_hopper::<bf16>(HOPPER_DECODE);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn few_tokens_f16() {
    on_hopper::<f16>(HOPPER_DECODE);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn short_bf16() {
    on_hopper::<bf16>(HOPPER_SHORT);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn short_f16() {
    on_hopper::<f16>(HOPPER_SHORT);
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
