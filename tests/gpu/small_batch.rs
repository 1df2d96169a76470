//! Few tokens and short batches on the best path: every tile, the borders between tiles and paths,
//! and that a token's output has the same bits in every batch.

use crate::common::run::Outputs;
use crate::common::{Inputs, Place, Sizes, assert_same_bits};
use crate::cuda::cuda_paths;
use crate::device::{few_sms, forward_path, on_cuda};
use crate::oracle::{Expect, check_samples, on_cpu};
use crate::shapes::{self, HOPPER_DECODE, HOPPER_SHORT};
use half::{bf16, f16};
use lora_kernels::Device;
use lora_kernels::ops::{Backward, Path};

/// Fails unless every operation is exact on these layers.
fn check_exact(shapes: &[shapes::Layer]) {
    let [best, _] = cuda_paths();
    for &([t, d, k, r], sms) in shapes {
        let inputs = Inputs::<f16>::integers(Sizes::new(t, k, d, r), 5);
        let outputs = on_cuda(&Place::aligned(&best.with_sm_limit(sms)), &inputs);
        outputs.assert_same_values(&on_cpu(&inputs), &format!("{} on {sms}", inputs.sizes));
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn decode_shares_rows_out_exactly_in_every_way() {
    check_exact(HOPPER_DECODE);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn short_is_exact_in_every_tile() {
    check_exact(HOPPER_SHORT);
}

/// Fails unless layers of two widths are exact for these numbers of tokens.
fn check_tokens(tokens: impl Iterator<Item = usize>, devices: &[Device]) {
    for t in tokens {
        let r = [8, 16, 72][t % 3];
        for sizes in [Sizes::new(t, 200, 328, r), Sizes::new(t, 72, 4296, r)] {
            let inputs = Inputs::<bf16>::integers(sizes, t as u64);
            let reference = on_cpu(&inputs);
            for device in devices {
                let path = forward_path(device, &inputs.problem());
                let outputs = on_cuda(&Place::aligned(device), &inputs);
                outputs.assert_same_values(&reference, &format!("{sizes}, {path}"));
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_number_of_few_tokens_is_exact() {
    let devices: Vec<_> = cuda_paths().into_iter().chain(few_sms()).collect();
    check_tokens((1..=70).chain([127, 128, 129]), &devices);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn the_borders_of_tiles_and_paths_are_exact() {
    let [best, _] = cuda_paths();
    let borders = [128, 192, 256, 384, 512, 1024];
    check_tokens(borders.into_iter().flat_map(|t| [t - 1, t, t + 1]), &[best]);
}

/// Fails unless tokens have the same H, S and base H, bit for bit, in smaller batches than this
/// one, all of which are served by the same path of Hopper. mma.rs checks those of other GPUs.
fn check_batches(sizes: Sizes, smaller: &[usize], path: Path) {
    let [best, _] = cuda_paths();
    if !best.profile().is_some_and(|profile| profile.hopper()) {
        return;
    }
    let run = |inputs: &Inputs<bf16>| {
        assert_eq!(forward_path(&best, &inputs.problem()), path, "{}", inputs.sizes);
        on_cuda(&Place::aligned(&best), inputs)
    };
    let all = Inputs::reals(sizes, 9);
    let want = run(&all);
    for &t in smaller {
        let inputs = all.first_tokens(t);
        let Outputs { h, s, base_h, .. } = run(&inputs);
        let context = |output: &str| format!("{output} of {} of {sizes}", inputs.sizes);
        assert_same_bits(&context("s"), &s, &want.s[..s.len()]);
        for (h, want) in h.iter().zip(&want.h) {
            assert_same_bits(&context("h"), h, &want[..h.len()]);
        }
        for (h, want) in base_h.iter().zip(&want.base_h) {
            assert_same_bits(&context("h of base"), h, &want[..h.len()]);
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_token_has_the_same_bits_in_every_decode_batch() {
    let tokens = [1, 2, 3, 8, 9, 16, 17, 31, 32, 33, 64];
    // S of rank 128 and more than 32 tokens takes more clusters than H leaves.
    let many_ranks = Sizes::new(64, 520, 4096, 128);
    for sizes in [Sizes::new(64, 1000, 1032, 16), Sizes::new(64, 520, 8200, 72), many_ranks] {
        check_batches(sizes, &tokens, Path::HopperDecode);
    }
    // Where there are more tiles than SMs, more tokens are served by the same path.
    check_batches(Sizes::new(128, 520, 28_680, 72), &[1, 33, 64, 65], Path::HopperDecode);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_token_has_the_same_bits_in_every_short_batch() {
    let tokens = [65, 66, 128, 129, 200, 256, 257, 512];
    for sizes in [Sizes::new(1000, 1000, 1032, 16), Sizes::new(513, 520, 4104, 72)] {
        check_batches(sizes, &tokens, Path::HopperShort);
    }
}

/// Fails unless these layers are exact on integers, and the second one accurate on reals.
fn check_large(layers: &[Sizes]) {
    let [best, _] = cuda_paths();
    let place = Place::aligned(&best);
    for &sizes in layers {
        let inputs = Inputs::<bf16>::integers(sizes, 3);
        check_samples(&inputs, &on_cuda(&place, &inputs), Expect::Exact);
    }
    let inputs = Inputs::<bf16>::reals(layers[1], 4);
    check_samples(&inputs, &on_cuda(&place, &inputs), Expect::Bounded);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layers_of_few_tokens_are_exact_and_accurate() {
    check_large(&[
        Sizes::new(1, 4096, 4096, 16),
        Sizes::new(33, 1024, 14_336, 64),
        Sizes::new(16, 14_336, 1032, 16),
        Sizes::new(128, 512, 28_672, 8),
    ]);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layers_of_short_batches_are_exact_and_accurate() {
    check_large(&[
        Sizes::new(128, 4096, 4096, 16),
        Sizes::new(256, 14_336, 4096, 64),
        Sizes::new(500, 4096, 4096, 64),
        Sizes::new(200, 1024, 14_336, 256),
        Sizes::new(1000, 4096, 1024, 16),
    ]);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn paths_follow_the_number_of_tokens() {
    let [best, generic] = cuda_paths();
    let paths = |device: &Device| {
        [1, 64, 65, 1024, 1025].map(|t| {
            let problem = Inputs::<bf16>::integers(Sizes::new(t, 64, 64, 8), 0).problem();
            let backward = Backward::new(device, &problem).expect("a backward pass");
            [forward_path(device, &problem), backward.path()]
        })
    };
    if best.profile().is_some_and(|profile| profile.hopper()) {
        let [few, short, more] = [Path::HopperDecode, Path::HopperShort, Path::Hopper];
        let wanted = [[few; 2], [few, short], [short; 2], [short; 2], [more; 2]];
        assert_eq!(paths(&best), wanted);
    }
    let [few, short] = [Path::MmaDecode, Path::MmaShort];
    assert_eq!(paths(&generic), [few, short, short, short, short].map(|path| [path; 2]));
}
