//! CUDA graphs: what they keep, what a capture refuses, and what others do meanwhile.

use super::contexts::other_context;
use super::pass::{BUSY, PATHS, Pass, serial};
use super::{alone, assert_no_kept_error, current_context, own_stream, pool_bytes, set_current};
use crate::common::Inputs;
use crate::cuda::cuda;
use half::bf16;
use lora_kernels::cudarc::driver::{CudaContext, CudaGraph, CudaSlice, sys};
use lora_kernels::ops::BaseForward;
use lora_kernels::{DType, Device, Error, Result, Tensor, TensorView, TensorViewMut, Workspace};
use std::thread;

const GLOBAL: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;

/// Captures what `work` enqueues on the device's stream, and what it returned.
fn capture<R>(device: &Device, work: impl FnOnce() -> R) -> (CudaGraph, R) {
    let stream = device.stream().expect("a CUDA device");
    stream.begin_capture(GLOBAL).expect("capture begins");
    let result = work();
    let flags = sys::CUgraphInstantiate_flags(0);
    let graph = stream.end_capture(flags).expect("the capture is valid").expect("a graph");
    (graph, result)
}

/// Takes and overwrites what memory of these sizes the pool has.
fn poison(device: &Device, bytes: &[usize]) {
    device.synchronize().expect("all work done");
    let all = bytes.iter().flat_map(|bytes| {
        let nans = vec![f32::NAN; bytes.div_ceil(4)];
        (0..8).map(move |_| Tensor::from_slice(device, &nans, [nans.len()]))
    });
    drop(all.collect::<Vec<_>>());
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_graph_keeps_what_it_uses() {
    let _alone = alone();
    let before = pool_bytes();
    for sizes in PATHS {
        let expected = serial(&cuda(), sizes, 21);
        let device = own_stream(&cuda());
        let mut pass = Pass::new(&device, sizes, 21).expect("a pass");
        pass.run().expect("both passes enqueued, to load what is loaded late");
        let (graph, captured) = capture(&device, || pass.run());
        captured.expect("both passes captured");
        let bytes = [&pass.x, &pass.w0, &pass.a, &pass.b, &pass.dh].map(Tensor::bytes);
        let outputs = pass.into_outputs();
        drop(device);
        for _ in 0..3 {
            poison(&cuda(), &bytes);
            graph.launch().expect("a replay");
        }
        let mut pass = Pass::new(&cuda(), sizes, 21).expect("another pass");
        [pass.h, pass.s, pass.dx, pass.da, pass.db] = outputs;
        assert_eq!(pass.bits().expect("results"), expected, "{sizes}");
        drop((graph, pass));
    }
    assert_eq!(pool_bytes(), before, "leaked");
    assert_no_kept_error(&cuda());
}

/// Memory that is somebody else's, and a device that is gone: the kernels are still there.
#[test]
#[ignore = "needs a CUDA GPU"]
fn a_graph_of_borrowed_buffers_outlives_every_device() {
    let _alone = alone();
    let context = CudaContext::new(0).expect("a CUDA GPU");
    // SAFETY: one stream alone uses the memory of this test.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    for sizes in PATHS {
        let [t, k, d, _] = sizes.single();
        let inputs = Inputs::<bf16>::reals(sizes, 22);
        let x: CudaSlice<bf16> = stream.clone_htod(&inputs.x).expect("x");
        let w0: CudaSlice<bf16> = stream.clone_htod(&inputs.of[0].w0).expect("w0");
        let mut h: CudaSlice<bf16> = stream.alloc_zeros(t * d).expect("h");
        let device = Device::from_stream(stream.clone()).expect("a device");
        let base = BaseForward::new(&device, t, [d, k], DType::Bf16).expect("an operation");
        let mut workspace = Workspace::new(&device, base.workspace()).expect("a workspace");
        let mut run = || -> Result<()> {
            let w0 = TensorView::from_cuda(&w0, [d, k])?;
            let x = TensorView::from_cuda(&x, [t, k])?;
            base.run(w0, x, TensorViewMut::from_cuda(&mut h, [t, d])?, &mut workspace)
        };
        run().expect("a direct call");
        let (graph, captured) = capture(&device, &mut run);
        captured.expect("a captured call");
        let direct = stream.clone_dtoh(&h).expect("h");
        stream.memset_zeros(&mut h).expect("h is poisoned");
        drop((base, device));
        graph.launch().expect("a replay");
        assert_eq!(stream.clone_dtoh(&h).expect("h"), direct, "T={t} k={k} d={d}");
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_capture_refuses_what_it_cannot_hold() {
    let _alone = alone();
    let device = own_stream(&cuda());
    let other = own_stream(&cuda());
    let mut pass = Pass::new(&device, PATHS[0], 23).expect("a pass");
    let mut foreign = Pass::new(&other, PATHS[0], 23).expect("a pass");
    foreign.run().expect("both passes enqueued");
    let dropped = Tensor::zeros(&device, [1 << 20], DType::F32).expect("a tensor");
    pass.run().expect("both passes enqueued");
    let before = pool_bytes();
    let (graph, results) = capture(&device, || {
        let refused = [
            Tensor::zeros(&device, [16], DType::F32).map(|_| ()),
            Tensor::from_slice(&device, &[1.0f32], [1]).map(|_| ()),
            pass.x.to_vec::<bf16>().map(|_| ()),
            pass.x.copy_from_f32(&vec![0.0; pass.x.shape().elements()]),
            pass.x.try_clone().map(|_| ()),
            device.synchronize(),
            // Written on another stream, for which the graph cannot wait.
            foreign.on(&device).and_then(|foreign| foreign.run_forward()),
        ];
        drop(dropped);
        (refused, pass.run())
    });
    let (refused, captured) = results;
    for (i, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Capture { .. })), "{i}: {result:?}");
    }
    captured.expect("what can be captured still is");
    // What was dropped in the capture is freed now.
    assert_eq!(pool_bytes(), before - (4 << 20), "freed later");
    let expected = serial(&cuda(), PATHS[0], 23);
    graph.launch().expect("a replay");
    assert_eq!(pass.bits().expect("results"), expected);

    // Its workspace belongs to the stream now.
    pass.on(&other).expect("the same context");
    assert!(matches!(pass.run_forward(), Err(Error::Capture { .. })));
    pass.on(&device).expect("the same context").run().expect("on its own stream it is fine");
    assert_eq!(pass.bits().expect("results"), expected);

    // A tensor that a capturing stream wrote last cannot be waited for by others.
    let mut copy = pass.h.try_clone().expect("a copy");
    let mut elsewhere = Tensor::zeros(&other, pass.h.shape(), DType::Bf16).expect("a tensor");
    let (_, result) = capture(&device, || elsewhere.copy_from(&pass.h));
    assert!(matches!(result, Err(Error::Capture { .. })), "{result:?}");
    copy.copy_from(&elsewhere).expect("and afterwards all is as before");
    assert_no_kept_error(&cuda());
}

