//! All operations in CUDA graphs.

use super::alone;
use crate::common::{Buffers, Inputs, Place, Placement, Sizes};
use crate::shapes::{HOPPER, HOPPER_DECODE, HOPPER_GROUPS, HOPPER_SHORT};
use crate::shapes::{MMA, MMA_DECODE, MMA_WHOLE_S};
use half::bf16;
use lora_kernels::Device;
use lora_kernels::cudarc::driver::{CudaContext, sys};

/// While a stream captures, nobody in the process may synchronise the context, as cudarc does when
/// it makes a context's first stream: `alone` sees to that.
#[test]
#[ignore = "needs a CUDA GPU"]
fn replays_give_the_bits_of_direct_calls() {
    let _alone = alone();
    let best = |device: Device| Place::aligned(&device);
    let generic = |device: Device| Place::aligned(&device.generic());
    let small = Sizes::new(1100, 264, 136, 16);
    replays(100, small, best);
    replays(100, small, generic);
    let group = Sizes::group(1100, 264, &[(136, 16), (264, 8), (72, 24)]);
    for placement in Placement::ALL {
        replays(20, group, |device| Place { device, placement });
        replays(20, group, |device| Place { device: device.generic(), placement });
    }
    // Launches that fill the GPU. The base passes' launches overlap.
    replays(20, Sizes::new(2305, 520, 2056, 16), best);
    // All that CTAs have to tell each other by flags, which a replay must find as it left them.
    for &([t, d, k, r], sms) in [HOPPER, HOPPER_DECODE, HOPPER_SHORT].into_iter().flatten() {
        replays(5, Sizes::new(t, k, d, r), |device| best(device.with_sm_limit(sms)));
    }
    for &(t, k, of, sms) in HOPPER_GROUPS {
        replays(5, Sizes::group(t, k, of), |device| best(device.with_sm_limit(sms)));
    }
    for &([t, d, k, r], sms) in [MMA, MMA_DECODE].into_iter().flatten() {
        replays(5, Sizes::new(t, k, d, r), |device| generic(device.with_sm_limit(sms)));
    }
    for &(t, k, of, sms) in MMA_WHOLE_S {
        replays(5, Sizes::group(t, k, of), |device| generic(device.with_sm_limit(sms)));
    }
    replays(5, Sizes::group(7, 1032, &[(1288, 16), (520, 8), (72, 24)]), generic);
}

fn replays(times: u64, sizes: Sizes, place: impl Fn(Device) -> Place) {
    let inputs = |seed| Inputs::<bf16>::reals(sizes, seed);
    let context = CudaContext::new(0).expect("a CUDA GPU");
    // SAFETY: one stream alone uses the memory of this test. Its events would be waited for
    // inside the capture, which they are no part of.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let place = place(Device::from_stream(stream.clone()).expect("a device"));

    let mut captured = Buffers::new(&place, &inputs(0));
    let mut direct = Buffers::new(&place, &inputs(0));
    // Every operation is called once before it is captured: the contract of a capture.
    captured.enqueue().expect("direct calls");
    place.device.synchronize().expect("both loaded");

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
