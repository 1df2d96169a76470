//! Adapted linear layers that own their tensors.

use super::adapter::Adapter;
use super::cache::OpCache;
use super::passes::{LayerGradients, LayerOutput, Saved};
use super::projection::LayerProjection;
use crate::call::{Accumulation, GradientsMut, Projection, Weights, names};
use crate::device::Device;
use crate::dropout::Dropout;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{self, Backward, BaseForward};
use crate::problem::{Problem, check_count};
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::workspace::{Workspace, WorkspaceSize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Frozen weights W0ᵢ [dᵢ, k] of the same x, each with an adapter: hᵢ = W0ᵢ x + sᵢ · Bᵢ (Aᵢ x)
/// ([Hu et al., 2021](https://arxiv.org/abs/2106.09685), section 4.1; PEFT's `lora.Linear`).
///
/// [`LoraLinear::new`] makes a layer of one projection. [`LoraLinear::group`] makes one of up to
/// [`MAX_PROJECTIONS`](crate::MAX_PROJECTIONS), with a d, an r and a scale each: q, k and v of an
/// attention, or gate and up of a gated MLP. With R the sum of the ranks, the layer keeps all A
/// stacked in one [R, k]. A call computes one S, and one dX that is summed over the projections
/// before it is rounded.
///
/// A call runs on the stream of its x, in the CUDA context of the weights, and allocates what it
/// returns. The layer keeps the operations of the 16 numbers of tokens used last, and one workspace
/// that grows. Calls from several threads and streams are serialised by that workspace. For your
/// own buffers, or in a CUDA graph, use [`LoraLinear::forward_into`] and the operations in [`ops`].
///
/// ```
/// use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, LoraLinear, Tensor};
///
/// # fn main() -> lora_kernels::Result<()> {
/// let device = Device::cuda(0).unwrap_or(Device::cpu());
/// let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::Bf16);
/// let (t, k) = (16, 64);
/// // q has more heads than k and v.
/// let mut projections = Vec::new();
/// for d in [64, 32, 32] {
///     let config = AdapterConfig::new(8).with_seed(projections.len() as u64);
///     projections.push((zeros([d, k])?, Adapter::new(&device, [d, k], DType::Bf16, &config)?));
/// }
/// let layer = LoraLinear::group(projections)?;
///
/// let x = zeros([t, k])?;
/// let out = layer.forward(&x)?;
/// assert_eq!(out.h[0].shape().dims(), [t, 64]);
///
/// let mut gradients = layer.zero_gradients()?;
/// let dh = [&zeros([t, 64])?, &zeros([t, 32])?, &zeros([t, 32])?];
/// let dx = layer.backward(&dh, &out.saved, &mut gradients, Accumulation::Overwrite)?;
/// assert_eq!(dx.shape().dims(), [t, k]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LoraLinear {
    a: Tensor,
    projections: Vec<LayerProjection>,
    merged: bool,
    /// The sizes, with T = 0.
    problem: Problem,
    training: Option<Training>,
    forwards: OpCache<ops::Forward>,
    backwards: OpCache<Backward>,
    bases: OpCache<Vec<BaseForward>>,
    workspace: Mutex<Option<Workspace>>,
}

/// Dropout of the forward passes from now on.
#[derive(Debug)]
struct Training {
    p: f32,
    seed: u64,
    /// Rows that passes have had.
    rows: AtomicU64,
}

impl LoraLinear {
    /// A layer of a frozen weight [d, k] and an adapter of the same element type and device.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if they do not fit together.
    pub fn new(w0: Tensor, adapter: Adapter) -> Result<Self> {
        LoraLinear::group(vec![(w0, adapter)])
    }

