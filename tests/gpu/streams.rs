//! Several streams and several threads on one GPU: nobody's results depend on the others.

use crate::common::run::Outputs;
use crate::common::{Buffers, DeviceElement, Inputs, Place, Sizes};
use half::{bf16, f16};
use lora_kernels::Device;
use lora_kernels::cudarc::driver::CudaContext;
use std::sync::Arc;

/// Long enough to overlap, with several splits of T.
const SIZES: Sizes = Sizes::new(1500, 896, 520, 16);
const ROUNDS: usize = 10;

/// A context of its own count of streams, without cudarc's events between them: each device of
/// these tests uses the memory of its own stream only.
fn context() -> Arc<CudaContext> {
    let context = CudaContext::new(0).expect("a CUDA GPU");
    // SAFETY: no memory is shared between streams, and none freed but in its stream's order.
    unsafe { context.disable_event_tracking() };
    context
}

fn stream_device(context: &Arc<CudaContext>) -> Device {
    Device::from_stream(context.new_stream().expect("a stream")).expect("a device")
}

fn buffers<E: DeviceElement>(device: &Device, inputs: &Inputs<E>) -> Buffers<E> {
    let place = Place::aligned(device);
    Buffers::new(&place, inputs)
}

fn alone<E: DeviceElement>(device: &Device, inputs: &Inputs<E>) -> Outputs<E> {
    let mut buffers = buffers(device, inputs);
    buffers.enqueue().expect("every operation enqueued");
    buffers.outputs()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn two_streams_at_once() {
    two_streams(SIZES, ROUNDS);
}

/// Launches that fill the GPU and whose CTAs wait for others, which may have to wait until CTAs of
/// the other stream make room.
#[test]
#[ignore = "needs a CUDA GPU"]
fn two_streams_of_few_tokens_at_once() {
    for t in [16, 128, 250] {
        two_streams(Sizes::new(t, 1024, 4104, 72), 3 * ROUNDS);
    }
}

fn two_streams(sizes: Sizes, rounds: usize) {
    let context = context();
    let (one, two) = (stream_device(&context), stream_device(&context));
    let inputs = (Inputs::<bf16>::reals(sizes, 1), Inputs::<f16>::reals(sizes, 2));
    let serial = (alone(&one, &inputs.0), alone(&one, &inputs.1));
    let (mut first, mut second) = (buffers(&one, &inputs.0), buffers(&two, &inputs.1));
    for round in 0..rounds {
        first.load(&inputs.0);
        second.load(&inputs.1);
        first.enqueue().expect("on the first stream");
        second.enqueue().expect("on the second stream");
        first.outputs().assert_same_bits(&serial.0, &format!("first stream, round {round}"));
        second.outputs().assert_same_bits(&serial.1, &format!("second stream, round {round}"));
    }
}

/// One thread with the default stream, one with a stream of its own, each loading its own device.
#[test]
#[ignore = "needs a CUDA GPU"]
fn two_threads_at_once() {
    fn rounds<E: DeviceElement>(device: impl Fn() -> Device, seed: u64, serial: &Outputs<E>) {
        for round in 0..ROUNDS {
            let outputs = alone(&device(), &Inputs::<E>::reals(SIZES, seed));
            outputs.assert_same_bits(serial, &format!("round {round}"));
        }
    }
    let default = || Device::cuda(0).expect("a CUDA GPU");
    let own = || stream_device(&context());
    let serial_bf16 = alone(&default(), &Inputs::<bf16>::reals(SIZES, 3));
    let serial_f16 = alone(&default(), &Inputs::<f16>::reals(SIZES, 4));
    std::thread::scope(|scope| {
        scope.spawn(|| rounds(default, 3, &serial_bf16));
        scope.spawn(|| rounds(own, 4, &serial_f16));
    });
}

/// A device is shared by reference as well: its stream takes the calls of both threads, each of
/// them on buffers of its own.
#[test]
#[ignore = "needs a CUDA GPU"]
fn one_stream_from_two_threads() {
    let device = stream_device(&context());
    let inputs = [Inputs::<bf16>::reals(SIZES, 5), Inputs::<bf16>::reals(SIZES, 6)];
    let serial = inputs.each_ref().map(|inputs| alone(&device, inputs));
    std::thread::scope(|scope| {
        for (inputs, serial) in inputs.iter().zip(&serial) {
            let device = &device;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let outputs = alone(device, inputs);
                    outputs.assert_same_bits(serial, &format!("round {round}"));
                }
            });
        }
    });
}
