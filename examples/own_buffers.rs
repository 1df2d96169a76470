//! A forward pass on buffers of your own: `CudaSlice`s on a stream of yours, or slices of the host.
//!
//! ```text
//! cargo run --example own_buffers
//! ```

use lora_kernels::half::bf16;
use lora_kernels::ops::{Forward, Projection, Weights};
use lora_kernels::{DType, Device, Problem, TensorView, TensorViewMut, Workspace};
use std::error::Error;

const T: usize = 16;
const K: usize = 64;
const D: usize = 32;
const R: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let of = |n: usize, value: f32| vec![bf16::from_f32(value); n];
    let inputs = [of(T * K, 1.0), of(D * K, 0.5), of(R * K, 0.25), of(D * R, 0.125)];
    let device = Device::cuda(0).unwrap_or(Device::cpu());
    let h = match device.context() {
        Some(context) => {
            let stream = context.new_stream()?;
            let copy = |values| stream.clone_htod(values);
            let slices = inputs.iter().map(copy).collect::<Result<Vec<_>, _>>()?;
            let [x, w0, a, b] = &slices[..] else { unreachable!("four inputs") };
            let (mut h, mut s) = (stream.alloc_zeros(T * D)?, stream.alloc_zeros(T * R)?);
            forward(
                &Device::from_stream(stream.clone())?,
                [
                    TensorView::from_cuda::<bf16>(x, [T, K])?,
                    TensorView::from_cuda::<bf16>(w0, [D, K])?,
                    TensorView::from_cuda::<bf16>(a, [R, K])?,
                    TensorView::from_cuda::<bf16>(b, [D, R])?,
                ],
                TensorViewMut::from_cuda::<bf16>(&mut h, [T, D])?,
                TensorViewMut::from_cuda::<bf16>(&mut s, [T, R])?,
            )?;
            stream.clone_dtoh(&h)?
        }
        None => {
            let (mut h, mut s) = (of(T * D, 0.0), of(T * R, 0.0));
            let [x, w0, a, b] = &inputs;
            forward(
                &device,
                [
                    TensorView::from_host(x, [T, K])?,
                    TensorView::from_host(w0, [D, K])?,
                    TensorView::from_host(a, [R, K])?,
                    TensorView::from_host(b, [D, R])?,
                ],
                TensorViewMut::from_host(&mut h, [T, D])?,
                TensorViewMut::from_host(&mut s, [T, R])?,
            )?;
            h
        }
    };
    // 64 · 0.5, and 2 · (64 · 0.25) · 0.125 from each of 8 ranks.
    println!("on {device}: h[0, 0] = {}", h[0]);
    Ok(())
}

fn forward(
    device: &Device,
    [x, w0, a, b]: [TensorView<'_>; 4],
    h: TensorViewMut<'_>,
    s: TensorViewMut<'_>,
) -> lora_kernels::Result<()> {
    // Made once, for these sizes; run as often as you like.
    let forward = Forward::new(device, &Problem::single(T, K, D, R, DType::Bf16)?)?;
    let mut workspace = Workspace::new(device, forward.workspace())?;

    let projections = [Projection::new(w0, b, 2.0)];
    forward.run(&Weights::new(a, &projections), x, &mut [h], s, &mut workspace)
}
