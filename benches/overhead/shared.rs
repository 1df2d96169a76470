//! Projections that share their input: the crate's operations on them, and what a user would call instead.

use crate::check::{fresh, Agreement};
use crate::common::gpu::Gpu;
use crate::common::layer::{activation_sets, from, weight_sets, SCALE};
use crate::common::matrix::{Matrix, Rotating};
use crate::common::Result;
use crate::cublaslt::{Lt, Operand as Op};
use crate::peers::{product, Planned, Sequence};
use lora_kernels::ops::{self, Projection, SharedBackwardOutputs, SharedWeights, Weights};
use lora_kernels::{Accumulation, DType, Device, Problem, SharedProblem, Workspace};
use std::cell::RefCell;
use std::ops::Range;

/// What each projection has for itself.
struct OfProjection {
    /// Its rows of A, and columns of S.
    ranks: Range<usize>,
    w0: Rotating,
    b: Matrix,
    h: Rotating,
    dh: Rotating,
    db: Matrix,
    /// Where it makes an S of its own.
    own_s: Matrix,
    own_a: Matrix,
}

/// Projections with all their buffers, which rotate as those of a [`Layer`](crate::common::layer::Layer).
pub struct SharedLayer {
    device: Device,
    pub problem: SharedProblem,
    x: Rotating,
    a: Matrix,
    s: Rotating,
    dx: Rotating,
    da: Matrix,
    of: Vec<OfProjection>,
    workspace: RefCell<Workspace>,
}

impl SharedLayer {
    pub fn new(gpu: &Gpu, problem: SharedProblem) -> Result<Self> {
        let (t, k, dtype, rank) = (problem.t, problem.k, problem.dtype, problem.rank());
        let outputs: usize = problem.projections().iter().map(|&(d, _)| d).sum();
        let activations = activation_sets(gpu, t * (k + outputs) * dtype.bytes())?;
        let weights = weight_sets(gpu, t, k * outputs * dtype.bytes())?;

        let gaussian =
            |shape, std, seed: usize| Matrix::gaussian(gpu, shape, dtype, std, seed as u64);
        let empty = |shape, dtype| Matrix::new(gpu, shape, dtype);
        let rotating = |shape| Rotating::new(activations, |_| empty(shape, dtype));
        let a = gaussian([rank, k], from(k), 4000)?;
        let mut of = Vec::new();
        let mut end = 0;
        for (j, &(d, r)) in problem.projections().iter().enumerate() {
            let seed = |first: usize| first + 100 * j;
            let ranks = end..end + r;
            end += r;
            let own_a = empty([r, k], dtype)?;
            own_a.copy_rows(&a, ranks.start)?;
            of.push(OfProjection {
                ranks,
                w0: Rotating::new(weights, |i| gaussian([d, k], from(k), seed(3000) + i))?,
                b: gaussian([d, r], from(r), seed(5000))?,
                h: rotating([t, d])?,
                dh: Rotating::new(activations, |i| gaussian([t, d], 1.0, seed(2000) + i))?,
                db: empty([d, r], DType::F32)?,
                own_s: empty([t, r], dtype)?,
                own_a,
            });
        }
        let device = &gpu.device;
        let mut plans = vec![
            ops::forward_shared_plan(device, &problem),
            ops::backward_shared_plan(device, &problem),
        ];
        for &(d, r) in problem.projections() {
            plans.push(ops::forward_plan(device, &Problem::new(t, k, d, r, dtype)?));
        }
        Ok(SharedLayer {
            device: device.clone(),
            problem,
            x: Rotating::new(activations, |i| gaussian([t, k], 1.0, 1000 + i))?,
            a,
            s: rotating([t, rank])?,
            dx: rotating([t, k])?,
            da: empty([rank, k], DType::F32)?,
            of,
            workspace: RefCell::new(Workspace::new(device, &plans)?),
        })
    }

    /// How many calls take every set at least once.
    pub fn calls(&self) -> usize {
        self.x.sets().max(self.of[0].w0.sets())
    }

    fn projections(&self, i: usize) -> Vec<Projection<'_>> {
        let of_each = self.of.iter();
        of_each
            .map(|of| Projection { w0: of.w0.at(i).view(), b: of.b.view(), scale: SCALE })
            .collect()
    }

    pub fn forward(&self, i: usize) -> Result<()> {
        let projections = self.projections(i);
        let weights = SharedWeights { a: self.a.view(), projections: &projections };
        let mut h: Vec<_> = self.of.iter().map(|of| of.h.at(i).view_mut()).collect();
        let (x, s) = (self.x.at(i).view(), self.s.at(i).view_mut());
        let workspace = &mut self.workspace.borrow_mut();
        Ok(ops::forward_shared(&self.device, &weights, x, &mut h, s, workspace)?)
    }

    /// One projection after the other.
    pub fn forward_apart(&self, i: usize) -> Result<()> {
        let workspace = &mut self.workspace.borrow_mut();
        for of in &self.of {
            let (w0, a, b) = (of.w0.at(i).view(), of.own_a.view(), of.b.view());
            let weights = Weights { w0, a, b, scale: SCALE };
            let (x, h, s) = (self.x.at(i).view(), of.h.at(i).view_mut(), of.own_s.view_mut());
            ops::forward(&self.device, &weights, x, h, s, workspace)?;
        }
        Ok(())
    }

    /// Reads the S that `forward(i)` wrote.
    pub fn backward(&self, i: usize) -> Result<()> {
        let projections = self.projections(i);
        let weights = SharedWeights { a: self.a.view(), projections: &projections };
        let dh: Vec<_> = self.of.iter().map(|of| of.dh.at(i).view()).collect();
        let mut db: Vec<_> = self.of.iter().map(|of| of.db.view_mut()).collect();
        let out = SharedBackwardOutputs {
            dx: Some(self.dx.at(i).view_mut()),
            da: self.da.view_mut(),
            db: &mut db,
            accumulation: Accumulation::Overwrite,
        };
        let (x, s) = (self.x.at(i).view(), self.s.at(i).view());
        let workspace = &mut self.workspace.borrow_mut();
        Ok(ops::backward_shared(&self.device, &weights, &dh, x, s, out, workspace)?)
    }
}

