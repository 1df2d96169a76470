//! LoRA linear layers that share their input, in one layer that owns their tensors.

use crate::linear::{check_input, check_merged, output};
use crate::ops::{self, check_device, Accumulation, InputGradient, Projection, Weights};
use crate::ops::{SharedBackwardOutputs, SharedWeights, NAMES_OF_PROJECTIONS};
use crate::plan::check_count;
use crate::{Adapter, DType, Device, Error, Result, Scaling, SharedProblem};
use crate::{Tensor, TensorViewMut, Workspace};
use std::ops::Range;

/// Frozen weights W0ᵢ [dᵢ, k] of the same x, each with an adapter: hᵢ = W0ᵢ x + sᵢ · Bᵢ (Aᵢ x).
///
/// They are the projections q, k and v of an attention, or gate and up of a gated MLP: 1 to
/// [`MAX_PROJECTIONS`](crate::MAX_PROJECTIONS), each with a d, an r and a scale of its own. With R
/// the sum of the ranks, the layer keeps all A in one [R, k], one below the other, so that one call
/// makes one S, and one dX that is summed over the projections before it is rounded.
///
/// The layer runs on the device of its weights and allocates what it returns. For buffers of your
/// own, and inside CUDA-graph captures, use [`ops`] with [`SharedLoraLinear::a`] and
/// [`SharedProjection::view`].
///
/// ```
/// use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, InputGradient};
/// use lora_kernels::{SharedLoraLinear, Tensor};
///
/// # fn main() -> lora_kernels::Result<()> {
/// let device = Device::cuda(0).unwrap_or(Device::cpu());
/// let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::Bf16);
/// let (t, k) = (16, 64);
/// // q has more heads than k and v.
/// let mut projections = Vec::new();
/// for d in [64, 32, 32] {
///     let config = AdapterConfig { rank: 8, seed: projections.len() as u64, ..Default::default() };
///     let adapter = Adapter::for_weight(&device, [d, k], DType::Bf16, &config)?;
///     projections.push((zeros([d, k])?, adapter));
/// }
/// let layer = SharedLoraLinear::new(projections)?;
///
/// let x = zeros([t, k])?;
/// let out = layer.forward(&x)?;
/// let (q, s) = (&out.h[0], &out.s);
/// assert_eq!((q.shape().dims(), s.shape().dims()), (&[t, 64][..], &[t, 3 * 8][..]));
///
/// let mut gradients = layer.zero_gradients()?;
/// let dh = [&zeros([t, 64])?, &zeros([t, 32])?, &zeros([t, 32])?];
/// let (set, compute) = (Accumulation::Overwrite, InputGradient::Compute);
/// let dx = layer.backward(&dh, &x, s, &mut gradients, set, compute)?;
/// assert_eq!(dx.expect("dX was asked for").shape().dims(), [t, k]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SharedLoraLinear {
    a: Tensor,
    projections: Vec<SharedProjection>,
    merged: bool,
}

/// One of the projections of a [`SharedLoraLinear`]: what it has beside its rows of the layer's A.
#[derive(Debug)]
pub struct SharedProjection {
    w0: Tensor,
    b: Tensor,
    alpha: f32,
    scaling: Scaling,
    rows: Range<usize>,
}

/// What a forward pass of projections that share their input makes.
#[derive(Debug)]
pub struct SharedForward {
    /// The output h of every projection, [..., d].
    pub h: Vec<Tensor>,
    /// S = [s₀ · X A₀ᵀ, s₁ · X A₁ᵀ, ...], [..., R], which the backward pass needs.
    pub s: Tensor,
}

/// The gradients of the adapters of projections that share their input, in f32.
#[derive(Debug)]
pub struct SharedGradients {
    /// dA of all projections, one below the other, [R, k].
    pub a: Tensor,
    /// dB of every projection, [d, r].
    pub b: Vec<Tensor>,
}

impl SharedLoraLinear {
    /// A layer of frozen weights [d, k] with an adapter each, all of one k, one element type and one
    /// device. Copies the A of every adapter, on that device.
    ///
    /// # Errors
    /// [`Error::Count`] unless there are 1 to [`MAX_PROJECTIONS`](crate::MAX_PROJECTIONS) of them;
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if a weight does not fit its adapter
    /// or the first weight, named as `projections[1].w0`; [`Error::OutOfMemory`].
    pub fn new(projections: Vec<(Tensor, Adapter)>) -> Result<Self> {
        check_count(projections.len())?;
        let first = &projections[0].0;
        for ((w0, adapter), names) in projections.iter().zip(&NAMES_OF_PROJECTIONS) {
            adapter.check_weight(names.w0, w0)?;
            let (d, k) = (w0.shape().rows(), first.shape().cols());
            if w0.shape().cols() != k {
                let expected = format!("{:?}, as projections[0]", [d, k]);
                return Err(Error::Shape { argument: names.w0, expected, got: w0.shape() });
            }
            if w0.dtype() != first.dtype() {
                let expected = "the element type of projections[0]";
                return Err(Error::DType { argument: names.w0, expected, got: w0.dtype() });
            }
            check_device(first.device(), names.w0, w0.view().region.place())?;
        }
        let all: Vec<_> = projections.iter().map(|(_, adapter)| adapter.a().view()).collect();
        let a = Tensor::stacked(first.device(), "a", &all)?;
        let mut end = 0;
        let own = |(w0, adapter): (Tensor, Adapter)| {
            let rows = end..end + adapter.rank();
            end = rows.end;
            let (alpha, scaling) = (adapter.alpha(), adapter.scaling());
            SharedProjection { w0, b: adapter.into_b(), alpha, scaling, rows }
        };
        let projections = projections.into_iter().map(own).collect();
        Ok(SharedLoraLinear { a, projections, merged: false })
    }

