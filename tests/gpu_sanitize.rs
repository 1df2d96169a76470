//! One pass over every kernel, small enough for `compute-sanitizer` and all its tools:
//!
//! ```text
//! cargo test --test gpu_sanitize --no-run          # prints the path of the executable
//! compute-sanitizer --tool memcheck EXECUTABLE --ignored
//! ```
//!
//! The shapes have several tiles along every dimension, more steps than the pipelines are deep,
//! several splits of T, and ranks for both rank tiles; each with and without 16-byte accesses.

mod common;

use common::{cuda_paths, on_cpu, Buffers, DeviceElement, Inputs, Place, Placement, Sizes};
use half::{bf16, f16};

fn every_kernel<E: DeviceElement>() {
    let aligned = [Sizes::new(1100, 648, 264, 72), Sizes::new(1100, 648, 520, 16)];
    for sizes in aligned.into_iter().chain([Sizes::new(1057, 259, 645, 9)]) {
        let inputs = Inputs::<E>::integers(sizes, 11);
        let reference = on_cpu(&inputs);
        let [best, generic] = cuda_paths();
        let odd = (generic.clone(), Placement::Odd);
        for (device, placement) in [(best, Placement::Aligned), (generic, Placement::Aligned), odd]
        {
            let context = format!("{sizes}, {device:?}, {placement:?}");
            let mut buffers = Buffers::new(&Place { device, placement }, &inputs);
            buffers.enqueue().expect("every operation enqueued");
            buffers.outputs().assert_same_values(&reference, &context);
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_kernel_bf16() {
    every_kernel::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_kernel_f16() {
    every_kernel::<f16>();
}
