//! Few tokens and short batches by the `mma.sync` kernels of every GPU: every instance, aligned and
//! not, every number of tokens, ranks and placements, and that a token's output has the same bits
//! in every batch of a path.

use crate::common::run::Outputs;
use crate::common::{DeviceElement, Inputs, Place, Placement, Sizes, assert_same_bits};
use crate::cuda::cuda;
use crate::device::{forward_path, on_cuda};
use crate::oracle::{Expect, check_samples, on_cpu};
use crate::shapes::{MMA_DECODE, MMA_WHOLE_S};
use half::{bf16, f16};
use lora_kernels::ops::{Backward, BaseForward, BaseInputGrad, Path};
use lora_kernels::{DType, Device};

/// Few tokens, at the borders of tiles.
const TOKENS: [usize; 7] = [1, 2, 8, 9, 16, 17, 32];

/// Tokens of short batches, the same.
const SHORT: [usize; 8] = [33, 64, 65, 128, 129, 257, 640, 1000];

/// With few SMs, and as much shared memory as a small card has.
fn devices() -> [Device; 3] {
    let generic = cuda().generic();
    [generic.clone(), generic.with_sm_limit(8), generic.with_shared_limit(99 << 10)]
}

fn is_exact<E: DeviceElement>(inputs: &Inputs<E>, device: &Device, placements: &[Placement]) {
    let (sizes, sms) = (inputs.sizes, device.profile().expect("a CUDA device").sms());
    let problem = inputs.problem();
    let is_decode = forward_path(device, &problem) == Path::MmaDecode;
    let ranks = problem.projections().iter().all(|(_, r)| r.is_multiple_of(8));
    assert_eq!(is_decode, problem.t() <= 32 && ranks, "{sizes}");
    let reference = on_cpu(inputs);
    for &placement in placements {
        let outputs = on_cuda(&Place { device: device.clone(), placement }, inputs);
        let context = format!("{sizes}, {}, {placement:?}, {sms} SMs", E::DTYPE);
        outputs.assert_same_values(&reference, &context);
    }
}

