//! The launches of the kernels that serve every GPU: kernels/linear.cu, project.cu, grad.cu,
//! reduce.cu.

use super::kernels::{ByRank, Kernel};
use super::launch::{Gradients, Layer, Layers};
use super::params::{GradParams, LinearParams, Operand, ProjectParams, ReduceParams, Segment};
use super::Cuda;
use crate::plan::{self, rank_tile, GradSplit, MAX_PROJECTIONS};
use crate::{DType, Result};
use cudarc::driver::sys;

impl Layers<'_> {
    /// Each with its own columns of S or dS.
    pub(super) fn with_columns(&self) -> impl Iterator<Item = (&Layer, Operand)> {
        self.of.iter().scan(0, |end, layer| {
            let start = *end;
            *end += layer.r;
            Some((layer, self.s.columns_from(start, self.dtype)))
        })
    }
}

impl Cuda {
    /// S, in one launch.
    pub(super) fn mma_project(&self, layers: &Layers<'_>) -> Result<()> {
        let &Layers { dtype, t, k, x: lhs, a: rhs, s: out, of } = layers;
        if layers.rank() == 0 {
            return Ok(());
        }
        let kernels = &self.kernels.of(dtype).project_s;
        self.project(kernels, [t, k], [lhs, rhs, out], of)
    }

    /// H of every layer, of the S that is there.
    pub(super) fn mma_forward(&self, layers: &Layers<'_>) -> Result<()> {
        let &Layers { dtype, t, k, x, .. } = layers;
        let kernel = &self.kernels.of(dtype).linear.forward;
        for (layer, s) in layers.with_columns() {
            let &Layer { d, r, w0, b, h, .. } = layer;
            let segments = [Segment::new(x, w0, k), Segment::new(s, b, r)];
            let segments = if r > 0 { &segments[..] } else { &segments[..1] };
            self.linear(kernel, [t, d], segments, h)?;
        }
        Ok(())
    }

    /// dS, dX if `wants_dx`, dA, and dB of every layer. `partials` is memory for those of any
    /// gradient.
    pub(super) fn mma_backward(
        &self,
        layers: &Layers<'_>,
        wants_dx: bool,
        gradients: &Gradients,
        partials: sys::CUdeviceptr,
    ) -> Result<()> {
        let &Layers { dtype, t, k, x: dx, a, s: ds, of } = layers;
        let &Gradients { x, s, da, db, accumulate } = gradients;
        let (kernels, rank) = (self.kernels.of(dtype), layers.rank());
        for (layer, ds) in layers.with_columns() {
            let one = std::slice::from_ref(layer);
            self.project(&kernels.project_ds, [t, layer.d], [layer.h, layer.b, ds], one)?;
        }
        if wants_dx {
            let base = of.iter().map(|layer| Segment::new(layer.h, layer.w0, layer.d));
            let segments: Vec<_> = base.chain([Segment::new(ds, a, rank)]).collect();
            self.linear(&kernels.linear.input_grad, [t, k], &segments, dx)?;
        }
        let grad = |lhs, rhs, [r, n]: [usize; 2], out, transpose: bool| {
            let split = GradSplit::new(t, r, n);
            self.grad(dtype, t, &split, [lhs, rhs], partials)?;
            let (splits, r, n) = (split.splits as i32, r as i32, n as i32);
            let (transpose, accumulate) = (transpose.into(), accumulate.into());
            self.reduce(ReduceParams { partials, out, splits, r, n, transpose, accumulate })
        };
        grad(ds, x, [rank, k], da, false)?;
        let of_s = Layers { s, ..*layers };
        for ((layer, s), db) in of_s.with_columns().zip(db) {
            grad(s, layer.h, [layer.r, layer.d], db, true)?;
        }
        Ok(())
    }

    /// The sum of the segments' products, m×n.
    fn linear(
        &self,
        kernel: &Kernel,
        [m, n]: [usize; 2],
        segments: &[Segment],
        out: Operand,
    ) -> Result<()> {
        let mut all = [Segment::NONE; MAX_PROJECTIONS + 1];
        all[..segments.len()].copy_from_slice(segments);
        let blocks = plan::linear_blocks(m, n);
        let (m, n, count) = (m as i32, n as i32, segments.len() as i32);
        let params = LinearParams { segments: all, out, m, n, count };
        self.launch(kernel, [blocks, 1], &params)
    }

    /// out = lhs rhsᵀ over k, with as many columns as these layers have ranks, scaled by the scale
    /// of each.
    fn project(
        &self,
        kernels: &ByRank,
        [m, k]: [usize; 2],
        [lhs, rhs, out]: [Operand; 3],
        layers: &[Layer],
    ) -> Result<()> {
        let (mut ends, mut scales) = ([i32::MAX; MAX_PROJECTIONS], [0.0; MAX_PROJECTIONS]);
        let mut r = 0;
        for ((end, scale), layer) in ends.iter_mut().zip(&mut scales).zip(layers) {
            r += layer.r;
            (*end, *scale) = (r as i32, layer.scale);
        }
        let (blocks, kernel) = (plan::project_blocks(m, r), kernels.get(rank_tile(r)));
        let (m, r, k) = (m as i32, r as i32, k as i32);
        self.launch(kernel, [blocks, 1], &ProjectParams { lhs, rhs, out, m, r, k, ends, scales })
    }

    fn grad(
        &self,
        dtype: DType,
        t: usize,
        split: &GradSplit,
        [lhs, rhs]: [Operand; 2],
        partials: sys::CUdeviceptr,
    ) -> Result<()> {
        let kernel = self.kernels.of(dtype).grad.get(rank_tile(split.r));
        let params = GradParams {
            lhs,
            rhs,
            partials: Operand::new(partials, split.n, DType::F32),
            t: t as i32,
            r: split.r as i32,
            n: split.n as i32,
            rows_per_split: split.rows_per_split as i32,
        };
        self.launch(kernel, [split.rank_tiles * split.column_tiles, split.splits], &params)
    }

    fn reduce(&self, params: ReduceParams) -> Result<()> {
        let blocks = [params.n as usize, params.r as usize].map(|extent| extent.div_ceil(32));
        self.launch(&self.kernels.reduce, blocks, &params)
    }
}
