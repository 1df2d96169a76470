//! The update, added to a weight.

use crate::call::MergeCall;
use crate::device::{Backend, Device};
use crate::driver::RangeName;
use crate::error::Result;
use crate::tensor::{TensorView, TensorViewMut};
use crate::{cpu, cuda};

/// out = W0 + s · B A ([Hu et al., 2021](https://arxiv.org/abs/2106.09685), section 4.1, and PEFT's
/// `Linear.merge`). W0 and out are [d, k], A [r, k] and B [d, r]. The sum is in f32 (CPU: f64) and
/// rounded once to the element type of W0.
///
/// In bf16 the rounding keeps 8 significant bits: an update smaller than about 1/256 of a weight
/// vanishes from it, and h of the merged weight differs from h of the adapted layer by that
/// rounding. Unmerging is merging with −s, and exact only up to the rounding: keep W0 if you need
/// it exactly.
///
/// # Errors
/// As for [`Forward::run`](super::Forward::run).
pub fn merge(
    device: &Device,
    w0: TensorView<'_>,
    a: TensorView<'_>,
    b: TensorView<'_>,
    scale: f32,
    mut out: TensorViewMut<'_>,
) -> Result<()> {
    let sizes = [w0.shape().rows(), w0.shape().cols(), a.shape().rows()];
    let dtype = w0.dtype();
    let (w0, out) = (Some(w0), out.reborrow());
    run(device, MergeCall { sizes, dtype, w0, a, b, scale, out, out_name: "out" })
}

/// W += s · B A, in place; with −s it unmerges. W is [d, k], A [r, k] and B [d, r], and [`merge`]
/// describes the rounding.
///
/// # Errors
/// As for [`Forward::run`](super::Forward::run).
pub fn merge_in_place(
    device: &Device,
    mut w: TensorViewMut<'_>,
    a: TensorView<'_>,
    b: TensorView<'_>,
    scale: f32,
) -> Result<()> {
    let sizes = [w.shape().rows(), w.shape().cols(), a.shape().rows()];
    let dtype = w.dtype();
    run(device, MergeCall { sizes, dtype, w0: None, a, b, scale, out: w.reborrow(), out_name: "w" })
}

fn run(device: &Device, call: MergeCall<'_>) -> Result<()> {
    call.check(device)?;
    // Made for each call: there is no operation to keep it.
    let [d, k, r] = call.sizes;
    let name = RangeName::new(format_args!("lora merge {d}×{k} r{r}"));
    let _range = name.enter();
    match &device.backend {
        Backend::Cuda(gpu) => cuda::merge(gpu, call),
        Backend::Cpu => {
            cpu::merge(call);
            Ok(())
        }
    }
}
