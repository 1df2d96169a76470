//! One adapted layer of 1 to 4 projections on rotating buffers, and the crate's operations on it.

use super::Result;
use super::gpu::Gpu;
use super::matrix::{Matrix, Rotating};
use super::results::outputs;
use lora_kernels::cudarc::driver::sys::CUdevice_attribute;
use lora_kernels::ops::{self, Backward, BaseForward, Forward, Path, Weights};
use lora_kernels::ops::{Accumulation, GradientsMut};
use lora_kernels::{DType, Device, Dropout, Problem, Workspace, WorkspaceSize};
use std::cell::RefCell;
use std::ops::Range;

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
    pub a: Matrix,
    pub s: Rotating,
    pub dx: Rotating,
    pub da: Matrix,
    pub projections: Vec<Projection>,
    forward: Forward,
    backward: Backward,
    workspace: RefCell<Workspace>,
}

/// What each projection has for itself.
pub struct Projection {
    /// Its rows of A and of dA, and columns of S.
    pub ranks: Range<usize>,
    pub w0: Rotating,
    pub b: Matrix,
    pub h: Rotating,
    pub dh: Rotating,
    pub db: Matrix,
    base: BaseForward,
    /// The projection as a layer by itself, which needs a dense S of its own.
    forward: Forward,
    own_s: Matrix,
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

impl Layer {
    /// The layer with all its buffers: enough sets of X and dH to be more than twice the L2
    /// cache, and of W0 too where reading it decides the time. The outputs rotate with X.
    pub fn new(gpu: &Gpu, problem: Problem) -> Result<Self> {
        let (t, k, dtype, rank) = (problem.t(), problem.k(), problem.dtype(), problem.rank());
        let d: usize = outputs(&problem).iter().sum();
        let activations = sets(gpu, t * (k + d) * dtype.bytes())?.clamp(2, MAX_SETS);
        let weights = match t <= MEMORY_BOUND_TOKENS {
            true => sets(gpu, k * d * dtype.bytes())?.min(MAX_SETS),
            false => 1,
        };

        let gaussian =
            |shape, std, seed: usize| Matrix::gaussian(gpu, shape, dtype, std, seed as u64);
        let empty = |shape, dtype| Matrix::new(gpu, shape, dtype);
        let rotating = |shape| Rotating::new(activations, |_| empty(shape, dtype));
        let device = &gpu.device;
        let (forward, backward) =
            (Forward::new(device, &problem)?, Backward::new(device, &problem)?);
        let mut workspace = forward.workspace().max(backward.workspace());
        let (mut projections, mut end) = (Vec::new(), 0);
        for (j, &(d, r)) in problem.projections().iter().enumerate() {
            let seed = |first: usize| first + 100 * j;
            let ranks = end..end + r;
            end += r;
            let forward = Forward::new(device, &Problem::single(t, k, d, r, dtype)?)?;
            let base = BaseForward::new(device, t, [d, k], dtype)?;
            workspace = workspace.max(forward.workspace()).max(base.workspace());
            projections.push(Projection {
                ranks,
                w0: Rotating::new(weights, |i| gaussian([d, k], from(k), seed(3000) + i))?,
                b: gaussian([d, r], from(r), seed(5000))?,
                h: rotating([t, d])?,
                dh: Rotating::new(activations, |i| gaussian([t, d], 1.0, seed(2000) + i))?,
                db: empty([d, r], DType::F32)?,
                base,
                forward,
                own_s: empty([t, r], dtype)?,
            });
        }
        Ok(Layer {
            device: device.clone(),
            problem,
            x: Rotating::new(activations, |i| gaussian([t, k], 1.0, 1000 + i))?,
            a: gaussian([rank, k], from(k), 4000)?,
            s: rotating([t, rank])?,
            dx: rotating([t, k])?,
            da: empty([rank, k], DType::F32)?,
            projections,
            forward,
            backward,
            workspace: RefCell::new(Workspace::new(device, workspace)?),
        })
    }

    /// How many calls take every set at least once.
    pub fn calls(&self) -> usize {
        self.x.sets().max(self.projections[0].w0.sets())
    }

    pub fn forward_path(&self) -> Path {
        self.forward.path()
    }

    pub fn backward_path(&self) -> Path {
        self.backward.path()
    }

    /// Of the first projection.
    pub fn base_path(&self) -> Path {
        self.projections[0].base.path()
    }

    fn weights(&self, i: usize) -> Vec<ops::Projection<'_>> {
        self.projections.iter().map(|one| one.weights(i)).collect()
    }