    /// A layer of frozen weights [d, k] with an adapter each, all of one k, one element type and
    /// one device. If there are several, it copies the A of every adapter into the stacked one.
    ///
    /// # Errors
    /// [`Error::Count`] unless there are 1 to [`MAX_PROJECTIONS`](crate::MAX_PROJECTIONS) of them;
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if a weight does not fit its adapter
    /// or the first weight, named as `projections[1].w0`; [`Error::OutOfMemory`].
    pub fn group(projections: Vec<(Tensor, Adapter)>) -> Result<Self> {
        check_count(projections.len())?;
        let first = &projections[0].0;
        let (k, dtype) = (first.shape().cols(), first.dtype());
        for ((w0, adapter), names) in projections.iter().zip(names(projections.len())) {
            adapter.check_weight(names.w0, w0)?;
            if w0.shape().cols() != k {
                let expected = format!("{:?}, as projections[0]", [w0.shape().rows(), k]);
                return Err(Error::Shape { argument: names.w0, expected, got: w0.shape() });
            }
            if w0.dtype() != dtype {
                let expected = "the element type of projections[0]";
                return Err(Error::DType { argument: names.w0, expected, got: w0.dtype() });
            }
            if !w0.device().shares_memory_with(first.device()) {
                let (expected, got) = (first.device().to_string(), w0.device().to_string());
                return Err(Error::Device { argument: names.w0, expected, got });
            }
        }
        let size = |(w0, adapter): &(Tensor, Adapter)| (w0.shape().rows(), adapter.rank());
        let sizes: Vec<_> = projections.iter().map(size).collect();
        let problem = Problem::new(0, k, &sizes, dtype)?;

        let device = first.device().clone();
        let (mut all_a, mut of_each, mut end) = (Vec::new(), Vec::new(), 0);
        for (w0, adapter) in projections {
            let rows = end..end + adapter.rank();
            end = rows.end;
            let (alpha, scaling) = (adapter.alpha(), adapter.scaling());
            let (a, b) = adapter.into_tensors();
            all_a.push(a);
            of_each.push(LayerProjection { w0, b, alpha, scaling, rows });
        }
        let a = match all_a.len() {
            1 => all_a.remove(0),
            _ => {
                let views: Vec<_> = all_a.iter().map(Tensor::view).collect();
                Tensor::stacked(&device, "a", &views)?
            }
        };
        Ok(LoraLinear {
            a,
            projections: of_each,
            merged: false,
            problem,
            training: None,
            forwards: OpCache::new(),
            backwards: OpCache::new(),
            bases: OpCache::new(),
            workspace: Mutex::new(None),
        })
    }

    /// The A of all projections, stacked in their order, [R, k].
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// The projections, in the order in which they were given.
    pub fn projections(&self) -> &[LayerProjection] {
        &self.projections
    }

    /// From now on [`LoraLinear::forward`] drops elements of the adapters' input with probability
    /// p: see [`Dropout`]. Every pass has a mask of its own, whose rows follow on those of the pass
    /// before; the first pass begins with row `offset`. Give every layer of a model another seed.
    /// The projections of a group share the mask: for one each, make each a layer of its own.
    /// [`LoraLinear::infer`] and [`LoraLinear::forward_into`] drop nothing.
    ///
    /// # Errors
    /// [`Error::Dropout`] unless 0 ≤ p < 1.
    pub fn train(&mut self, p: f32, seed: u64, offset: u64) -> Result<()> {
        let p = Dropout::new(p, seed, offset)?.p();
        self.training = (p > 0.0).then_some(Training { p, seed, rows: AtomicU64::new(offset) });
        Ok(())
    }

    /// From now on nothing is dropped, as in a new layer.
    pub fn eval(&mut self) {
        self.training = None;
    }

