//! f32 tensors, rounded to 16 bits.

use crate::call::RoundCall;
use crate::device::{Backend, Device};
use crate::driver::RangeName;
use crate::error::Result;
use crate::tensor::{TensorView, TensorViewMut};
use crate::{cpu, cuda};

/// Each output is its source, rounded to the nearest of its element type: how an optimiser that
/// keeps f32 master weights refreshes A and every B, in one launch.
///
/// Sources are f32, outputs bf16 or f16, all of one type; both are dense, of the same rows and
/// columns, 8 at most. f16 overflows to infinity.
///
/// # Errors
/// [`Error::Count`](crate::Error::Count), and as for [`Forward::run`](super::Forward::run).
pub fn round(
    device: &Device,
    sources: &[TensorView<'_>],
    outputs: &mut [TensorViewMut<'_>],
) -> Result<()> {
    let call = RoundCall { sources, outputs };
    call.check(device)?;
    // Made for each call: there is no operation to keep it.
    let name = RangeName::new("lora round");
    let _range = name.enter();
    match &device.backend {
        Backend::Cuda(gpu) => cuda::round(gpu, call),
        Backend::Cpu => {
            cpu::round(call);
            Ok(())
        }
    }
}
