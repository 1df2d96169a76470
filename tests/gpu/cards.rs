//! Plans for other cards, run on the present GPU: the kernels that serve every GPU, in tiles for
//! each card's SMs and tensor cores, within its shared memory. The tests check numbers, not speed.

use crate::card_shapes::CARDS;
use crate::common::{DeviceElement, Inputs, Place, Placement, Sizes};
use crate::cuda::cuda;
use crate::device::{forward_path, on_cuda};
use crate::oracle::on_cpu;
use half::{bf16, f16};
use lora_kernels::DeviceProfile;
use lora_kernels::ops::Path;

fn is_exact<E: DeviceElement>(inputs: &Inputs<E>) {
    let reference = on_cpu(inputs);
    for card in DeviceProfile::presets() {
        let device = cuda().with_plans_of(&card);
        let path = forward_path(&device, &inputs.problem());
        assert!(
            matches!(path, Path::Mma | Path::MmaShort | Path::MmaDecode),
            "{} is served by {path}",
            inputs.sizes
        );
        // All rows start at multiples of 16 bytes; none do; none of the weights do.
        for placement in [Placement::Aligned, Placement::Odd, Placement::OddWeights] {
            let outputs = on_cuda(&Place { device: device.clone(), placement }, inputs);
            let context = format!("{}, {}, {placement:?}, {}", inputs.sizes, E::DTYPE, card.name());
            outputs.assert_same_values(&reference, &context);
        }
    }
}

fn plans_of_every_card_are_exact<E: DeviceElement>() {
    for &[t, d, k, r] in CARDS {
        is_exact(&Inputs::<E>::integers(Sizes::new(t, k, d, r), 5));
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn plans_of_every_card_are_exact_bf16() {
    plans_of_every_card_are_exact::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn plans_of_every_card_are_exact_f16() {
    plans_of_every_card_are_exact::<f16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn groups_on_every_card_are_exact() {
    for t in [7, 64, 200] {
        for of in [&[(328, 16), (136, 8), (72, 24)][..], &[(203, 9), (64, 64), (131, 256), (8, 8)]]
        {
            is_exact(&Inputs::<bf16>::integers(Sizes::group(t, 712, of), t as u64));
        }
    }
}
