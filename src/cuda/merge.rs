//! The update, added to a weight.

use super::buffers::Buffers;
use crate::call::MergeCall;
use crate::driver::params::MergeParams;
use crate::driver::{Gpu, LaunchMode};
use crate::error::Result;
use crate::plan::sm80::merge_blocks;

/// out = W + scale · B A, where W is out itself if there is no `w0`.
pub(crate) fn merge(gpu: &Gpu, call: MergeCall<'_>) -> Result<()> {
    let MergeCall { sizes: [d, k, r], dtype, w0, a, b, scale, mut out, out_name } = call;
    let run = gpu.stream.enter()?;
    let mut buffers = Buffers::new(&run);
    let w0 = w0.map(|w0| buffers.read("w0", &w0)).transpose()?;
    let a = buffers.read("a", &a)?;
    let b = buffers.read("b", &b)?;
    let out = buffers.write(out_name, &mut out)?;
    buffers.check_overlap()?;

    let blocks = merge_blocks([d, k]);
    let (d, k, r) = (d as i32, k as i32, r as i32);
    let params = MergeParams { w: w0.unwrap_or(out), b, a, out, d, k, r, scale };
    run.launch(&gpu.kernels.of(dtype).sm80.merge, [blocks, 1], LaunchMode::default(), &params)
}
