//! Few tokens: every number of them, the border to short batches, and that a token's output has the
//! same bits in every batch.

mod common;

use common::{Expect, Inputs, Place, Sizes, forward_path};
use common::{check_exact, check_samples, check_tokens, cuda_paths, few_sms, on_cpu, on_cuda};
use half::bf16;
use lora_kernels::ops::Path;

/// T, d, k and r, and the SM limit.
const SHAPES: [([usize; 4], usize); 24] = include!("common/hopper_decode_shapes.in");

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_way_to_share_rows_out_is_exact() {
    let [best, _] = cuda_paths();
    check_exact(&best, &SHAPES);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_number_of_tokens_is_exact() {
    for t in (1..=70).chain([127, 128, 129]) {
        let r = [8, 16, 72][t % 3];
        for sizes in [Sizes::new(t, 200, 328, r), Sizes::new(t, 72, 4296, r)] {
            let inputs = Inputs::<bf16>::integers(sizes, t as u64);
            let reference = on_cpu(&inputs);
            for device in cuda_paths().into_iter().chain(few_sms()) {
                let path = forward_path(&device, &inputs.problem());
                let outputs = on_cuda(&Place::aligned(&device), &inputs);
                outputs.assert_same_values(&reference, &format!("{sizes}, {path}"));
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_token_has_the_same_bits_in_every_batch() {
    let [best, _] = cuda_paths();
    let tokens = [1, 2, 3, 8, 9, 16, 17, 31, 32, 33, 64];
    // S of rank 128 and more than 32 tokens takes more clusters than H leaves.
    let many_ranks = Sizes::new(64, 520, 4096, 128);
    for sizes in [Sizes::new(64, 1000, 1032, 16), Sizes::new(64, 520, 8200, 72), many_ranks] {
        check_tokens(&best, sizes, &tokens, Path::HopperDecode);
    }
    // Where there are more tiles than SMs, more tokens are served by the same path.
    check_tokens(&best, Sizes::new(128, 520, 28_680, 72), &[1, 33, 64, 65], Path::HopperDecode);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layers_are_exact_and_accurate() {
    let [best, _] = cuda_paths();
    let sizes = [
        Sizes::new(1, 4096, 4096, 16),
        Sizes::new(33, 1024, 14_336, 64),
        Sizes::new(16, 14_336, 1032, 16),
        Sizes::new(128, 512, 28_672, 8),
    ];
    for sizes in sizes {
        let inputs = Inputs::<bf16>::integers(sizes, 3);
        check_samples(&inputs, &on_cuda(&Place::aligned(&best), &inputs), Expect::Exact);
    }
    let inputs = Inputs::<bf16>::reals(sizes[1], 4);
    check_samples(&inputs, &on_cuda(&Place::aligned(&best), &inputs), Expect::Bounded);
}
