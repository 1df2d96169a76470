//! Launches of kernels/sm80/align.cu.

use crate::cuda::operands::{Handover, Layers};
use crate::driver::params::{AlignParams, AlignedCopy, Operand};
use crate::driver::{Gpu, Kernel, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::manifest::sm80::align::COPIES;
use crate::plan::Needs;
use crate::plan::sm80::{copy_ctas, copy_needs};
use std::iter;

/// Copies with aligned rows of what a pass reads, where its sizes need them.
pub(crate) struct Align {
    kernel: Kernel<AlignParams>,
    dtype: DType,
}

impl Align {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Self {
        Align { kernel: gpu.kernels.of(dtype).sm80.align, dtype }
    }

    /// For a forward pass, also of W0 if its kernels need that: they then sum over the zeros behind
    /// each row too.
    pub(crate) fn run_forward(
        &self,
        run: &Run<'_>,
        layers: &mut Layers,
        with_w0: bool,
        memory: &mut Handover,
    ) -> Result<()> {
        self.run(run, layers.read_by_forward(with_w0), memory)?;
        if with_w0 {
            layers.k = layers.k.next_multiple_of(8);
        }
        Ok(())
    }

    /// For a backward pass, given the X of its dA, with A and W0 or without.
    pub(crate) fn run_backward(
        &self,
        run: &Run<'_>,
        layers: &mut Layers,
        x: &mut Operand,
        with_a_and_w0: [bool; 2],
        memory: &mut Handover,
    ) -> Result<()> {
        let of_x = iter::once((x, [layers.t, layers.k]));
        self.run(run, of_x.chain(layers.read_by_backward(with_a_and_w0)), memory)
    }

    /// For dX of frozen layers, with W0 or without.
    pub(crate) fn run_input_grad(
        &self,
        run: &Run<'_>,
        layers: &mut Layers,
        with_w0: bool,
        memory: &mut Handover,
    ) -> Result<()> {
        self.run(run, layers.read_by_backward([false, with_w0]), memory)
    }

    /// Replaces operands, given their rows and columns, by their copies, all made in one launch.
    /// Those whose size needs no copy stay, and take no memory.
    fn run<'a>(
        &self,
        run: &Run<'_>,
        operands: impl Iterator<Item = (&'a mut Operand, [usize; 2])>,
        memory: &mut Handover,
    ) -> Result<()> {
        let mut copies = [AlignedCopy::NONE; COPIES];
        let mut ctas = 0;
        let operands = operands.filter(|&(_, size)| copy_needs(size) != Needs::default());
        for (copy, (operand, size)) in copies.iter_mut().zip(operands) {
            let [rows, cols] = size;
            let Handover { partials: to, .. } = memory.take(copy_needs(size));
            let to = Operand::new(to, cols.next_multiple_of(8), self.dtype);
            let from = std::mem::replace(operand, to);
            let of_copy = copy_ctas(size);
            ctas += of_copy;
            let [rows, cols, of_copy] = [rows, cols, of_copy].map(|n| n as i32);
            *copy = AlignedCopy { from, to, rows, cols, ctas: of_copy };
        }
        match ctas {
            0 => Ok(()),
            _ => {
                let mode = LaunchMode::default();
                run.launch(&self.kernel, [ctas, 1], mode, &AlignParams { copies })
            }
        }
    }
}
