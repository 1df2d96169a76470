//! Operations of a Llama with a backward pass. candle's own have none, or keep much memory.
//!
//! Each is one node of candle's graph. Its forward pass runs candle's fused kernels where candle
//! has them; its backward pass runs candle's operations outside of the graph, and keeps nothing
//! but arguments and results.

mod attention;
mod cross_entropy;
mod residual;
mod rms_norm;
mod rope;
mod swiglu;

pub use attention::Attention;
pub use cross_entropy::{IGNORE_INDEX, linear_cross_entropy};
pub(crate) use residual::residual;
pub use rms_norm::rms_norm;
pub use rope::{rope, rope_frequencies};
pub use swiglu::swiglu;

use candle_core::{Result, Tensor, bail};

/// Refuses tensors that are not of one element type on one device.
fn check_alike(what: &str, tensors: &[&Tensor]) -> Result<()> {
    for tensor in &tensors[1..] {
        if tensor.dtype() != tensors[0].dtype() {
            bail!("{what}: {:?} and {:?}, expected one type", tensors[0].dtype(), tensor.dtype())
        }
        if !tensor.device().same_device(tensors[0].device()) {
            bail!("{what}: tensors on different devices")
        }
    }
    Ok(())
}