    /// Makes room for operations that need this workspace.
    pub fn reserve(&self, size: WorkspaceSize) -> Result<()> {
        Ok(self.workspace.borrow_mut().reserve(&self.device, size)?)
    }

    /// The operations of the same problem with dropout.
    pub fn with_dropout(&self) -> Result<(Forward, Backward)> {
        let problem = self.problem.with_dropout(true);
        let forward = Forward::new(&self.device, &problem)?;
        let backward = Backward::new(&self.device, &problem)?;
        self.reserve(forward.workspace().max(backward.workspace()))?;
        Ok((forward, backward))
    }

    pub fn forward(&self, i: usize) -> Result<()> {
        self.forward_by(&self.forward, None, i)
    }

    /// By another operation of the same problem.
    pub fn forward_by(
        &self,
        forward: &Forward,
        dropout: Option<Dropout<'static>>,
        i: usize,
    ) -> Result<()> {
        let projections = self.weights(i);
        let mut weights = Weights::new(self.a.view(), &projections);
        weights.dropout = dropout;
        let mut h: Vec<_> = self.projections.iter().map(|one| one.h.at(i).view_mut()).collect();
        let (x, s) = (self.x.at(i).view(), self.s.at(i).view_mut());
        Ok(forward.run(&weights, x, &mut h, s, &mut self.workspace.borrow_mut())?)
    }

    /// One projection after the other, each with an S of its own.
    pub fn forward_apart(&self, i: usize) -> Result<()> {
        for one in &self.projections {
            let projection = [one.weights(i)];
            let weights = Weights::new(self.a.view().rows(one.ranks.clone())?, &projection);
            let (x, h, s) = (self.x.at(i).view(), one.h.at(i).view_mut(), one.own_s.view_mut());
            one.forward.run(&weights, x, &mut [h], s, &mut self.workspace.borrow_mut())?;
        }
        Ok(())
    }

    /// The frozen layer alone, one projection after the other.
    pub fn base(&self, i: usize) -> Result<()> {
        for one in &self.projections {
            let (w0, x, h) = (one.w0.at(i).view(), self.x.at(i).view(), one.h.at(i).view_mut());
            one.base.run(w0, x, h, &mut self.workspace.borrow_mut())?;
        }
        Ok(())
    }

    /// Reads the S that `forward(i)` wrote.
    pub fn backward(&self, i: usize) -> Result<()> {
        self.run_backward(&self.backward, None, i, true)
    }

    /// By another operation of the same problem.
    pub fn backward_by(
        &self,
        backward: &Backward,
        dropout: Option<Dropout<'static>>,
        i: usize,
    ) -> Result<()> {
        self.run_backward(backward, dropout, i, true)
    }

    /// The same without dX: dA and dB alone.
    pub fn backward_ab(&self, i: usize) -> Result<()> {
        self.run_backward(&self.backward, None, i, false)
    }

    fn run_backward(
        &self,
        backward: &Backward,
        dropout: Option<Dropout<'static>>,
        i: usize,
        with_dx: bool,
    ) -> Result<()> {
        let projections = self.weights(i);
        let mut weights = Weights::new(self.a.view(), &projections);
        weights.dropout = dropout;
        let dh: Vec<_> = self.projections.iter().map(|one| one.dh.at(i).view()).collect();
        let mut db: Vec<_> = self.projections.iter().map(|one| one.db.view_mut()).collect();
        let (da, accumulation) = (self.da.view_mut(), Accumulation::Overwrite);
        let out = GradientsMut { da, db: &mut db, accumulation };
        let (x, s) = (self.x.at(i).view(), self.s.at(i).view());
        let workspace = &mut self.workspace.borrow_mut();
        Ok(match with_dx {
            true => {
                let dx = self.dx.at(i).view_mut();
                backward.run(&weights, &dh, x, s, dx, out, workspace)
            }
            false => backward.run_params(&weights, &dh, x, s, out, workspace),
        }?)
    }

    /// Writes W0 + s·B A of the first projection into `out`.
    pub fn merge(&self, i: usize, out: &Matrix) -> Result<()> {
        let one = &self.projections[0];
        let a = self.a.view().rows(one.ranks.clone())?;
        let (w0, b) = (one.w0.at(i).view(), one.b.view());
        Ok(ops::merge(&self.device, w0, a, b, SCALE, out.view_mut())?)
    }
}

impl Projection {
    fn weights(&self, i: usize) -> ops::Projection<'_> {
        ops::Projection::new(self.w0.at(i).view(), self.b.view(), SCALE)
    }
}
