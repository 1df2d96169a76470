//! Threads that never used CUDA.

use super::pass::{PATHS, Pass, serial};
use super::{alone, assert_no_kept_error, current_context, own_stream, pool_bytes};
use crate::cuda::cuda;
use lora_kernels::{DType, Device, Tensor};
use std::thread;

/// Runs on a new thread, and checks that no context is current there afterwards.
fn cold<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| {
        let cold = scope.spawn(|| {
            assert!(current_context().is_null(), "the thread is cold");
            let result = work();
            assert!(current_context().is_null(), "and left as it was");
            result
        });
        cold.join().expect("the cold thread")
    })
}

fn devices() -> [Device; 4] {
    let device = cuda();
    let side = own_stream(&device);
    [device.generic(), side.generic(), device, side]
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn dropping_leaves_nothing_behind() {
    let _alone = alone();
    for device in devices() {
        let before = pool_bytes();
        let tensor = Tensor::zeros(&device, [1 << 20], DType::F32).expect("a tensor");
        cold(move || drop(tensor));
        assert_eq!(pool_bytes(), before, "{device:?}: leaked");
        assert_no_kept_error(&device);
        Tensor::zeros(&device, [16], DType::F32).expect("an innocent call");
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn the_first_call_may_be_any() {
    let _alone = alone();
    for device in devices() {
        for sizes in PATHS {
            let expected = serial(&device, sizes, 1);
            let mut pass = Pass::new(&device, sizes, 1).expect("a pass");
            let got = cold(|| {
                pass.run().expect("both passes enqueued");
                pass.bits().expect("results")
            });
            assert_eq!(got, expected, "{sizes} on {device:?}");
        }
        assert_no_kept_error(&device);
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn everything_may_be_made_used_and_dropped() {
    let _alone = alone();
    let [_, _, device, _] = devices();
    let before = pool_bytes();
    for sizes in PATHS {
        let expected = serial(&device, sizes, 2);
        let got = cold(|| {
            let device = Device::cuda(0).expect("a device");
            let side = Device::from_stream(device.stream().expect("a stream").clone());
            serial(&side.expect("a device"), sizes, 2)
        });
        assert_eq!(got, expected, "{sizes}");
        // And a stream of its own, made and dropped there.
        let context = device.context().expect("a CUDA device");
        // (The last reference is dropped here: cudarc makes its context current to destroy it.)
        let stream = context.new_stream().expect("a stream");
        let of = stream.clone();
        let got = cold(move || serial(&Device::from_stream(of).expect("a device"), sizes, 2));
        assert_eq!(got, expected, "{sizes} on a stream of its own");
    }
    assert_eq!(pool_bytes(), before, "leaked");
    assert_no_kept_error(&device);
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_raw_stream_will_do() {
    let _alone = alone();
    let device = cuda();
    let stream = device.context().expect("a CUDA device").new_stream().expect("a stream");
    let raw = stream.cu_stream() as usize;
    let expected = serial(&device, PATHS[2], 3);
    let got = cold(|| {
        // SAFETY: `stream` outlives all that is made of it.
        let device = unsafe { Device::from_raw_stream(raw as _) }.expect("a device");
        assert!(device.stream().is_some_and(|own| own.cu_stream() as usize == raw));
        serial(&device, PATHS[2], 3)
    });
    assert_eq!(got, expected);
}

/// candle's stream: the same handle is another stream in each thread.
#[test]
#[ignore = "needs a CUDA GPU"]
fn per_thread_default_streams_wait_for_each_other() {
    let _alone = alone();
    let context = cuda().context().expect("a CUDA device").clone();
    let device = Device::from_stream(context.per_thread_stream()).expect("a device");
    let before = pool_bytes();
    for sizes in PATHS.into_iter().chain([super::pass::BUSY]) {
        let expected = serial(&cuda(), sizes, 4);
        // Made here, run there, backward in another, read in a fourth, dropped in a fifth: each
        // waits for the one before, and they share a workspace.
        for _ in 0..10 {
            let mut pass = Pass::new(&device, sizes, 4).expect("a pass");
            thread::scope(|scope| scope.spawn(|| pass.run_forward()).join())
                .expect("a thread")
                .expect("forward");
            thread::scope(|scope| scope.spawn(|| pass.run_backward()).join())
                .expect("a thread")
                .expect("backward");
            let got = thread::scope(|scope| scope.spawn(|| pass.bits()).join());
            assert_eq!(got.expect("a thread").expect("results"), expected, "{sizes}");
            thread::scope(|scope| scope.spawn(move || drop(pass)).join()).expect("a thread");
        }
    }
    assert_eq!(pool_bytes(), before, "leaked");
    assert_no_kept_error(&device);
}
