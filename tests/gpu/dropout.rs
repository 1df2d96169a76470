//! Dropout on a GPU against the CPU reference: the same mask, and its place in every formula.
//!
//! With p a half and integers, all sums are exact (see `Inputs::integers`): a single element that
//! one drops and the other keeps would show.

use crate::accuracy::{check_norms, widened};
use crate::common::{DeviceElement, Inputs, Place, Placement, Sizes};
use crate::cuda::{cuda, cuda_paths};
use crate::device::{few_sms, on_cuda};
use crate::oracle::on_cpu;
use crate::shapes::{HOPPER, HOPPER_GROUPS};
use half::{bf16, f16};

/// Sizes around the borders of tiles, steps and blocks of 32 columns, and unaligned rows.
const EDGES: [Sizes; 14] = [
    Sizes::new(1, 1, 1, 1),
    Sizes::new(3, 33, 77, 3),
    Sizes::new(33, 31, 129, 65),
    Sizes::new(128, 128, 256, 16),
    Sizes::new(129, 127, 257, 17),
    Sizes::new(130, 264, 72, 200),
    Sizes::new(257, 96, 130, 129),
    Sizes::new(1025, 130, 33, 72),
    Sizes::new(2049, 136, 264, 24),
    Sizes::new(257, 64, 1032, 72),
    Sizes::new(385, 328, 2056, 128),
    Sizes::new(1281, 712, 1288, 8),
    Sizes::new(2305, 520, 776, 40),
    Sizes::group(257, 264, &[(648, 72), (136, 16), (264, 8)]),
];

/// An offset whose rows carry into the upper word.
const OFFSET: u64 = (1 << 33) - 100;

fn check<E: DeviceElement>(inputs: &Inputs<E>, places: &[Place]) {
    let reference = on_cpu(inputs);
    for place in places {
        let context = format!("{}, {}, {:?}", inputs.sizes, E::DTYPE, place.placement);
        on_cuda(place, inputs).assert_same_values(&reference, &context);
    }
}

fn edges<E: DeviceElement>() {
    for (seed, &sizes) in EDGES.iter().enumerate() {
        let inputs =
            Inputs::<E>::integers(sizes, seed as u64).dropped(0.5, 7 + seed as u64, OFFSET);
        let of_paths = cuda_paths().into_iter().flat_map(|device| {
            Placement::ALL.map(|placement| Place { device: device.clone(), placement })
        });
        let of_few = few_sms().map(|device| Place::aligned(&device));
        check(&inputs, &of_paths.chain(of_few).collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn edges_bf16() {
    edges::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn edges_f16() {
    edges::<f16>();
}

/// Every tile, every way to make S and every way to make dA and dB.
#[test]
#[ignore = "needs a CUDA GPU"]
fn all_schedules() {
    let place = |sms| [Place::aligned(&cuda().with_sm_limit(sms))];
    for &([t, d, k, r], sms) in HOPPER {
        let inputs = Inputs::<bf16>::integers(Sizes::new(t, k, d, r), 11).dropped(0.5, 3, 40);
        check(&inputs, &place(sms));
    }
    for &(t, k, projections, sms) in HOPPER_GROUPS {
        let inputs = Inputs::<bf16>::integers(Sizes::group(t, k, projections), 11);
        check(&inputs.dropped(0.5, 3, 40), &place(sms));
    }
}

fn is_accurate<E: DeviceElement>() {
    for (seed, p) in [0.05, 0.1, 0.75].into_iter().enumerate() {
        for sizes in [Sizes::new(1024, 1024, 1024, 16), Sizes::new(640, 896, 4864, 64)] {
            let inputs = Inputs::<E>::reals(sizes, seed as u64).dropped(p, 1 << 40, OFFSET);
            let reference = on_cpu(&widened(&inputs));
            for device in cuda_paths() {
                check_norms(sizes, &on_cuda(&Place::aligned(&device), &inputs), &reference);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn is_accurate_bf16() {
    is_accurate::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn is_accurate_f16() {
    is_accurate::<f16>();
}
