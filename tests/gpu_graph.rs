//! All operations in a CUDA graph.
//!
//! A file of one test, and so a process of its own: while a stream captures, nobody in the
//! process may synchronise the context, as cudarc does when it makes a context's first stream.

mod common;

use common::{Buffers, Inputs, Place, SharedBuffers, SharedInputs, SharedSizes, Sizes};
use half::bf16;
use lora_kernels::cudarc::driver::{sys, CudaContext};
use lora_kernels::{Device, Result};

/// For the kernels of Hopper: T, d, k and r, on so many multiprocessors; as gpu_sanitize.rs has them.
const HOPPER: [([usize; 4], usize); 20] = include!("common/hopper_shapes.in");
const FEW_TOKENS: [([usize; 4], usize); 22] = include!("common/hopper_decode_shapes.in");
const SHORT: [([usize; 4], usize); 11] = include!("common/hopper_short_shapes.in");

#[test]
#[ignore = "needs a CUDA GPU"]
fn replays_give_the_bits_of_direct_calls() {
    let small = Sizes::new(1100, 264, 136, 16);
    replays(100, small, |device| device);
    replays(100, small, |device| device.generic());
    let shared = SharedSizes::new(1100, 264, &[(136, 16), (264, 8), (72, 24)]);
    let inputs = |seed| SharedInputs::reals(shared, seed);
    replays_of::<SharedBuffers<bf16>>(20, inputs, |device| device);
    replays_of::<SharedBuffers<bf16>>(20, inputs, |device| device.generic());
    // Launches that fill the GPU, of which those of the frozen layer overlap.
    replays(20, Sizes::new(2305, 520, 2056, 16), |device| device);
    // All that blocks have to tell each other by flags, which a replay must find as it left them.
    for ([t, d, k, r], sms) in HOPPER.into_iter().chain(FEW_TOKENS).chain(SHORT) {
        replays(5, Sizes::new(t, k, d, r), |device| device.with_sms(sms));
    }
}

/// Buffers, and operations on them.
trait Operations {
    type Inputs;
    fn new(place: &Place, inputs: &Self::Inputs) -> Self;
    fn load(&mut self, inputs: &Self::Inputs);
    fn enqueue(&mut self) -> Result<()>;
    /// Fails unless both have made the same bits. Returns some of them.
    fn compare(&self, direct: &Self, context: &str) -> Vec<bf16>;
}

impl Operations for Buffers<bf16> {
    type Inputs = Inputs<bf16>;

    fn new(place: &Place, inputs: &Self::Inputs) -> Self {
        Buffers::new(place, inputs)
    }

    fn load(&mut self, inputs: &Self::Inputs) {
        self.load(inputs);
    }

    fn enqueue(&mut self) -> Result<()> {
        self.enqueue()
    }

    fn compare(&self, direct: &Self, context: &str) -> Vec<bf16> {
        let outputs = self.outputs();
        outputs.assert_same_bits(&direct.outputs(), context);
        outputs.h
    }
}

impl Operations for SharedBuffers<bf16> {
    type Inputs = SharedInputs<bf16>;

    fn new(place: &Place, inputs: &Self::Inputs) -> Self {
        SharedBuffers::new(place, inputs)
    }

    fn load(&mut self, inputs: &Self::Inputs) {
        self.load(inputs);
    }

    fn enqueue(&mut self) -> Result<()> {
        self.enqueue()
    }

    fn compare(&self, direct: &Self, context: &str) -> Vec<bf16> {
        let outputs = self.outputs();
        outputs.assert_same_bits(&direct.outputs(), context);
        outputs.h.concat()
    }
}

fn replays(times: u64, sizes: Sizes, path: impl Fn(Device) -> Device) {
    replays_of::<Buffers<bf16>>(times, |seed| Inputs::reals(sizes, seed), path);
}

fn replays_of<B: Operations>(
    times: u64,
    inputs: impl Fn(u64) -> B::Inputs,
    path: impl Fn(Device) -> Device,
) {
    let context = CudaContext::new(0).expect("a CUDA GPU");
    // SAFETY: one stream alone uses the memory of this test. Its events would be waited for
    // inside the capture, which they are no part of.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let device = path(Device::from_stream(stream.clone()).expect("a device"));
    let place = Place::aligned(&device);

    let mut captured = B::new(&place, &inputs(0));
    let mut direct = B::new(&place, &inputs(0));
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
        let h = captured.compare(&direct, &format!("replay {replay}"));
        assert!(last.replace(h.clone()) != Some(h), "new inputs, new outputs");
    }
    assert_eq!(context.check_err(), Ok(()), "an error nobody was told of");
}