    /// The dropout of the next forward pass: in a checkpoint, p, seed and offset let training go on
    /// as if it had not stopped.
    pub fn dropout(&self) -> Option<Dropout<'static>> {
        self.training.as_ref().map(|training| training.at(training.rows.load(Ordering::Relaxed)))
    }

    /// Whether [`LoraLinear::merge`] has folded the adapters into the weights.
    pub fn is_merged(&self) -> bool {
        self.merged
    }

    /// A [R, k] and the B [d, r] of every projection, for an optimiser to update in place.
    ///
    /// # Errors
    /// [`Error::Merged`] while the adapters are merged: [`LoraLinear::unmerge`] would subtract
    /// another update than was added.
    pub fn tensors_mut(&mut self) -> Result<(&mut Tensor, Vec<&mut Tensor>)> {
        check_merged(self.merged, false)?;
        Ok((&mut self.a, self.projections.iter_mut().map(|one| &mut one.b).collect()))
    }

    /// Rounds f32 master weights, A [R, k] and the B [d, r] of every projection, to the layer's A
    /// and B, in one launch: see [`ops::round`].
    ///
    /// # Errors
    /// [`Error::Merged`] while the adapters are merged; [`Error::DType`] if the layer is f32;
    /// [`Error::Shape`], [`Error::Count`] or [`Error::Device`] if the masters do not fit.
    pub fn round_from(&mut self, a: &Tensor, b: &[&Tensor]) -> Result<()> {
        let (device, count) = (self.device().clone(), self.projections.len());
        if b.len() != count {
            let expected = format!("{count}, one for every projection");
            return Err(Error::Count { argument: "b", expected, got: b.len() });
        }
        let (own_a, own_b) = self.tensors_mut()?;
        let sources: Vec<_> = [a].iter().chain(b).map(|tensor| tensor.view()).collect();
        let mut outputs: Vec<_> = [own_a].into_iter().chain(own_b).map(Tensor::view_mut).collect();
        ops::round(&device, &sources, &mut outputs)
    }

    /// The number of trained parameters: the sum of all r·(d + k).
    pub fn parameters(&self) -> usize {
        let b = self.projections.iter().map(|projection| projection.b.shape().elements());
        self.a.shape().elements() + b.sum::<usize>()
    }

    /// Copies of the adapters, each with its own A [r, k]: to save them, say.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Driver`]; [`Error::Capture`] while the stream captures.
    pub fn adapters(&self) -> Result<Vec<Adapter>> {
        let adapter = |projection: &LayerProjection| {
            let LayerProjection { b, alpha, scaling, rows, .. } = projection;
            let a = self.a.view().rows(rows.clone())?;
            let a = Tensor::stacked(self.device(), "a", &[a])?;
            Adapter::from_tensors(a, b.try_clone()?, *alpha, *scaling)
        };
        self.projections.iter().map(adapter).collect()
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        self.a.device()
    }

    /// W0, B and s of every projection, for the operations in [`ops`]: together with the view of
    /// [`LoraLinear::a`] they are the [`Weights`].
    ///
    /// # Errors
    /// [`Error::Merged`] while the adapters are merged: the operations would add them again.
    pub fn views(&self) -> Result<Vec<Projection<'_>>> {
        check_merged(self.merged, false)?;
        Ok(self.projections.iter().map(LayerProjection::view).collect())
    }

    /// h [..., d] of every projection and what the backward pass needs, for x [..., k].
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if x does not fit the layer;
    /// [`Error::Merged`] if the adapters are merged; [`Error::OutOfMemory`]; [`Error::Driver`];
    /// [`Error::Capture`] while the stream captures.
    pub fn forward<'x>(&self, x: &'x Tensor) -> Result<LayerOutput<'x>> {
        check_merged(self.merged, false)?;
        self.check_x(x)?;
        let dropout = self.training.as_ref().map(|training| training.next(x.shape().rows()));
        let mut s = self.output(x, self.problem.rank())?;
        let h = self.allocate_and_run(x, Some(s.view_mut()), dropout)?;
        Ok(LayerOutput { h, saved: Saved { x: x.view(), s, dropout } })
    }

    /// h [..., d] of every projection for x [..., k], without what a backward pass needs.
    ///
    /// # Errors
    /// As for [`LoraLinear::forward`].
    pub fn infer(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        check_merged(self.merged, false)?;
        self.check_x(x)?;
        self.allocate_and_run(x, None, None)
    }

    /// As [`LoraLinear::forward`], on the caller's device (stream) and buffers: x [..., k], one `h`
    /// [..., d] for every projection, and s [..., R] or `None`. It allocates only if the layer's
    /// workspace has to grow, so a graph can capture it after a call for as many tokens. After
    /// a capture the layer belongs to the stream that captured.
    ///
    /// # Errors
    /// As for [`ops::Forward::run`]; [`Error::Merged`] if the adapters are merged;
    /// [`Error::Capture`] if the workspace has to grow while the stream captures.
    pub fn forward_into<'s>(
        &self,
        device: &Device,
        x: TensorView<'_>,
        h: &mut [TensorViewMut<'_>],
        s: impl Into<Option<TensorViewMut<'s>>>,
    ) -> Result<()> {
        self.run_forward(device, x, h, s.into(), None)
    }

    fn run_forward(
        &self,
        device: &Device,
        x: TensorView<'_>,
        h: &mut [TensorViewMut<'_>],
        s: Option<TensorViewMut<'_>>,
        dropout: Option<Dropout<'static>>,
    ) -> Result<()> {
        let projections = self.views()?;
        let (t, drops) = (x.shape().rows(), dropout.is_some());
        let forward = self.forwards.get((t, drops), || {
            ops::Forward::new(self.device(), &self.problem.with_tokens(t)?.with_dropout(drops))
        })?;
        let forward = forward.on(device)?;
        let weights = Weights { dropout, ..Weights::new(self.a.view(), &projections) };
        self.with_workspace(device, forward.workspace(), |workspace| {
            forward.run(&weights, x, h, s, workspace)
        })
    }

    /// h [..., d] of every projection from its weight alone, for x [..., k]: W0ᵢ x with the
    /// adapters off, or the whole layer while they are merged.
    ///
    /// # Errors
    /// As for [`LoraLinear::forward`].
    pub fn forward_base(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.check_x(x)?;
        let t = x.shape().rows();
        let bases = self.bases.get((t, false), || {
            let base = |projection: &LayerProjection| {
                let size = [projection.w0.shape().rows(), self.problem.k()];
                BaseForward::new(self.device(), t, size, self.problem.dtype())
            };
            self.projections.iter().map(base).collect()
        })?;
        let mut all = self.outputs(x)?;
        for ((base, projection), h) in bases.iter().zip(&self.projections).zip(&mut all) {
            let (base, w0) = (base.on(x.device())?, projection.w0.view());
            self.with_workspace(x.device(), base.workspace(), |workspace| {
                base.run(w0, x.view(), h.view_mut(), workspace)
            })?;
        }
        Ok(all)
    }

    /// dX [..., k], returned, and dA and every dB, written to `gradients`, from one dh [..., d] for
    /// every projection. Formulas: [`ops::Backward`].
    ///
    /// # Errors
    /// As for [`LoraLinear::forward`], and [`Error::Count`] unless there is one `dh` for every
    /// projection. With several projections, arguments are named like `dh[1]`.
    pub fn backward(
        &self,
        dh: &[&Tensor],
        saved: &Saved<'_>,
        gradients: &mut LayerGradients,
        accumulation: Accumulation,
    ) -> Result<Tensor> {
        check_merged(self.merged, false)?;
        let mut dx = self.output(&saved.s, self.problem.k())?;
        self.run_backward(dh, saved, Some(dx.view_mut()), gradients, accumulation)?;
        Ok(dx)
    }

    /// dA and every dB without dX, which the first adapted layer of a network does not need.
    ///
    /// # Errors
    /// As for [`LoraLinear::backward`].
    pub fn backward_params(
        &self,
        dh: &[&Tensor],
        saved: &Saved<'_>,
        gradients: &mut LayerGradients,
        accumulation: Accumulation,
    ) -> Result<()> {
        check_merged(self.merged, false)?;
        self.run_backward(dh, saved, None, gradients, accumulation)
    }

    fn run_backward(
        &self,
        dh: &[&Tensor],
        saved: &Saved<'_>,
        dx: Option<TensorViewMut<'_>>,
        gradients: &mut LayerGradients,
        accumulation: Accumulation,
    ) -> Result<()> {
        let (device, t, drops) =
            (saved.s.device(), saved.x.shape().rows(), saved.dropout.is_some());
        let backward = self.backwards.get((t, drops), || {
            Backward::new(self.device(), &self.problem.with_tokens(t)?.with_dropout(drops))
        })?;
        let backward = backward.on(device)?.with_gradients(gradients.a.dtype())?;
        let mut db: Vec<_> = gradients.b.iter_mut().map(Tensor::view_mut).collect();
        let out = GradientsMut { da: gradients.a.view_mut(), db: &mut db, accumulation };
        let dh: Vec<_> = dh.iter().map(|dh| dh.view()).collect();
        let (projections, x, s) = (self.views()?, saved.x, saved.s.view());
        let dropout = saved.dropout;
        let weights = Weights { dropout, ..Weights::new(self.a.view(), &projections) };
        self.with_workspace(device, backward.workspace(), |workspace| match dx {
            Some(dx) => backward.run(&weights, &dh, x, s, dx, out, workspace),
            None => backward.run_params(&weights, &dh, x, s, out, workspace),
        })
    }

    /// Gradients for [`LoraLinear::backward`], in f32 and all zero: dA [R, k] and every dB [d, r].
    ///
    /// # Errors
    /// As for [`Tensor::zeros`].
    pub fn zero_gradients(&self) -> Result<LayerGradients> {
        self.zero_gradients_in(DType::F32)
    }

    /// The same in f32 or the layer's element type. Another type is refused by
    /// [`LoraLinear::backward`].
    ///
    /// # Errors
    /// As for [`Tensor::zeros`].
    pub fn zero_gradients_in(&self, dtype: DType) -> Result<LayerGradients> {
        let zeros = |of: &Tensor| Tensor::zeros(self.device(), of.shape(), dtype);
        let b = self.projections.iter().map(|projection| zeros(&projection.b));
        Ok(LayerGradients { a: zeros(&self.a)?, b: b.collect::<Result<_>>()? })
    }

    /// W0 + s · B A of every projection as a new weight [d, k]: see [`ops::merge`], also for its
    /// rounding.
    ///
    /// # Errors
    /// [`Error::Merged`] if the adapters are merged; [`Error::OutOfMemory`]; [`Error::Driver`].
    pub fn merged(&self) -> Result<Vec<Tensor>> {
        check_merged(self.merged, false)?;
        let merged = |projection: &LayerProjection| {
            let w0 = &projection.w0;
            let mut out = Tensor::for_output(self.device(), w0.shape(), w0.dtype())?;
            let a = self.a.view().rows(projection.rows())?;
            let Projection { w0, b, scale } = projection.view();
            ops::merge(self.device(), w0, a, b, scale, out.view_mut())?;
            Ok(out)
        };
        self.projections.iter().map(merged).collect()
    }

    /// Adds s · B A to the weight of every projection, for [`LoraLinear::forward_base`].
    ///
    /// # Errors
    /// [`Error::Merged`] if they are merged already; [`Error::Driver`], after which some of the
    /// weights may be merged.
    pub fn merge(&mut self) -> Result<()> {
        check_merged(self.merged, false)?;
        self.add_updates(1.0)?;
        self.merged = true;
        Ok(())
    }

    /// Subtracts s · B A from the weights again, exact only up to the rounding of [`ops::merge`].
    ///
    /// # Errors
    /// [`Error::Merged`] if they are not merged; [`Error::Driver`], as for [`LoraLinear::merge`].
    pub fn unmerge(&mut self) -> Result<()> {
        check_merged(self.merged, true)?;
        self.add_updates(-1.0)?;
        self.merged = false;
        Ok(())
    }

    fn add_updates(&mut self, sign: f32) -> Result<()> {
        let device = self.a.device().clone();
        for projection in &mut self.projections {
            let (a, scale) = (self.a.view().rows(projection.rows())?, projection.scale());
            let LayerProjection { w0, b, .. } = projection;
            ops::merge_in_place(&device, w0.view_mut(), a, b.view(), sign * scale)?;
        }
        Ok(())
    }

    /// Every h, and S where it is asked for.
    fn allocate_and_run(
        &self,
        x: &Tensor,
        s: Option<TensorViewMut<'_>>,
        dropout: Option<Dropout<'static>>,
    ) -> Result<Vec<Tensor>> {
        let mut all = self.outputs(x)?;
        let mut h: Vec<_> = all.iter_mut().map(Tensor::view_mut).collect();
        self.run_forward(x.device(), x.view(), &mut h, s, dropout)?;
        Ok(all)
    }

    /// Calls `run` with the layer's workspace, which has at least this size then. Others wait until
    /// it has enqueued its work; the workspace sees to the order on the device.
    fn with_workspace<R>(
        &self,
        device: &Device,
        size: WorkspaceSize,
        run: impl FnOnce(&mut Workspace) -> Result<R>,
    ) -> Result<R> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = match &mut *workspace {
            Some(workspace) => workspace,
            none => none.insert(Workspace::new(device, size)?),
        };
        workspace.reserve(device, size)?;
        run(workspace)
    }

    /// Refuses an x that is not [..., k], or elsewhere.
    fn check_x(&self, x: &Tensor) -> Result<()> {
        let k = self.problem.k();
        if x.shape().cols() != k {
            let expected = format!("[..., {k}]");
            return Err(Error::Shape { argument: "x", expected, got: x.shape() });
        }
        if !x.device().shares_memory_with(self.device()) {
            let (expected, got) = (self.device().to_string(), x.device().to_string());
            return Err(Error::Device { argument: "x", expected, got });
        }
        Ok(())
    }

    /// A tensor for an output with the rows and the device of `like`.
    fn output(&self, like: &Tensor, cols: usize) -> Result<Tensor> {
        Tensor::for_output(like.device(), like.shape().with_cols(cols)?, self.problem.dtype())
    }

    /// A tensor for the h of every projection.
    fn outputs(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.problem.projections().iter().map(|&(d, _)| self.output(x, d)).collect()
    }
}

impl Training {
    fn at(&self, offset: u64) -> Dropout<'static> {
        Dropout::new(self.p, self.seed, offset).expect("checked to be a probability")
    }

    /// The dropout of a pass of T rows.
    fn next(&self, t: usize) -> Dropout<'static> {
        self.at(self.rows.fetch_add(t as u64, Ordering::Relaxed))
    }
}

/// Refuses a layer that is merged, or one that is not.
fn check_merged(merged: bool, expected: bool) -> Result<()> {
    if merged == expected { Ok(()) } else { Err(Error::Merged { merged }) }
}
