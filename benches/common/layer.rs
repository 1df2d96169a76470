//! One adapted layer on rotating buffers, and the crate's operations on it.

use super::gpu::Gpu;
use super::matrix::{Matrix, Rotating};
use super::Result;
use lora_kernels::cudarc::driver::sys::CUdevice_attribute;
use lora_kernels::ops::{self, BackwardOutputs, Weights};
use lora_kernels::{Accumulation, DType, Device, InputGradient, Problem, Workspace};
use std::cell::RefCell;

/// The factor s of the update. A power of two, so that s·B is exact in B's element type.
pub const SCALE: f32 = 2.0;

/// Above this many tokens the time goes into arithmetic, and it no longer matters whether the
/// weight comes from the L2 cache.
const MEMORY_BOUND_TOKENS: usize = 512;

const MAX_SETS: usize = 32;

pub struct Layer {
    device: Device,
    pub problem: Problem,
    pub x: Rotating,
    pub dh: Rotating,
    pub w0: Rotating,
    pub a: Matrix,
    pub b: Matrix,
    pub s: Rotating,
    pub h: Rotating,
    pub dx: Rotating,
    pub da: Matrix,
    pub db: Matrix,
    workspace: RefCell<Workspace>,
}

/// The standard deviation that makes a product over n of order 1.
pub fn from(n: usize) -> f64 {
    (n as f64).powf(-0.5)
}

/// The sets that are more than twice the L2 cache.
fn sets(gpu: &Gpu, bytes: usize) -> Result<usize> {
    let l2 = gpu.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
    Ok(2 * l2 / bytes + 1)
}

/// So many, of activations.
pub fn activation_sets(gpu: &Gpu, bytes: usize) -> Result<usize> {
    Ok(sets(gpu, bytes)?.clamp(2, MAX_SETS))
}

/// And of weights, where reading them decides the time.
pub fn weight_sets(gpu: &Gpu, t: usize, bytes: usize) -> Result<usize> {
    let all = sets(gpu, bytes)?.min(MAX_SETS);
    Ok(if t <= MEMORY_BOUND_TOKENS { all } else { 1 })
}

impl Layer {
    /// The layer with all its buffers: enough sets of X and dH to be more than twice the L2
    /// cache, and of W0 too where reading it decides the time. The outputs rotate with X.
    pub fn new(gpu: &Gpu, problem: Problem) -> Result<Self> {
        let Problem { t, k, d, r, dtype, .. } = problem;
        let activations = activation_sets(gpu, t * (k + d) * dtype.bytes())?;
        let weights = weight_sets(gpu, t, k * d * dtype.bytes())?;

        let gaussian =
            |shape, std, seed: usize| Matrix::gaussian(gpu, shape, dtype, std, seed as u64);
        let empty = |shape, dtype| Matrix::new(gpu, shape, dtype);
        let rotating = |shape| Rotating::new(activations, |_| empty(shape, dtype));
        let device = &gpu.device;
        let plans = [ops::forward_plan(device, &problem), ops::backward_plan(device, &problem)];
        Ok(Layer {
            device: gpu.device.clone(),
            problem,
            x: Rotating::new(activations, |i| gaussian([t, k], 1.0, 1000 + i))?,
            dh: Rotating::new(activations, |i| gaussian([t, d], 1.0, 2000 + i))?,
            w0: Rotating::new(weights, |i| gaussian([d, k], from(k), 3000 + i))?,
            a: gaussian([r, k], from(k), 4000)?,
            b: gaussian([d, r], from(r), 5000)?,
            s: rotating([t, r])?,
            h: rotating([t, d])?,
            dx: rotating([t, k])?,
            da: empty([r, k], DType::F32)?,
            db: empty([d, r], DType::F32)?,
            workspace: RefCell::new(Workspace::new(device, &plans)?),
        })
    }

    /// s·B, the same numbers as in `b`.
    pub fn scaled_b(&self, gpu: &Gpu) -> Result<Matrix> {
        let Problem { d, r, dtype, .. } = self.problem;
        let std = f64::from(SCALE) * (r as f64).powf(-0.5);
        Matrix::gaussian(gpu, [d, r], dtype, std, 5000)
    }

    /// How many calls take every set at least once.
    pub fn calls(&self) -> usize {
        self.x.sets().max(self.w0.sets())
    }

    fn weights(&self, i: usize) -> Weights<'_> {
        let (w0, a, b) = (self.w0.at(i).view(), self.a.view(), self.b.view());
        Weights { w0, a, b, scale: SCALE }
    }

    pub fn forward(&self, i: usize) -> Result<()> {
        let (x, h, s) = (self.x.at(i).view(), self.h.at(i).view_mut(), self.s.at(i).view_mut());
        let workspace = &mut self.workspace.borrow_mut();
        Ok(ops::forward(&self.device, &self.weights(i), x, h, s, workspace)?)
    }

    pub fn frozen(&self, i: usize) -> Result<()> {
        let (w0, x, h) = (self.w0.at(i).view(), self.x.at(i).view(), self.h.at(i).view_mut());
        Ok(ops::frozen(&self.device, &w0, x, h)?)
    }

    /// Reads the S that `forward(i)` wrote.
    pub fn backward(&self, i: usize, input_gradient: InputGradient) -> Result<()> {
        let (dh, x, s) = (self.dh.at(i).view(), self.x.at(i).view(), self.s.at(i).view());
        let dx = match input_gradient {
            InputGradient::Compute => Some(self.dx.at(i).view_mut()),
            InputGradient::Skip => None,
        };
        let (da, db) = (self.da.view_mut(), self.db.view_mut());
        let out = BackwardOutputs { dx, da, db, accumulation: Accumulation::Overwrite };
        let workspace = &mut self.workspace.borrow_mut();
        Ok(ops::backward(&self.device, &self.weights(i), dh, x, s, out, workspace)?)
    }

    /// Writes W0 + s·B A into `out`.
    pub fn merge(&self, i: usize, out: &Matrix) -> Result<()> {
        Ok(ops::merge(&self.device, &self.weights(i), out.view_mut())?)
    }
}
