//! A forward pass captured in a CUDA graph, and replayed.
//!
//! ```text
//! cargo run --example cuda_graph
//! ```

use lora_kernels::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use lora_kernels::ops::{Forward, Projection, Weights};
use lora_kernels::{DType, Device, Problem, Tensor, Workspace};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut device = Device::cuda(0).unwrap_or(Device::cpu());
    // The default stream cannot be captured.
    if let Some(context) = device.context() {
        device = Device::from_stream(context.new_stream()?)?;
    }
    let (t, k, d, r) = (16, 64, 32, 8);
    let ones = |shape: [usize; 2]| {
        Tensor::from_f32(&device, &vec![1.0; shape[0] * shape[1]], shape, DType::Bf16)
    };
    let (mut x, w0, a, b) = (ones([t, k])?, ones([d, k])?, ones([r, k])?, ones([d, r])?);
    let (mut h, mut s) = (ones([t, d])?, ones([t, r])?);
    let forward = Forward::new(&device, &Problem::single(t, k, d, r, DType::Bf16)?)?;
    let mut workspace = Workspace::new(&device, forward.workspace())?;
    let mut run = |x: &Tensor, h: &mut Tensor| {
        let layer = [Projection::new(w0.view(), b.view(), 0.5)];
        let weights = Weights::new(a.view(), &layer);
        forward.run(&weights, x.view(), &mut [h.view_mut()], s.view_mut(), &mut workspace)
    };

    // Once before the capture: code is loaded by its first launch.
    run(&x, &mut h)?;
    println!("on {device}: h[0, 0] = {}", h.to_f32_vec()?[0]);
    let Some(stream) = device.stream() else {
        println!("there is no CUDA device, and so no graph");
        return Ok(());
    };

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let captured = run(&x, &mut h);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.ok_or("nothing was captured")?;
    captured?;
    // A replay reads what is in the buffers by then.
    for value in [2.0, 3.0] {
        x.copy_from_f32(&vec![value; t * k])?;
        graph.launch()?;
        println!("replayed with x of {value}: h[0, 0] = {}", h.to_f32_vec()?[0]);
    }
    Ok(())
}
