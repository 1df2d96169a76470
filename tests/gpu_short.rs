//! Short batches: every tile, the borders between paths, and that a token's output has the same bits
//! in every batch.

mod common;

use common::{Expect, Inputs, Place, Sizes, forward_path};
use common::{check_exact, check_samples, check_tokens, cuda_paths, on_cpu, on_cuda};
use half::bf16;
use lora_kernels::Device;
use lora_kernels::ops::{Backward, Path};

/// T, d, k and r, and the SM limit.
const SHAPES: [([usize; 4], usize); 11] = include!("common/hopper_short_shapes.in");

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_tile_is_exact() {
    let [best, _] = cuda_paths();
    check_exact(&best, &SHAPES);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn the_borders_of_tiles_and_paths_are_exact() {
    let [best, _] = cuda_paths();
    let borders = [128, 192, 256, 384, 512, 1024];
    for t in borders.into_iter().flat_map(|t| [t - 1, t, t + 1]) {
        let r = [8, 16, 72][t % 3];
        for sizes in [Sizes::new(t, 200, 328, r), Sizes::new(t, 72, 4296, r)] {
            let inputs = Inputs::<bf16>::integers(sizes, t as u64);
            let path = forward_path(&best, &inputs.problem());
            let outputs = on_cuda(&Place::aligned(&best), &inputs);
            outputs.assert_same_values(&on_cpu(&inputs), &format!("{sizes}, {path}"));
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_token_has_the_same_bits_in_every_batch() {
    let [best, _] = cuda_paths();
    let tokens = [65, 66, 128, 129, 200, 256, 257, 512];
    for sizes in [Sizes::new(1000, 1000, 1032, 16), Sizes::new(513, 520, 4104, 72)] {
        check_tokens(&best, sizes, &tokens, Path::HopperShort);
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layers_are_exact_and_accurate() {
    let [best, _] = cuda_paths();
    let sizes = [
        Sizes::new(128, 4096, 4096, 16),
        Sizes::new(256, 14_336, 4096, 64),
        Sizes::new(500, 4096, 4096, 64),
        Sizes::new(200, 1024, 14_336, 256),
        Sizes::new(1000, 4096, 1024, 16),
    ];
    for sizes in sizes {
        let inputs = Inputs::<bf16>::integers(sizes, 3);
        check_samples(&inputs, &on_cuda(&Place::aligned(&best), &inputs), Expect::Exact);
    }
    let inputs = Inputs::<bf16>::reals(sizes[1], 4);
    check_samples(&inputs, &on_cuda(&Place::aligned(&best), &inputs), Expect::Bounded);
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