    /// The A of all projections, one below the other, [R, k].
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// The projections, in the order in which they were given.
    pub fn projections(&self) -> &[SharedProjection] {
        &self.projections
    }

    /// Whether [`SharedLoraLinear::merge`] has folded the adapters into the weights.
    pub fn is_merged(&self) -> bool {
        self.merged
    }

    /// A [R, k] and the B [d, r] of every projection, for an optimiser to update in place; not while
    /// they are merged, or [`SharedLoraLinear::unmerge`] subtracts other updates than were added.
    pub fn tensors_mut(&mut self) -> (&mut Tensor, Vec<&mut Tensor>) {
        (&mut self.a, self.projections.iter_mut().map(|projection| &mut projection.b).collect())
    }

    /// How many numbers are trained: the sum of all r·(d + k).
    pub fn parameters(&self) -> usize {
        let b = self.projections.iter().map(|projection| projection.b.shape().elements());
        self.a.shape().elements() + b.sum::<usize>()
    }

    /// Copies of the adapters, each with an A of its own again: to save them, say.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Driver`].
    pub fn adapters(&self) -> Result<Vec<Adapter>> {
        let adapter = |projection: &SharedProjection| {
            let SharedProjection { b, alpha, scaling, rows, .. } = projection;
            let a = self.a.view().rows(rows.clone())?;
            let a = Tensor::stacked(self.device(), "a", &[a])?;
            Adapter::from_tensors(a, b.try_clone()?, *alpha, *scaling)
        };
        self.projections.iter().map(adapter).collect()
    }

    /// The device the layer runs on.
    pub fn device(&self) -> &Device {
        self.a.device()
    }

