//! Dropout whose seed and offset are in device memory.

use super::alone;
use super::pass::{Drops, PATHS, Pass};
use lora_kernels::cudarc::driver::{CudaContext, sys};
use lora_kernels::{Device, DropoutState};

/// A graph is replayed with the mask of the seed and the offset that were set before.
#[test]
#[ignore = "needs a CUDA GPU"]
fn replays_have_masks_of_their_own() {
    let _alone = alone();
    let stream = CudaContext::new(0).expect("a CUDA GPU").new_stream().expect("a stream");
    let best = Device::from_stream(stream.clone()).expect("a device");
    for (device, sizes) in
        [&best, &best.generic()].into_iter().flat_map(|device| PATHS.map(|sizes| (device, sizes)))
    {
        let p = 0.25;
        let state = DropoutState::new(device, 0, 0).expect("a state");
        let drops = Drops::ByState { p, state };
        let mut captured = Pass::with(device, sizes, 3, drops).expect("a pass");
        // The contract of a capture: each operation was called once before.
        captured.run().expect("a direct call");
        device.synchronize().expect("done");
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).expect("capture begins");
        let enqueued = captured.run();
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = stream.end_capture(flags).expect("capture ends").expect("a graph");
        enqueued.expect("captured");

        let mut all = Vec::new();
        for (seed, offset) in [(1, 0), (1, 1 << 33), (2, 0), (1, 0)] {
            let Drops::ByState { state, .. } = &mut captured.drops else { unreachable!() };
            state.set(seed, offset).expect("a seed and an offset");
            graph.launch().expect("a replay");
            let drops = Drops::ByValues { p, seed, offset };
            let mut direct = Pass::with(device, sizes, 3, drops).expect("a pass");
            direct.run().expect("a direct call");
            let context = format!("{sizes}, seed {seed}, offset {offset}");
            let bits = captured.bits().expect("the bits of a replay");
            assert_eq!(bits, direct.bits().expect("the bits of a direct call"), "{context}");
            all.push(bits);
        }
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{sizes}");
        assert_eq!(all[0], all[3], "{sizes}");
    }
}
