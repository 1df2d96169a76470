//! Launches of kernels/sm80/align.cu.

use crate::cuda::operands::Handover;
use crate::driver::params::{AlignParams, AlignedCopy, Operand};
use crate::driver::{Gpu, Kernel, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::manifest::sm80::align::{COLS, COPIES};
use crate::plan::Needs;
use crate::plan::sm80::{align_grid, copy_needs};

/// Copies of operands, with aligned rows.
pub(super) struct Align {
    kernel: Kernel<AlignParams>,
    dtype: DType,
}

impl Align {
    pub(super) fn new(gpu: &Gpu, dtype: DType) -> Self {
        Align { kernel: gpu.kernels.of(dtype).sm80.align, dtype }
    }

    /// Replaces operands, given their rows and columns, by their copies, all made in one launch.
    /// Aligned ones stay, and those whose size needs no copy: for these there is no memory.
    pub(super) fn run<'a>(
        &self,
        run: &Run<'_>,
        operands: impl Iterator<Item = (&'a mut Operand, [usize; 2])>,
        memory: &mut Handover,
    ) -> Result<()> {
        let mut copies = [AlignedCopy::NONE; COPIES];
        let mut sizes = [[0, 0]; COPIES];
        for ((copy, copied), (operand, size)) in copies.iter_mut().zip(&mut sizes).zip(operands) {
            let needs = copy_needs(size);
            let Handover { partials: to, .. } = memory.take(needs);
            if needs == Needs::default() || operand.is_aligned() {
                continue;
            }
            let [rows, cols] = size;
            let to = Operand::new(to, cols.next_multiple_of(8), self.dtype);
            let from = std::mem::replace(operand, to);
            let [rows, cols, ctas] = [rows, cols, cols.div_ceil(COLS)].map(|n| n as i32);
            *copy = AlignedCopy { from, to, rows, cols, ctas };
            *copied = size;
        }
        match align_grid(sizes.into_iter()) {
            [0, _] => Ok(()),
            grid => run.launch(&self.kernel, grid, LaunchMode::default(), &AlignParams { copies }),
        }
    }
}
