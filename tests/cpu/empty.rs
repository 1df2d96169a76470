//! An empty batch on the CPU reference.

use crate::common::{DeviceElement, Inputs};
use crate::empty_batch::{SIZES, check_outputs, layers_take_no_tokens};
use crate::oracle::on_cpu;
use half::{bf16, f16};
use lora_kernels::{Device, Result};

#[test]
fn operations_take_no_tokens() {
    fn holds<E: DeviceElement>() {
        for sizes in SIZES {
            let inputs = Inputs::<E>::reals(sizes, 1);
            check_outputs(&inputs, &on_cpu(&inputs));
        }
    }
    holds::<f32>();
    holds::<f16>();
    holds::<bf16>();
}

#[test]
fn layers_take_no_tokens_on_the_cpu() -> Result<()> {
    layers_take_no_tokens(&Device::cpu())
}
