//! Devices that plan in other ways, and what operations make on them.

use crate::common::run::Outputs;
use crate::common::{Buffers, DeviceElement, Inputs, Place, assert_same_values};
use crate::cuda::cuda;
use lora_kernels::ops::{Forward, Path};
use lora_kernels::{Device, Problem};

/// The device held to few SMs, which gives small products the tiles and the waits of large ones;
/// the last one to the path that serves every GPU, too.
pub fn few_sms() -> [Device; 3] {
    [cuda().with_sm_limit(6), cuda().with_sm_limit(20), cuda().generic().with_sm_limit(4)]
}

/// The path of a forward pass.
pub fn forward_path(device: &Device, problem: &Problem) -> Path {
    Forward::new(device, problem).expect("a forward pass").path()
}

/// Runs every operation twice in fresh buffers on a CUDA device, and fails unless both runs made
/// the same bits.
pub fn on_cuda<E: DeviceElement>(place: &Place, inputs: &Inputs<E>) -> Outputs<E> {
    let run = || {
        let mut buffers = Buffers::new(place, inputs);
        buffers.enqueue().expect("every operation enqueued");
        buffers.outputs()
    };
    let outputs = run();
    let context = format!("{}, {:?}, a second run", inputs.sizes, place.device);
    outputs.assert_same_bits(&run(), &context);
    outputs
}

impl<E: DeviceElement> Outputs<E> {
    /// As [`Outputs::assert_same_bits`], with the sign of zeros left free.
    pub fn assert_same_values(&self, other: &Self, context: &str) {
        self.compare(other, context, assert_same_values::<E>, assert_same_values::<f32>);
    }
}