/// cuBLASLt's products, one projection after the other. A peer is absent where it has no algorithm.
pub struct SharedPeers<'a> {
    /// H = X W0ᵀ of each.
    pub frozen: Option<Sequence<'a>>,
    /// dX = dH W0 of the first, and dX += dH W0 of the others.
    pub frozen_dx: Option<Sequence<'a>>,
    /// H = X W0ᵀ, X Aᵀ, and H += s · (X Aᵀ) Bᵀ in place.
    pub addmm_forward: Option<Sequence<'a>>,
    /// dS, dX = dH W0, dX += dS A in place, dA and dB in f32.
    pub addmm_backward: Option<Sequence<'a>>,
}

/// X Aᵀ without the scale and dS of all projections, beside each other.
pub struct SharedPeerBuffers {
    s: Rotating,
    ds: Rotating,
}

impl SharedPeerBuffers {
    pub fn new(gpu: &Gpu, layer: &SharedLayer) -> Result<Self> {
        let shape = [layer.problem.t, layer.problem.rank()];
        let rotating =
            || Rotating::new(layer.x.sets(), |_| Matrix::new(gpu, shape, layer.problem.dtype));
        Ok(SharedPeerBuffers { s: rotating()?, ds: rotating()? })
    }
}

impl<'a> SharedPeers<'a> {
    /// Plans and tunes all products. The layer's S must have been computed for every set.
    pub fn new(
        lt: &'a Lt<'a>,
        layer: &'a SharedLayer,
        buffers: &'a SharedPeerBuffers,
    ) -> Result<Self> {
        let product = |scales, operands: &dyn Fn(usize) -> [Op<'a>; 3]| {
            product(lt, layer.calls(), scales, operands)
        };
        let (x, dx) = (|i| layer.x.at(i), |i| layer.dx.at(i));
        let (mut frozen, mut frozen_dx) = (Vec::new(), Vec::new());
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        for (j, of) in layer.of.iter().enumerate() {
            let ranks = || of.ranks.clone();
            let (w0, h, dh) = (|i| of.w0.at(i), |i| of.h.at(i), |i| of.dh.at(i));
            let (a, b) = (Op::rows(&layer.a, ranks()), &of.b);
            let s = |i| Op::columns(buffers.s.at(i), ranks());
            let ds = |i| Op::columns(buffers.ds.at(i), ranks());
            let s_of_ours = |i| Op::columns(layer.s.at(i), ranks());
            let da = Op::rows(&layer.da, ranks());
            let first = if j == 0 { 0.0 } else { 1.0 };

            let make_h =
                product([1.0, 0.0], &|i| [x(i).into(), Op::transposed(w0(i)), h(i).into()])?;
            let make_s = product([1.0, 0.0], &|i| [x(i).into(), Op::transposed(a), s(i)])?;
            let update = product([SCALE, 1.0], &|i| [s(i), Op::transposed(b), h(i).into()])?;
            frozen.push(make_h.clone());
            forward.extend([make_h, make_s, update]);

            let make_dx = product([1.0, first], &|i| [dh(i).into(), w0(i).into(), dx(i).into()])?;
            let make_ds = product([SCALE, 0.0], &|i| [dh(i).into(), b.into(), ds(i)])?;
            let update = product([1.0, 1.0], &|i| [ds(i), a, dx(i).into()])?;
            let make_da = product([1.0, 0.0], &|i| [Op::transposed(ds(i)), x(i).into(), da])?;
            let make_db =
                product([1.0, 0.0], &|i| [Op::transposed(dh(i)), s_of_ours(i), Op::from(&of.db)])?;
            frozen_dx.push(make_dx.clone());
            backward.extend([make_ds, make_dx, update, make_da, make_db]);
        }
        let sequence =
            |products: &[Planned<'a>]| Sequence::new(&products.iter().collect::<Vec<_>>());
        Ok(SharedPeers {
            frozen: sequence(&frozen),
            frozen_dx: sequence(&frozen_dx),
            addmm_forward: sequence(&forward),
            addmm_backward: sequence(&backward),
        })
    }
}

/// Runs everything once over the first buffers and compares the results. Returns the largest
/// difference, relative in norm.
pub fn agreement(layer: &SharedLayer, peers: &SharedPeers<'_>) -> Result<f64> {
    let mut agreement = Agreement::default();
    let h: Vec<&Matrix> = layer.of.iter().map(|of| of.h.at(0)).collect();
    let ours = fresh(&h, || layer.forward(0))?;
    agreement.compare(["H", "one after another"], &ours, &fresh(&h, || layer.forward_apart(0))?)?;
    if let Some(peer) = &peers.addmm_forward {
        agreement.compare(["H", "addmm"], &ours, &fresh(&h, || peer.run(0))?)?;
    }
    let mut gradients = vec![layer.dx.at(0), &layer.da];
    gradients.extend(layer.of.iter().map(|of| &of.db));
    let ours = fresh(&gradients, || layer.backward(0))?;
    if let Some(peer) = &peers.addmm_backward {
        let theirs = fresh(&gradients, || peer.run(0))?;
        agreement.compare(["dX, dA and dB", "addmm"], &ours, &theirs)?;
    }
    Ok(agreement.0)
}
