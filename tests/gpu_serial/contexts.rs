//! Threads on which another context is current, which stands for another GPU's; green contexts; and
//! launches that the driver refuses.

use super::pass::{Bits, PATHS, Pass, serial};
use super::{alone, assert_no_kept_error, current_context, own_stream, pool_bytes, set_current};
use crate::common::Sizes;
use crate::cuda::cuda;
use lora_kernels::cudarc::driver::{CudaContext, sys};
use lora_kernels::{Device, Error};
use std::ffi::CStr;
use std::ptr;
use std::sync::Arc;

/// A function of the driver that cudarc binds under other names in other versions of CUDA.
fn function<F: Copy>(name: &CStr) -> F {
    // SAFETY: the driver is loaded already.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") }.expect("a driver");
    // SAFETY: the callers name the type of the function.
    *unsafe { driver.get::<F>(name.to_bytes_with_nul()) }.expect("a function of the driver")
}

/// Another context of the same GPU.
pub fn other_context() -> sys::CUcontext {
    type Create = unsafe extern "C" fn(*mut sys::CUcontext, u32, sys::CUdevice) -> sys::CUresult;
    let mut context = ptr::null_mut();
    let before = current_context();
    // SAFETY: writes the handle, and makes the context current.
    unsafe { function::<Create>(c"cuCtxCreate_v2")(&mut context, 0, 0) }
        .result()
        .expect("a second context");
    set_current(before);
    context
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn another_context_may_be_current() {
    let _alone = alone();
    let device = cuda();
    let (before, own, other) = (pool_bytes(), current_context(), other_context());
    for device in [device.clone(), own_stream(&device), device.generic()] {
        for sizes in PATHS {
            set_current(own);
            let expected = serial(&device, sizes, 5);
            set_current(other);
            let device = match device.stream() {
                Some(stream) if device.profile().is_some_and(|profile| profile.hopper()) => {
                    Device::from_stream(stream.clone()).expect("a device")
                }
                _ => device.clone(),
            };
            assert_eq!(serial(&device, sizes, 5), expected, "{sizes} on {device:?}");
            assert_eq!(current_context(), other, "the thread is left as it was");
        }
    }
    set_current(own);
    assert_eq!(pool_bytes(), before, "leaked");
    assert_no_kept_error(&device);
    // SAFETY: nothing was made in it.
    unsafe { sys::cuCtxDestroy_v2(other) }.result().expect("destroyed");
}

/// A device in a context that is not the primary one.
#[test]
#[ignore = "needs a CUDA GPU"]
fn another_context_has_kernels_of_its_own() {
    let _alone = alone();
    let (own, other) = (current_context(), other_context());
    // SAFETY: the context is alive, and is the `CudaContext`'s from now on.
    let context = unsafe { CudaContext::from_raw_context(0, 0, other) }.expect("a context");
    set_current(own);
    let there = Device::from_stream(context.new_stream().expect("a stream")).expect("a device");
    let here = cuda();
    let tensor = Pass::new(&here, PATHS[0], 6).expect("a pass");
    for sizes in PATHS {
        assert_eq!(serial(&there, sizes, 6), serial(&here, sizes, 6), "{sizes}");
    }
    // Tensors of one are refused by the other.
    let mut mixed = Pass::new(&there, PATHS[0], 6).expect("a pass");
    mixed.x = tensor.x;
    assert!(matches!(mixed.run_forward(), Err(Error::Device { argument: "x", .. })));
    assert!(matches!(mixed.forward.on(&here), Err(Error::Device { .. })));
}

/// A stream of a green context with at least this many SMs, and that context.
fn green(sms: u32) -> (sys::CUstream, sys::CUcontext) {
    /// Larger than any version of the driver's own.
    #[repr(C, align(8))]
    #[derive(Clone, Copy)]
    struct Resource([u8; 512]);
    type GetResource = unsafe extern "C" fn(sys::CUdevice, *mut Resource, u32) -> sys::CUresult;
    type Split = unsafe extern "C" fn(
        *mut Resource,
        *mut u32,
        *const Resource,
        *mut Resource,
        u32,
        u32,
    ) -> sys::CUresult;
    type Handle = *mut std::ffi::c_void;
    type Describe = unsafe extern "C" fn(*mut Handle, *mut Resource, u32) -> sys::CUresult;
    type Create = unsafe extern "C" fn(*mut Handle, Handle, sys::CUdevice, u32) -> sys::CUresult;
    type MakeStream = unsafe extern "C" fn(*mut sys::CUstream, Handle, u32, i32) -> sys::CUresult;
    type Context = unsafe extern "C" fn(*mut sys::CUcontext, Handle) -> sys::CUresult;
    let (mut all, mut part, mut rest) =
        ([Resource([0; 512]); 1], [Resource([0; 512]); 1], [Resource([0; 512]); 1]);
    let (mut count, mut described, mut green) = (1, ptr::null_mut(), ptr::null_mut());
    let (mut stream, mut context) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the functions' types and the order in which the driver's manual has them.
    unsafe {
        let ok = |result: sys::CUresult| result.result().expect("a green context");
        ok(function::<GetResource>(c"cuDeviceGetDevResource")(0, all.as_mut_ptr(), 1));
        ok(function::<Split>(c"cuDevSmResourceSplitByCount")(
            part.as_mut_ptr(),
            &mut count,
            all.as_ptr(),
            rest.as_mut_ptr(),
            0,
            sms,
        ));
        let describe = function::<Describe>(c"cuDevResourceGenerateDesc");
        ok(describe(&mut described, part.as_mut_ptr(), 1));
        ok(function::<Create>(c"cuGreenCtxCreate")(&mut green, described, 0, 1));
        ok(function::<MakeStream>(c"cuGreenCtxStreamCreate")(&mut stream, green, 1, 0));
        ok(function::<Context>(c"cuCtxFromGreenCtx")(&mut context, green));
    }
    (stream, context)
}

/// Large enough for launches whose CTAs wait for one another to need more than a few SMs.
const COOPERATIVE: [Sizes; 2] = [Sizes::new(2305, 520, 2056, 72), Sizes::new(4095, 1024, 2176, 24)];

/// Planned for the SMs that the context has.
#[test]
#[ignore = "needs a CUDA GPU"]
fn a_green_context_is_planned_for_its_sms() {
    let _alone = alone();
    let own = current_context();
    let (stream, context) = green(16);
    // SAFETY: both live until the process ends.
    let device = unsafe {
        let context = CudaContext::from_raw_context(0, 0, context).expect("a context");
        std::mem::forget(Arc::clone(&context));
        Device::from_stream(context.wrap_borrowed_stream(stream)).expect("a device")
    };
    set_current(own);
    let sms = device.profile().expect("a CUDA device").sms();
    assert!((16..cuda().profile().expect("a CUDA device").sms()).contains(&sms), "{sms} SMs");
    let limited = cuda().with_sm_limit(sms);
    for sizes in PATHS.into_iter().chain(COOPERATIVE) {
        assert_eq!(serial(&device, sizes, 7), serial(&limited, sizes, 7), "{sizes}");
    }
}

/// Planned for the whole GPU, but on a stream that has a part of it: what MPS may do between two
/// calls.
#[test]
#[ignore = "needs a CUDA GPU"]
fn a_refused_launch_leaves_the_workspace_usable() {
    let _alone = alone();
    let whole = own_stream(&cuda());
    let (stream, _) = green(16);
    // SAFETY: the stream lives until the process ends. It is not of the primary context, whose
    // kernels its launches are: that is what makes them too large.
    let part = unsafe { whole.context().expect("a CUDA device").wrap_borrowed_stream(stream) };
    let part = Device::from_stream(part).expect("a device");
    let mut refused = 0;
    for sizes in COOPERATIVE {
        let expected: Bits = serial(&whole, sizes, 8);
        let mut pass = Pass::new(&whole, sizes, 8).expect("a pass");
        whole.synchronize().expect("all uploaded");
        for _ in 0..3 {
            pass.on(&part).expect("the same context");
            for result in [pass.run_forward(), pass.run_backward()] {
                match result {
                    Ok(()) => {}
                    Err(Error::Driver { call: "cuLaunchKernelEx", .. }) => refused += 1,
                    Err(error) => panic!("{sizes}: {error}"),
                }
            }
            pass.on(&whole).expect("the same context");
            pass.run().expect("both passes enqueued");
            assert_eq!(pass.bits().expect("results"), expected, "{sizes}");
        }
    }
    // Of cooperative launches, which only Hopper's kernels have.
    let hopper = whole.profile().is_some_and(|profile| profile.hopper());
    assert_eq!(refused > 0, hopper, "no launch was too large");
    assert_no_kept_error(&whole);
}
