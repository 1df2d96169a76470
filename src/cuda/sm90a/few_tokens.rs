//! Launches for few tokens, one for each layer: by kernels/sm90a/decode.cu or
//! kernels/sm90a/short.cu.

use super::grads::{Grads, grads_beside};
use crate::cuda::last::Last;
use crate::cuda::operands::{Gradients, Layer, Layers};
use crate::driver::params::{HopperGradsParams, KernelParams, Operand};
use crate::driver::{ElementKernels, Gpu, Kernel, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::sm90a::grads::Makes;
use crate::problem::Problem;
use bytemuck::Zeroable;

/// out (m×n) = lhs (m×k) · rhs + proj (m×r) · up_weight, and proj = scale · lhs · proj_weight: H
/// and S of a layer, or dX and dS.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Product {
    pub(crate) dtype: DType,
    /// The weights are summed over their rows, as in dX; else over their columns.
    pub(crate) by_columns: bool,
    /// m, n, k and r.
    pub(crate) sizes: [usize; 4],
    pub(crate) lhs: Operand,
    pub(crate) rhs: Operand,
    pub(crate) proj_weight: Operand,
    pub(crate) proj: Operand,
    pub(crate) up_weight: Operand,
    pub(crate) out: Operand,
    pub(crate) scale: f32,
}

impl Product {
    /// H and S of a layer, given its A and its columns of S.
    fn forward(layers: &Layers, layer: &Layer, [a, s]: [Operand; 2]) -> Self {
        Product {
            dtype: layers.dtype,
            by_columns: false,
            sizes: [layers.t, layer.d, layers.k, layer.r],
            lhs: layers.x,
            rhs: layer.w0,
            proj_weight: a,
            proj: s,
            up_weight: layer.b,
            out: layer.h,
            scale: layer.scale,
        }
    }

    /// dX and dS of a layer.
    fn input_grad(layers: &Layers, layer: &Layer) -> Self {
        Product {
            dtype: layers.dtype,
            by_columns: true,
            sizes: [layers.t, layers.k, layer.d, layer.r],
            lhs: layer.h,
            rhs: layer.w0,
            proj_weight: layer.b,
            proj: layers.s,
            up_weight: layers.a,
            out: layers.x,
            scale: layer.scale,
        }
    }
}

/// The schedule of a launch by one of the two kernel files.
pub(crate) trait FewTokens: Copy {
    /// A product, as the kernel takes it.
    type Params: KernelParams;

    /// The same with the gradients.
    type BackwardParams: KernelParams;

    /// The kernel for H and S.
    fn forward(&self, kernels: &ElementKernels) -> Kernel<Self::Params>;

    /// The kernel for dX and dS.
    fn input_grad(&self, kernels: &ElementKernels) -> Kernel<Self::BackwardParams>;

    fn params(&self, product: &Product, flags: u64) -> Result<Self::Params>;

    fn backward_params(product: Self::Params, grads: HopperGradsParams) -> Self::BackwardParams;

    /// CTAs of the grid.
    fn blocks(&self) -> usize;

    /// For the same dS without dX.
    fn without_dx(&self, gpu: &Gpu, problem: &Problem) -> Self;

    /// Whether the launch makes dA and dB too.
    fn makes_grads(&self) -> bool;
}

/// The kernels' first CTAs wait for none, so a launch need not be cooperative, which takes longer.
fn mode(gpu: &Gpu) -> LaunchMode {
    LaunchMode { overlap: gpu.kernels.overlap, cooperative: false }
}

/// H and S of a layer, or H alone where r = 0.
pub(crate) struct Forward<S: FewTokens> {
    kernel: Kernel<S::Params>,
    mode: LaunchMode,
    schedule: S,
    last: Last<(Product, u64), S::Params>,
}

impl<S: FewTokens> Forward<S> {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, schedule: S) -> Self {
        let kernel = schedule.forward(gpu.kernels.of(dtype));
        Forward { kernel, mode: mode(gpu), schedule, last: Last::new() }
    }

    /// Given the layer's A and its columns of S.
    pub(crate) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        layer: &Layer,
        a_and_s: [Operand; 2],
        flags: u64,
    ) -> Result<()> {
        let product = Product::forward(layers, layer, a_and_s);
        let params = || self.schedule.params(&product, flags);
        let grid = [self.schedule.blocks(), 1];
        self.last.launch((product, flags), params, |params| {
            run.launch(&self.kernel, grid, self.mode, params)
        })
    }
}

/// The product, what dA and dB are made of, and the flags.
type Operands = (Product, Option<(Layers, Gradients)>, u64);

/// dX, or dS alone, of a single layer; with gradients, dA and dB too.
pub(crate) struct InputGrad<S: FewTokens> {
    kernel: Kernel<S::BackwardParams>,
    mode: LaunchMode,
    schedule: S,
    last: Last<Operands, S::BackwardParams>,
}

impl<S: FewTokens> InputGrad<S> {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, schedule: S) -> Self {
        let kernel = schedule.input_grad(gpu.kernels.of(dtype));
        InputGrad { kernel, mode: mode(gpu), schedule, last: Last::new() }
    }

    pub(crate) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        gradients: Option<&Gradients>,
        flags: u64,
    ) -> Result<()> {
        let product = Product::input_grad(layers, &layers.of()[0]);
        let params = || {
            let product = self.schedule.params(&product, flags)?;
            let grads = match gradients {
                Some(gradients) => grads_beside(layers, gradients)?,
                None => Zeroable::zeroed(),
            };
            Ok(S::backward_params(product, grads))
        };
        let operands = gradients.map(|gradients| (*layers, *gradients));
        let grid = [self.schedule.blocks(), 1];
        self.last.launch((product, operands, flags), params, |params| {
            run.launch(&self.kernel, grid, self.mode, params)
        })
    }
}

/// dS, dA and dB of a single layer, with dX or without.
pub(crate) struct Backward<S: FewTokens> {
    with_dx: InputGrad<S>,
    without_dx: InputGrad<S>,
    da_db: Grads,
}

impl<S: FewTokens> Backward<S> {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, schedule: S) -> Self {
        let input_grad = |schedule| InputGrad::new(gpu, problem.dtype(), schedule);
        Backward {
            with_dx: input_grad(schedule),
            without_dx: input_grad(schedule.without_dx(gpu, problem)),
            da_db: Grads::new(gpu, problem, Makes::DaDb),
        }
    }

    pub(crate) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        wants_dx: bool,
        gradients: &Gradients,
        flags: u64,
    ) -> Result<()> {
        let launch = if wants_dx { &self.with_dx } else { &self.without_dx };
        if launch.schedule.makes_grads() {
            return launch.run(run, layers, Some(gradients), flags);
        }
        launch.run(run, layers, None, flags)?;
        self.da_db.run(run, layers, gradients, 0)
    }
}
