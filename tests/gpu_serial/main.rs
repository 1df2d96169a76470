//! Threads, streams, contexts and CUDA graphs: what safe code may do on any of them, and that
//! nothing leaks, nothing is read too early, and nobody gets another's error.
//!
//! One test runs at a time, in a process apart from the other tests: some capture, so that the
//! process may not synchronise a context, or not even allocate; others count the bytes that the
//! device's memory pool has in use.

#[path = "../common/mod.rs"]
mod common;
mod contexts;
#[path = "../common/cuda.rs"]
mod cuda;
mod dropout;
mod graphs;
mod layer;
mod numbers;
mod pass;
mod replays;
#[path = "../common/shapes.rs"]
mod shapes;
mod streams;
mod threads;

use cuda::cuda;
use lora_kernels::cudarc::driver::sys;
use lora_kernels::{DType, Device, Tensor};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by a test for as long as it runs.
pub fn alone() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device of a stream that others do not wait for.
pub fn own_stream(device: &Device) -> Device {
    let context = device.context().expect("a CUDA device");
    Device::from_stream(context.new_stream().expect("a stream")).expect("a device")
}

/// Bytes of the device's default memory pool that are in use, after all work.
pub fn pool_bytes() -> u64 {
    let mut pool = std::ptr::null_mut();
    let mut bytes = 0u64;
    // What graphs gave back is freed with the next tensor, a moment after they are gone.
    for _ in 0..3 {
        drop(Tensor::zeros(&cuda(), [1], DType::F32));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let before = current_context();
    set_current(cuda().context().expect("a CUDA device").cu_ctx());
    // SAFETY: the primary context is current, and `bytes` is what the attribute is written to.
    unsafe {
        sys::cuCtxSynchronize().result().expect("all work done");
        sys::cuDeviceGetDefaultMemPool(&mut pool, 0).result().expect("a memory pool");
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        let out = std::ptr::from_mut(&mut bytes).cast();
        sys::cuMemPoolGetAttribute(pool, attribute, out).result().expect("its use");
    }
    set_current(before);
    bytes
}

/// Fails if cudarc keeps an error in the device's context, which would turn up in somebody's call.
pub fn assert_no_kept_error(device: &Device) {
    let context = device.context().expect("a CUDA device");
    assert_eq!(context.check_err(), Ok(()), "an error that nobody was told of");
}

/// The context that is current on this thread.
pub fn current_context() -> sys::CUcontext {
    cuda(); // the driver is initialised
    let mut current = std::ptr::null_mut();
    // SAFETY: writes the handle.
    unsafe { sys::cuCtxGetCurrent(&mut current) }.result().expect("a driver");
    current
}

/// Makes a context current on this thread, as somebody else's code would.
#[allow(clippy::not_unsafe_ptr_arg_deref)] // the driver looks the handle up
pub fn set_current(context: sys::CUcontext) {
    // SAFETY: the context is alive, or null.
    unsafe { sys::cuCtxSetCurrent(context) }.result().expect("a context");
}
