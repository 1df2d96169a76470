//! The GPU.

use lora_kernels::Device;
use std::sync::OnceLock;

/// The first CUDA device and its default stream, for the whole process: were every test to make
/// its own, the context would come and go with them.
pub fn cuda() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| Device::cuda(0).expect("a CUDA GPU")).clone()
}

/// The device with all its paths, and held to the one that serves every GPU.
pub fn cuda_paths() -> [Device; 2] {
    [cuda(), cuda().generic()]
}