fn every_instance_is_exact<E: DeviceElement>() {
    for &([t, d, k, r], sms) in MMA_DECODE {
        let inputs = Inputs::<E>::integers(Sizes::new(t, k, d, r), 5);
        is_exact(&inputs, &cuda().generic().with_sm_limit(sms), &Placement::ALL);
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_instance_is_exact_bf16() {
    every_instance_is_exact::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_instance_is_exact_f16() {
    every_instance_is_exact::<f16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn every_rank_and_number_of_tokens_is_exact() {
    let placements = [Placement::Aligned, Placement::Odd, Placement::OddWeights];
    for r in [1, 8, 16, 24, 64, 65, 256] {
        for t in TOKENS.into_iter().chain(SHORT) {
            // Rows of whole pieces of 16 bytes, and of none.
            for [k, d] in [[712, 328], [517, 203]] {
                let inputs = Inputs::<bf16>::integers(Sizes::new(t, k, d, r), (t + r) as u64);
                for device in devices() {
                    is_exact(&inputs, &device, &placements);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn groups_are_exact() {
    for t in TOKENS.into_iter().chain(SHORT) {
        for of in [&[(328, 16), (136, 8), (72, 24)][..], &[(203, 9), (64, 64), (131, 256), (8, 8)]]
        {
            let inputs = Inputs::<bf16>::integers(Sizes::group(t, 712, of), t as u64);
            for device in devices() {
                is_exact(&inputs, &device, &[Placement::Aligned, Placement::Odd]);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn whole_s_is_exact() {
    for &(t, k, of, sms) in MMA_WHOLE_S {
        let inputs = Inputs::<f16>::integers(Sizes::group(t, k, of), 7);
        is_exact(&inputs, &cuda().generic().with_sm_limit(sms), &Placement::ALL);
    }
}

/// Whatever T, the tile and the SMs are. Of short batches, also whatever the alignment is, and
/// whether S is whole, as of aligned rows beside 4096 of W0 on 132 SMs; few tokens of unaligned rows
/// have other kernels.
#[test]
#[ignore = "needs a CUDA GPU"]
fn a_token_has_the_same_bits_in_every_batch() {
    let few = |k, d, r| (Sizes::new(32, k, d, r), &TOKENS[..]);
    let short = |t, k, d, r| (Sizes::new(t, k, d, r), &SHORT[..]);
    for (sizes, tokens) in [
        few(1032, 1000, 16),
        few(4104, 520, 256),
        few(1031, 1001, 16),
        short(1000, 1032, 1000, 16),
        short(1000, 1544, 520, 72),
        short(640, 1031, 1001, 16),
        short(512, 2568, 4096, 16),
    ] {
        let [most, ..] = sizes.single();
        let all = Inputs::<bf16>::reals(sizes, 9);
        let want = [Placement::Aligned, Placement::Odd].map(|placement| {
            let placement = if most > 32 { Placement::Odd } else { placement };
            on_cuda(&Place { device: cuda().generic(), placement }, &all)
        });
        for &t in tokens.iter().filter(|&&t| t <= most) {
            let inputs = all.first_tokens(t);
            // On few SMs, batches of this length are in the widest tiles, another path.
            let devices = if t > 32 { vec![cuda().generic()] } else { devices().to_vec() };
            for device in devices {
                let path = if t > 32 { Path::MmaShort } else { Path::MmaDecode };
                assert_eq!(forward_path(&device, &inputs.problem()), path, "{t} of {sizes}");
                for (placement, want) in [Placement::Aligned, Placement::Odd].iter().zip(&want) {
                    let place = Place { device: device.clone(), placement: *placement };
                    let Outputs { h, s, dx, .. } = on_cuda(&place, &inputs);
                    let context =
                        |what: &str| format!("{what} of {t} tokens of {sizes}, {placement:?}");
                    assert_same_bits(&context("s"), &s, &want.s[..s.len()]);
                    assert_same_bits(&context("h"), &h[0], &want.h[0][..h[0].len()]);
                    assert_same_bits(&context("dx"), &dx, &want.dx[..dx.len()]);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn large_layers_are_exact_and_accurate() {
    let sizes = [
        Sizes::new(1, 4096, 4096, 16),
        Sizes::new(31, 1024, 14_336, 64),
        Sizes::new(16, 14_336, 1032, 16),
        Sizes::new(64, 4096, 4096, 64),
        Sizes::new(256, 4096, 4096, 16),
        Sizes::new(200, 14_336, 1032, 16),
    ];
    let place = Place::aligned(&cuda().generic());
    for sizes in sizes {
        let inputs = Inputs::<bf16>::integers(sizes, 3);
        check_samples(&inputs, &on_cuda(&place, &inputs), Expect::Exact);
    }
    let inputs = Inputs::<f16>::reals(sizes[1], 4);
    check_samples(&inputs, &on_cuda(&place, &inputs), Expect::Bounded);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn paths_follow_the_number_of_tokens() {
    let device = cuda().generic();
    let paths = |t, of: &[(usize, usize)]| {
        let problem = Inputs::<bf16>::integers(Sizes::group(t, 64, of), 0).problem();
        let backward = Backward::new(&device, &problem).expect("a backward pass");
        [forward_path(&device, &problem), backward.path()]
    };
    let [few, short, long] = [Path::MmaDecode, Path::MmaShort, Path::Mma].map(|path| [path; 2]);
    for (layer, few) in [((64, 8), few), ((33, 3), short)] {
        let by_t = [1, 32, 33, 2048, 2049].map(|t| paths(t, &[layer]));
        assert_eq!(by_t, [few, few, short, short, long]);
    }
    let [few_backward, short_backward] = [32, 33].map(|t| paths(t, &[(64, 8); 2]));
    assert_eq!([few_backward, short_backward], [[few[0], short[0]], short]);
    let forward = BaseForward::new(&device, 64, [64, 64], DType::Bf16).expect("the frozen layer");
    let input_grad = BaseInputGrad::new(&device, 64, [64, 64], DType::Bf16).expect("its dX");
    assert_eq!([forward.path(), input_grad.path()], short);
}
