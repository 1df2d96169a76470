//! A forward pass on buffers of your own: `CudaSlice`s on a stream of yours, or slices of the host.
//!
//! ```text
//! cargo run --example own_buffers
//! ```

use lora_kernels::half::bf16;
use lora_kernels::ops::{Forward, Projection, Weights};
use lora_kernels::{DType, Device, Problem, TensorView, TensorViewMut, Workspace};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let [t, k, d, r] = [16, 64, 32, 8];
    let problem = Problem::single(t, k, d, r, DType::Bf16)?;
    let of = |n: usize, value: f32| vec![bf16::from_f32(value); n];
    let shapes = [[t, k], [d, k], [r, k], [d, r]]; // of x, W0, A and B
    let inputs = [of(t * k, 1.0), of(d * k, 0.5), of(r * k, 0.25), of(d * r, 0.125)];
    let device = Device::cuda(0).unwrap_or(Device::cpu());
    let h = if let Some(context) = device.context() {
        let stream = context.new_stream()?;
        let copy = |values| stream.clone_htod(values);
        let slices = inputs.iter().map(copy).collect::<Result<Vec<_>, _>>()?;
        let (mut h, mut s) = (stream.alloc_zeros(t * d)?, stream.alloc_zeros(t * r)?);
        let view = |(slice, shape)| TensorView::from_cuda::<bf16>(slice, shape);
        let views = slices.iter().zip(shapes).map(view).collect::<Result<Vec<_>, _>>()?;
        let h_view = TensorViewMut::from_cuda::<bf16>(&mut h, [t, d])?;
        let s_view = TensorViewMut::from_cuda::<bf16>(&mut s, [t, r])?;
        forward(&Device::from_stream(stream.clone())?, &problem, &views, [h_view, s_view])?;
        stream.clone_dtoh(&h)?
    } else {
        let (mut h, mut s) = (of(t * d, 0.0), of(t * r, 0.0));
        let view = |(values, shape)| TensorView::from_host::<bf16>(values, shape);
        let slices = inputs.iter().map(Vec::as_slice);
        let views = slices.zip(shapes).map(view).collect::<Result<Vec<_>, _>>()?;
        let h_view = TensorViewMut::from_host(&mut h, [t, d])?;
        let s_view = TensorViewMut::from_host(&mut s, [t, r])?;
        forward(&device, &problem, &views, [h_view, s_view])?;
        h
    };
    // 64 · 0.5, and 2 · (64 · 0.25) · 0.125 from each of 8 ranks.
    println!("on {device}: h[0, 0] = {}", h[0]);
    Ok(())
}

fn forward(
    device: &Device,
    problem: &Problem,
    inputs: &[TensorView<'_>],
    [h, s]: [TensorViewMut<'_>; 2],
) -> lora_kernels::Result<()> {
    let &[x, w0, a, b] = inputs else { unreachable!("four inputs") };
    // Made once, for these sizes; run as often as you like.
    let forward = Forward::new(device, problem)?;
    let mut workspace = Workspace::new(device, forward.workspace())?;
    let projections = [Projection::new(w0, b, 2.0)];
    forward.run(&Weights::new(a, &projections), x, &mut [h], s, &mut workspace)
}
