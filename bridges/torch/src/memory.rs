//! Addresses from Python as views.

use lora_kernels::half::{bf16, f16};
use lora_kernels::{DType, Device, Element, Error, Result, TensorView, TensorViewMut};
use std::ptr::NonNull;

/// The first element at an address of the host, or any aligned address for no elements at all.
fn first<E: Element>(address: u64, n: usize) -> Result<NonNull<E>> {
    let pointer = NonNull::new(address as *mut E);
    match pointer.filter(|pointer| pointer.is_aligned()) {
        _ if n == 0 => Ok(NonNull::dangling()),
        Some(pointer) => Ok(pointer),
        None => Err(Error::Misaligned { address, dtype: E::DTYPE }),
    }
}

/// A dense matrix that is read.
///
/// # Safety
/// Unless it is empty, `address` points to its elements, on this device, and nothing writes them
/// during the call. On a CUDA device the call's stream orders their uses.
pub(crate) unsafe fn read<'a>(
    device: &Device,
    address: u64,
    shape: [usize; 2],
    dtype: DType,
) -> Result<TensorView<'a>> {
    /// # Safety
    /// As above.
    unsafe fn host<'a, E: Element>(address: u64, shape: [usize; 2]) -> Result<TensorView<'a>> {
        let n = shape[0] * shape[1];
        // SAFETY: the caller's promise.
        let values = unsafe { std::slice::from_raw_parts(first::<E>(address, n)?.as_ptr(), n) };
        TensorView::from_host(values, shape)
    }
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            _ if device.is_cuda() => TensorView::from_raw(device, address, shape, shape[1], dtype),
            DType::Bf16 => host::<bf16>(address, shape),
            DType::F16 => host::<f16>(address, shape),
            _ => host::<f32>(address, shape),
        }
    }
}

/// A dense matrix that is written.
///
/// # Safety
/// As for [`read`], and nothing reads the elements during the call.
pub(crate) unsafe fn write<'a>(
    device: &Device,
    address: u64,
    shape: [usize; 2],
    dtype: DType,
) -> Result<TensorViewMut<'a>> {
    /// # Safety
    /// As above.
    unsafe fn host<'a, E: Element>(address: u64, shape: [usize; 2]) -> Result<TensorViewMut<'a>> {
        let n = shape[0] * shape[1];
        // SAFETY: the caller's promise.
        let values = unsafe { std::slice::from_raw_parts_mut(first::<E>(address, n)?.as_ptr(), n) };
        TensorViewMut::from_host(values, shape)
    }
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            _ if device.is_cuda() => {
                TensorViewMut::from_raw(device, address, shape, shape[1], dtype)
            }
            DType::Bf16 => host::<bf16>(address, shape),
            DType::F16 => host::<f16>(address, shape),
            _ => host::<f32>(address, shape),
        }
    }
}