/// While one thread captures in the mode that forbids the process to allocate or synchronise,
/// others do all that this crate does.
#[test]
#[ignore = "needs a CUDA GPU"]
fn others_work_while_a_stream_captures() {
    let _alone = alone();
    let device = own_stream(&cuda());
    let expected = serial(&cuda(), PATHS[2], 24);
    let mut pass = Pass::new(&device, PATHS[2], 24).expect("a pass");
    pass.run().expect("both passes enqueued");
    let other = own_stream(&cuda());
    let fresh = other_context() as usize;
    let (graph, captured) = capture(&device, || {
        pass.run_forward()?;
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                assert!(current_context().is_null());
                for _ in 0..3 {
                    assert_eq!(serial(&other, PATHS[2], 24), expected);
                }
                assert_eq!(serial(&Device::cuda(0).expect("a device"), PATHS[2], 24), expected);
                // Loads the kernels of another context.
                // SAFETY: the context is alive, and is the `CudaContext`'s from now on.
                let context = unsafe { CudaContext::from_raw_context(0, 0, fresh as _) };
                let stream = context.expect("a context").default_stream();
                let there = Device::from_stream(stream).expect("a device");
                assert_eq!(serial(&there, PATHS[2], 24), expected);
                set_current(std::ptr::null_mut());
            });
            worker.join().expect("the other thread");
        });
        pass.run_backward()
    });
    captured.expect("captured as if alone");
    graph.launch().expect("a replay");
    assert_eq!(pass.bits().expect("results"), expected);
    assert_no_kept_error(&cuda());
}

/// The NULL stream waits for blocking streams, which a capture does not allow.
#[test]
#[ignore = "needs a CUDA GPU"]
fn the_default_stream_while_a_blocking_stream_captures() {
    let _alone = alone();
    let device = cuda();
    let mut pass = Pass::new(&device, PATHS[0], 26).expect("a pass");
    let dropped = Tensor::zeros(&device, [1 << 20], DType::F32).expect("a tensor");
    let expected = serial(&device, PATHS[0], 26);
    let before = pool_bytes();
    let mut raw = std::ptr::null_mut();
    set_current(device.context().expect("a CUDA device").cu_ctx());
    // SAFETY: writes the handle; the stream lives until the process ends.
    let blocking = unsafe {
        sys::cuStreamCreate(&mut raw, 0).result().expect("a blocking stream");
        Device::from_raw_stream(raw).expect("a device")
    };
    let mut captured = Pass::new(&blocking, PATHS[0], 26).expect("a pass");
    captured.run().expect("both passes enqueued");
    let own = pool_bytes() - before;
    let (graph, results) = capture(&blocking, || {
        let refused = [
            pass.run(),
            pass.bits().map(|_| ()),
            Tensor::zeros(&device, [16], DType::F32).map(|_| ()),
            device.synchronize(),
        ];
        drop(dropped);
        (refused, captured.run())
    });
    let (refused, result) = results;
    for (i, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Capture { .. })), "{i}: {result:?}");
    }
    result.expect("captured");
    graph.launch().expect("a replay");
    assert_eq!(captured.bits().expect("results"), expected);
    pass.run().expect("both passes enqueued");
    assert_eq!(pass.bits().expect("results"), expected);
    assert_eq!(pool_bytes(), before + own - (4 << 20), "freed later");
    assert_no_kept_error(&device);
    set_current(std::ptr::null_mut());
}

/// Replays and direct calls on one stream, in turns, with one workspace.
#[test]
#[ignore = "needs a CUDA GPU"]
fn replays_between_direct_calls() {
    let _alone = alone();
    for sizes in PATHS.into_iter().chain([BUSY]) {
        let expected = serial(&cuda(), sizes, 25);
        let device = own_stream(&cuda());
        let mut pass = Pass::new(&device, sizes, 25).expect("a pass");
        pass.run().expect("both passes enqueued");
        let (graph, captured) = capture(&device, || pass.run());
        captured.expect("captured");
        for _ in 0..20 {
            graph.launch().expect("a replay");
            pass.run().expect("both passes enqueued");
        }
        assert_eq!(pass.bits().expect("results"), expected, "{sizes}");
    }
}
