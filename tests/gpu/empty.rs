//! An empty batch on a GPU.

use crate::common::{DeviceElement, Inputs, Place, Placement};
use crate::cuda::cuda_paths;
use crate::device::on_cuda;
use crate::empty_batch::{self, SIZES, check_outputs};
use half::{bf16, f16};
use lora_kernels::Result;
use lora_kernels::ops::{Backward, Forward};

#[test]
#[ignore = "needs a CUDA GPU"]
fn operations_take_no_tokens() {
    fn holds<E: DeviceElement>() {
        for sizes in SIZES {
            let inputs = Inputs::<E>::reals(sizes, 1);
            for device in cuda_paths() {
                let forward = Forward::new(&device, &inputs.problem()).expect("a forward pass");
                let backward = Backward::new(&device, &inputs.problem()).expect("a backward pass");
                assert_eq!(forward.workspace().max(backward.workspace()).bytes(), 0);
                for placement in [Placement::Aligned, Placement::Odd, Placement::Strided] {
                    let outputs = on_cuda(&Place { device: device.clone(), placement }, &inputs);
                    check_outputs(&inputs, &outputs);
                }
            }
        }
    }
    holds::<f16>();
    holds::<bf16>();
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn layers_take_no_tokens() -> Result<()> {
    cuda_paths().iter().try_for_each(empty_batch::layers_take_no_tokens)
}
