//! A layer under several threads and streams, and in a capture.

use super::pass::BUSY;
use super::{alone, assert_no_kept_error, own_stream, pool_bytes};
use crate::common::{Inputs, Sizes};
use crate::cuda::cuda;
use half::bf16;
use lora_kernels::Tensor;
use lora_kernels::cudarc::driver::sys;
use lora_kernels::{Accumulation, Adapter, DType, Device, Error, LoraLinear, Result, Scaling};
use std::thread;

const LAYER: Sizes = Sizes::new(1, 520, 264, 16);
const TOKENS: [usize; 6] = [1, 5, 64, 100, 300, 2305];

fn layer(device: &Device, sizes: Sizes) -> LoraLinear {
    let [_, k, d, r] = sizes.single();
    let inputs = Inputs::<bf16>::reals(Sizes::new(1, k, d, r), 31);
    let tensor = |values: &[bf16], shape| Tensor::from_slice(device, values, shape);
    let a = tensor(&inputs.a, [r, k]).expect("a");
    let b = tensor(&inputs.of[0].b, [d, r]).expect("b");
    let adapter = Adapter::from_tensors(a, b, 11.2, Scaling::Standard).expect("an adapter");
    LoraLinear::new(tensor(&inputs.of[0].w0, [d, k]).expect("w0"), adapter).expect("a layer")
}

/// The bits of h, dX, dA and dB for so many tokens on this device's stream.
fn step(layer: &LoraLinear, device: &Device, t: usize) -> Result<Vec<u32>> {
    let [_, k, d, _] = LAYER.single();
    let inputs = Inputs::<bf16>::reals(Sizes::new(t, k, d, 1), t as u64);
    let x = Tensor::from_slice(device, &inputs.x, [t, k])?;
    let dh = Tensor::from_slice(device, &inputs.of[0].dh, [t, d])?;
    let out = layer.forward(&x)?;
    let mut gradients = layer.zero_gradients()?;
    let dx = layer.backward(&[&dh], &out.saved, &mut gradients, Accumulation::Add)?;
    let mut bits = Vec::new();
    for tensor in [&out.h[0], &dx, &gradients.a, &gradients.b[0], &layer.forward_base(&x)?[0]] {
        bits.extend(tensor.to_f32_vec()?.into_iter().map(f32::to_bits));
    }
    Ok(bits)
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn one_layer_under_many_threads_and_streams() {
    let _alone = alone();
    let owner = cuda();
    let context = owner.context().expect("a CUDA device").clone();
    let before = pool_bytes();
    let layer = layer(&owner, LAYER);
    let expected = TOKENS.map(|t| step(&layer, &owner, t).expect("a step"));
    let check = |device: &Device, offset: usize| {
        for round in 0..10 {
            let i = (round + offset) % TOKENS.len();
            let got = step(&layer, device, TOKENS[i]).expect("a step");
            assert!(got == expected[i], "T={} on {device:?}, round {round}", TOKENS[i]);
        }
    };
    thread::scope(|scope| {
        for offset in 0..6 {
            let (context, check, owner) = (&context, &check, &owner);
            scope.spawn(move || {
                let device = match offset % 3 {
                    0 => owner.clone(),
                    1 => own_stream(owner),
                    _ => Device::from_stream(context.per_thread_stream()).expect("a device"),
                };
                check(&device, offset);
            });
        }
    });
    drop(layer);
    assert_eq!(pool_bytes(), before, "leaked");
    assert_no_kept_error(&owner);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_layer_in_a_capture() {
    let _alone = alone();
    let device = own_stream(&cuda());
    let layer = layer(&device, LAYER);
    let [_, k, d, _] = LAYER.single();
    let tensors = |t: usize| {
        let inputs = Inputs::<bf16>::reals(Sizes::new(t, k, d, 1), t as u64);
        let x = Tensor::from_slice(&device, &inputs.x, [t, k]).expect("x");
        (x, Tensor::zeros(&device, [t, d], DType::Bf16).expect("h"))
    };
    let ((x, mut h), (large_x, mut large_h)) = (tensors(64), tensors(2305));
    let into = |x: &Tensor, h: &mut Tensor| {
        layer.forward_into(&device, x.view(), &mut [h.view_mut()], None)
    };
    into(&x, &mut h).expect("a direct call");
    let direct = h.to_f32_vec().expect("h");
    h.copy_from_f32(&vec![0.0; 64 * d]).expect("h is poisoned");
    device.synchronize().expect("all done");

    let stream = device.stream().expect("a CUDA device");
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("capture begins");
    let (allocates, grows) = (layer.forward(&x).map(|_| ()), into(&large_x, &mut large_h));
    let captured = into(&x, &mut h);
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).expect("a valid capture");
    for result in [allocates, grows] {
        assert!(matches!(result, Err(Error::Capture { .. })), "{result:?}");
    }
    captured.expect("a layer that was warmed up");
    graph.expect("a graph").launch().expect("a replay");
    assert_eq!(h.to_f32_vec().expect("h"), direct);
}

/// Dropping every result at once, while the stream still computes them.
#[test]
#[ignore = "needs a CUDA GPU"]
fn results_may_be_dropped_at_once() {
    let _alone = alone();
    let device = cuda();
    let layer = layer(&device, BUSY);
    let x = Tensor::zeros(&device, [BUSY.single()[0], BUSY.k], DType::Bf16).expect("x");
    let before = pool_bytes();
    drop(layer.infer(&x).expect("the workspace is there now"));
    let with_workspace = pool_bytes();
    assert!(with_workspace >= before);
    for _ in 0..100 {
        let out = layer.forward(&x).expect("forward");
        drop(out);
    }
    device.synchronize().expect("all done");
    assert_eq!(pool_bytes(), with_workspace, "leaked");
}
