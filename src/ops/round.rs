//! f32 tensors, rounded to 16 bits.

use crate::call::RoundCall;
use crate::device::{Backend, Device};
use crate::driver::RangeName;
use crate::error::Result;
use crate::tensor::{TensorView, TensorViewMut};
use crate::{cpu, cuda};

/// Rounds each source to its output, to the nearest value and ties to even, in one launch: for an
/// optimiser that keeps f32 master weights of A and every B.
///
/// There are at most 8 sources. They are f32; the outputs are all bf16 or all f16. Each output has
/// the rows and columns of its source, and both are dense. f16 overflows to infinity.
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