    /// h [..., d] of every projection and the S that backward needs, for x [..., k].
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`] or [`Error::Device`] if x does not fit the layer;
    /// [`Error::Merged`] if the adapters are merged; [`Error::OutOfMemory`]; [`Error::Driver`].
    pub fn forward(&self, x: &Tensor) -> Result<SharedForward> {
        let mut s = output(&self.a, x, self.a.shape().rows())?;
        let h = self.run(x, Some(s.view_mut()))?;
        Ok(SharedForward { h, s })
    }

    /// h [..., d] of every projection alone, where no backward pass will follow.
    ///
    /// # Errors
    /// As for [`SharedLoraLinear::forward`].
    pub fn infer(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.run(x, None)
    }

    /// h [..., d] of every projection from the layer's own weights alone: W0ᵢ x, with the adapters
    /// switched off, or the whole layer while they are merged.
    ///
    /// # Errors
    /// As for [`SharedLoraLinear::forward`].
    pub fn forward_frozen(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.problem(x)?;
        let mut h = self.outputs(x)?;
        for (projection, h) in self.projections.iter().zip(&mut h) {
            ops::frozen(self.device(), &projection.w0.view(), x.view(), h.view_mut())?;
        }
        Ok(h)
    }

    /// dA and every dB into `gradients`, and dX [..., k] if asked for, from the dh [..., d] of every
    /// projection, the x of the forward pass and the S it made.
    ///
    /// # Errors
    /// As for [`SharedLoraLinear::forward`], and [`Error::Count`] unless there is one `dh` for every
    /// projection. Of a list, arguments are named as `dh[1]`.
    pub fn backward(
        &self,
        dh: &[&Tensor],
        x: &Tensor,
        s: &Tensor,
        gradients: &mut SharedGradients,
        accumulation: Accumulation,
        input_gradient: InputGradient,
    ) -> Result<Option<Tensor>> {
        check_merged(self.merged, false)?;
        let device = self.device();
        let plan = ops::backward_shared_plan(device, &self.problem(x)?);
        let mut dx = match input_gradient {
            InputGradient::Skip => None,
            InputGradient::Compute => Some(output(&self.a, x, self.a.shape().cols())?),
        };
        let mut workspace = Workspace::new(device, &[plan])?;
        let mut db: Vec<_> = gradients.b.iter_mut().map(Tensor::view_mut).collect();
        let outputs = SharedBackwardOutputs {
            dx: dx.as_mut().map(Tensor::view_mut),
            da: gradients.a.view_mut(),
            db: &mut db,
            accumulation,
        };
        let projections = self.views();
        let weights = SharedWeights { a: self.a.view(), projections: &projections };
        let dh: Vec<_> = dh.iter().map(|dh| dh.view()).collect();
        let (x, s) = (x.view(), s.view());
        ops::backward_shared(device, &weights, &dh, x, s, outputs, &mut workspace)?;
        Ok(dx)
    }

    /// Gradients of the adapters' shapes, all zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zero_gradients(&self) -> Result<SharedGradients> {
        let zeros = |of: &Tensor| Tensor::zeros(self.device(), of.shape(), DType::F32);
        let b = self.projections.iter().map(|projection| zeros(&projection.b));
        Ok(SharedGradients { a: zeros(&self.a)?, b: b.collect::<Result<_>>()? })
    }

    /// W0 + s · B A of every projection as a new weight; [`ops::merge`] tells what its rounding
    /// does.
    ///
    /// # Errors
    /// [`Error::Merged`] if the adapters are merged; [`Error::OutOfMemory`]; [`Error::Driver`].
    pub fn merged(&self) -> Result<Vec<Tensor>> {
        check_merged(self.merged, false)?;
        let merged = |projection: &SharedProjection| {
            let w0 = &projection.w0;
            let mut out = Tensor::for_output(self.device(), w0.shape(), w0.dtype())?;
            let a = self.a.view().rows(projection.rows())?;
            let Projection { w0, b, scale } = projection.view();
            ops::merge(self.device(), &Weights { w0, a, b, scale }, out.view_mut())?;
            Ok(out)
        };
        self.projections.iter().map(merged).collect()
    }

    /// Adds s · B A to the layer's own weight of every projection, for
    /// [`SharedLoraLinear::forward_frozen`] to use.
    ///
    /// # Errors
    /// [`Error::Merged`] if it was added before; [`Error::Driver`], after which some of the weights
    /// may have it.
    pub fn merge(&mut self) -> Result<()> {
        check_merged(self.merged, false)?;
        self.add_updates(1.0)?;
        self.merged = true;
        Ok(())
    }

    /// Subtracts s · B A from the layer's own weights again; exact only up to the rounding that
    /// [`ops::merge`] tells of.
    ///
    /// # Errors
    /// [`Error::Merged`] if they are not merged; [`Error::Driver`], as for
    /// [`SharedLoraLinear::merge`].
    pub fn unmerge(&mut self) -> Result<()> {
        check_merged(self.merged, true)?;
        self.add_updates(-1.0)?;
        self.merged = false;
        Ok(())
    }

    /// Every h, and S where it is asked for.
    fn run(&self, x: &Tensor, s: Option<TensorViewMut<'_>>) -> Result<Vec<Tensor>> {
        check_merged(self.merged, false)?;
        let device = self.device();
        let plan = ops::forward_shared_plan(device, &self.problem(x)?);
        let mut h = self.outputs(x)?;
        let mut workspace = Workspace::new(device, &[plan])?;
        let mut views: Vec<_> = h.iter_mut().map(Tensor::view_mut).collect();
        let projections = self.views();
        let weights = SharedWeights { a: self.a.view(), projections: &projections };
        ops::forward_shared(device, &weights, x.view(), &mut views, s, &mut workspace)?;
        Ok(h)
    }

    fn add_updates(&mut self, sign: f32) -> Result<()> {
        let device = self.a.device().clone();
        for projection in &mut self.projections {
            let (a, scale) = (self.a.view().rows(projection.rows())?, projection.scale());
            let SharedProjection { w0, b, .. } = projection;
            ops::merge_in_place(&device, w0.view_mut(), &a, &b.view(), sign * scale)?;
        }
        Ok(())
    }

    fn problem(&self, x: &Tensor) -> Result<SharedProblem> {
        let k = self.a.shape().cols();
        check_input(x, k)?;
        let size = |one: &SharedProjection| (one.w0.shape().rows(), one.rank());
        let sizes: Vec<_> = self.projections.iter().map(size).collect();
        SharedProblem::new(x.shape().rows(), k, &sizes, x.dtype())
    }

    fn views(&self) -> Vec<Projection<'_>> {
        self.projections.iter().map(SharedProjection::view).collect()
    }

    /// A tensor for the h of every projection.
    fn outputs(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let h = |one: &SharedProjection| output(&one.w0, x, one.w0.shape().rows());
        self.projections.iter().map(h).collect()
    }
}

impl SharedProjection {
    /// The weight, [d, k]: W0, or W0 + s · B A while the adapters are merged.
    pub fn w0(&self) -> &Tensor {
        &self.w0
    }

    /// The up-projection B, [d, r].
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// Which rows of the layer's A and dA are those of this projection, and which columns of S.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The rank r.
    pub fn rank(&self) -> usize {
        self.rows.len()
    }

    /// α.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// How s follows from α and r.
    pub fn scaling(&self) -> Scaling {
        self.scaling
    }

    /// The factor s of the update: α/r or α/√r.
    pub fn scale(&self) -> f32 {
        self.scaling.scale(self.alpha, self.rank())
    }

    /// The projection as the operations in [`ops`] take it, in [`SharedWeights`].
    pub fn view(&self) -> Projection<'_> {
        Projection { w0: self.w0.view(), b: self.b.view(), scale: self.scale() }
    }
}
