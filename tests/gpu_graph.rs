//! All operations in a CUDA graph.
//!
//! A file of one test, and so a process of its own: while a stream captures, nobody in the
//! process may synchronise the context, as cudarc does when it makes a context's first stream.

mod common;

use common::{Buffers, Inputs, Place, Sizes};
use half::bf16;
use lora_kernels::Device;
use lora_kernels::cudarc::driver::{CudaContext, sys};

/// For the kernels of Hopper: T, d, k and r, and the SM limit; as gpu_sanitize.rs has them.
const HOPPER: [([usize; 4], usize); 23] = include!("common/hopper_shapes.in");
const FEW_TOKENS: [([usize; 4], usize); 24] = include!("common/hopper_decode_shapes.in");
const SHORT: [([usize; 4], usize); 11] = include!("common/hopper_short_shapes.in");
/// The same for few tokens on every GPU.
const MMA_DECODE: [([usize; 4], usize); 8] = include!("common/mma_decode_shapes.in");

#[test]
#[ignore = "needs a CUDA GPU"]
fn replays_give_the_bits_of_direct_calls() {
    let small = Sizes::new(1100, 264, 136, 16);
    replays(100, small, |device| device);
    replays(100, small, |device| device.generic());
    let group = Sizes::group(1100, 264, &[(136, 16), (264, 8), (72, 24)]);
    replays(20, group, |device| device);
    replays(20, group, |device| device.generic());
    // Launches that fill the GPU. The base passes' launches overlap.
    replays(20, Sizes::new(2305, 520, 2056, 16), |device| device);
    // All that CTAs have to tell each other by flags, which a replay must find as it left them.
    for ([t, d, k, r], sms) in HOPPER.into_iter().chain(FEW_TOKENS).chain(SHORT) {
        replays(5, Sizes::new(t, k, d, r), |device| device.with_sm_limit(sms));
    }
    for ([t, d, k, r], sms) in MMA_DECODE {
        replays(5, Sizes::new(t, k, d, r), |device| device.generic().with_sm_limit(sms));
    }
    let few = Sizes::group(7, 1032, &[(1288, 16), (520, 8), (72, 24)]);
    replays(5, few, |device| device.generic());
}

fn replays(times: u64, sizes: Sizes, path: impl Fn(Device) -> Device) {
    let inputs = |seed| Inputs::<bf16>::reals(sizes, seed);
    let context = CudaContext::new(0).expect("a CUDA GPU");
    // SAFETY: one stream alone uses the memory of this test. Its events would be waited for
    // inside the capture, which they are no part of.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let device = path(Device::from_stream(stream.clone()).expect("a device"));
    let place = Place::aligned(&device);

    let mut captured = Buffers::new(&place, &inputs(0));
    let mut direct = Buffers::new(&place, &inputs(0));
    // Every operation is called once before it is captured: the contract of a capture.
    captured.enqueue().expect("direct calls");
    device.synchronize().expect("both loaded");

    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("capture begins");
    let enqueued = captured.enqueue();
    let flags = sys::CUgraphInstantiate_flags(0);
    let graph = stream.end_capture(flags).expect("capture ends").expect("a graph");
    enqueued.expect("every operation captured");

    let mut last = None;
    for replay in 0..times {
        let inputs = inputs(replay);
        captured.load(&inputs);
        graph.launch().expect("a replay");
        direct.load(&inputs);
        direct.enqueue().expect("direct calls");
        let outputs = captured.outputs();
        outputs.assert_same_bits(&direct.outputs(), &format!("replay {replay}"));
        let h = outputs.h;
        assert!(last.replace(h.clone()) != Some(h), "new inputs, new outputs");
    }
    assert_eq!(context.check_err(), Ok(()), "an error nobody was told of");
}
