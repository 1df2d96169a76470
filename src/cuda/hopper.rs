//! The launch of kernels/hopper_linear.cu.

use super::kernels::LinearKernels;
use super::launch::{Linear, Product};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::{plan, DType, Result};
use cudarc::driver::{sys, DeviceRepr};

/// As in kernels/hopper_linear.cu.
#[repr(C)]
struct HopperLinearParams {
    lhs: TensorMap,
    rhs: TensorMap,
    down: TensorMap,
    lhs_ext: TensorMap,
    rhs_ext: TensorMap,
    out: TensorMap,
    s: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    m: i32,
    n: i32,
    k: i32,
    r: i32,
    scale: f32,
    projecting_pairs: i32,
}

// The same size is asserted in the kernel.
const _: () = assert!(size_of::<HopperLinearParams>() == 832);

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for HopperLinearParams {}

impl Cuda {
    /// A product of aligned operands. With `projecting` pairs of blocks and flags, which must be
    /// zeros, a forward product makes lhs_ext too.
    pub(super) fn hopper_linear(
        &self,
        which: Linear,
        kernels: &LinearKernels,
        dtype: DType,
        [m, n, k, r]: [usize; 4],
        product: &Product,
        projecting: Option<(usize, sys::CUdeviceptr)>,
    ) -> Result<()> {
        // A matrix of rows×inner, or inner×rows where the kernel reads it MN-major. All boxes have 64
        // columns, which is what the swizzle allows.
        let k_major = |operand: Operand, rows, inner, box_rows| {
            TensorMap::new(operand.data, [rows, inner], dtype, box_rows)
        };
        let either = |operand: Operand, rows, inner, box_rows| match which {
            Linear::Forward => k_major(operand, rows, inner, box_rows),
            Linear::InputGrad => k_major(operand, inner, rows, 64),
        };
        let (lhs, rhs) = (k_major(product.lhs, m, k, 128)?, either(product.rhs, n, k, 128)?);
        let (mut down, mut lhs_ext, mut rhs_ext) = (lhs, lhs, rhs); // never read if r = 0
        if r > 0 {
            if projecting.is_some() {
                down = k_major(product.down, r, k, 16)?;
            }
            lhs_ext = k_major(product.lhs_ext, m, r, 128)?;
            rhs_ext = either(product.rhs_ext, n, r, 128)?;
        }
        let out = k_major(product.out, m, n, 64)?;

        let (pairs, flags) = projecting.unwrap_or((0, 0));
        let blocks = [plan::hopper_linear_blocks(m, n, pairs, self.profile().sms), 1];
        let [m, n, k, r] = [m, n, k, r].map(|size| size as i32);
        let params = HopperLinearParams {
            lhs,
            rhs,
            down,
            lhs_ext,
            rhs_ext,
            out,
            s: product.lhs_ext.data,
            flags,
            m,
            n,
            k,
            r,
            scale: product.scale,
            projecting_pairs: pairs as i32,
        };
        match projecting {
            Some(_) => self.launch_cooperative(which.of(kernels), blocks, &params),
            None => self.launch(which.of(kernels), blocks, &params),
        }
    }
}
