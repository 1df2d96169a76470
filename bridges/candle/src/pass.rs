//! One forward pass of projections that share x, and its backward pass.

use crate::kernels::Kernels;
use crate::memory::{Elements, Output, element, err};
use candle_core::{DType, Result, Shape, Storage, Tensor, bail};
use lora_kernels::ops::{Accumulation, GradientsMut, Projection, Weights};
use lora_kernels::{Dropout, Problem, TensorView, TensorViewMut};
use std::sync::Arc;

/// What the operations read of a projection, in the element type of x.
#[derive(Debug)]
pub(crate) struct Part {
    /// W0 [d, k].
    pub(crate) w0: Tensor,
    /// B [d, r].
    pub(crate) b: Tensor,
    /// s.
    pub(crate) scale: f32,
}

/// A forward pass that ran: what its backward pass needs, besides x and dH.
#[derive(Debug)]
pub(crate) struct Pass {
    kernels: Arc<Kernels>,
    problem: Problem,
    /// A [R, k] of all projections, in the element type of x.
    a: Tensor,
    parts: Vec<Part>,
    /// Of the forward pass, so that the backward pass has the same mask.
    dropout: Option<Dropout<'static>>,
    /// S [T, R].
    s: Tensor,
    /// The shapes of H.
    pub(crate) outputs: Vec<Shape>,
}

/// The gradients of a backward pass.
pub(crate) struct Gradients {
    /// In the shape of x.
    pub(crate) dx: Option<Tensor>,
    /// [R, k], f32.
    pub(crate) da: Tensor,
    /// [d, r] of every projection, f32.
    pub(crate) db: Vec<Tensor>,
}

/// T of x [..., k], which must be of this element type and on the device of `w0` [d, k].
pub(crate) fn tokens(x: &Tensor, w0: &Tensor) -> Result<usize> {
    let (_, k) = w0.dims2()?;
    if x.dims().last() != Some(&k) {
        bail!("x {:?} does not fit a weight {:?}: expected [..., {k}]", x.shape(), w0.shape())
    }
    if x.dtype() != w0.dtype() {
        bail!("x is {:?} and the weight {:?}: expected one type", x.dtype(), w0.dtype())
    }
    if !x.device().same_device(w0.device()) {
        bail!("x and the weight are on different devices")
    }
    Ok(x.elem_count() / k)
}

/// The shape of the output of a layer with `d` outputs.
pub(crate) fn output_shape(x: &Tensor, d: usize) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = d;
    }
    Shape::from(dims)
}

/// Views of contiguous tensors as matrices, for the time of a call.
fn with_views<R>(
    tensors: &[(&Tensor, [usize; 2])],
    call: impl FnOnce(&[TensorView<'_>]) -> Result<R>,
) -> Result<R> {
    let storages: Vec<_> = tensors.iter().map(|(tensor, _)| tensor.storage_and_layout()).collect();
    let elements: Vec<_> = storages
        .iter()
        .map(|(storage, layout)| Elements::new(storage, layout))
        .collect::<Result<_>>()?;
    let shapes = tensors.iter().map(|(_, shape)| *shape);
    let views: Vec<_> =
        elements.iter().zip(shapes).map(|(e, shape)| e.view(shape)).collect::<Result<_>>()?;
    call(&views)
}

impl Pass {
    /// H of every projection, of a contiguous x [..., k].
    pub(crate) fn forward(
        kernels: Arc<Kernels>,
        x: &Tensor,
        a: Tensor,
        parts: Vec<Part>,
        dropout: Option<Dropout<'static>>,
    ) -> Result<(Self, Vec<Storage>)> {
        let Some(first) = parts.first() else { bail!("a group has at least one layer") };
        let (t, k) = (tokens(x, &first.w0)?, first.w0.dim(1)?);
        let sizes = parts.iter().map(|part| part.b.dims2()).collect::<Result<Vec<_>>>()?;
        let problem = Problem::new(t, k, &sizes, element(x.dtype())?).map_err(err)?;
        let problem = problem.with_dropout(dropout.is_some());
        let (device, dtype) = (x.device(), x.dtype());
        let mut s = Output::new(device, dtype, [t, problem.rank()])?;
        let mut h = sizes
            .iter()
            .map(|&(d, _)| Output::new(device, dtype, [t, d]))
            .collect::<Result<Vec<_>>>()?;
        with_views(&operands(&problem, &a, &parts, &[(x, [t, k])]), |views| {
            let projections = projections(&parts, views);
            let mut weights = Weights::new(views[0], &projections);
            weights.dropout = dropout;
            let mut h: Vec<TensorViewMut<'_>> =
                h.iter_mut().map(Output::view).collect::<Result<_>>()?;
            let mut operations = kernels.operations();
            let operation = operations.forward(&kernels.device, &problem)?;
            let x = views[views.len() - 1];
            operation.run(&weights, x, &mut h, s.view()?, &mut operations.workspace).map_err(err)
        })?;
        let s = s.into_tensor(&Shape::from((t, problem.rank())));
        let outputs = sizes.iter().map(|&(d, _)| output_shape(x, d)).collect();
        let pass = Pass { kernels, problem, a, parts, dropout, s, outputs };
        Ok((pass, h.into_iter().map(Output::into_storage).collect()))
    }

    /// The gradients, from the x of the forward pass and a dH of every projection.
    pub(crate) fn backward(&self, x: &Tensor, dh: &[Tensor], want_dx: bool) -> Result<Gradients> {
        let (problem, device) = (&self.problem, x.device());
        let (t, k, r) = (problem.t(), problem.k(), problem.rank());
        let sizes = problem.projections();
        let dh = dh.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let mut dx = if want_dx { Some(Output::new(device, x.dtype(), [t, k])?) } else { None };
        let mut da = Output::new(device, DType::F32, [r, k])?;
        let mut db = sizes
            .iter()
            .map(|&(d, r)| Output::new(device, DType::F32, [d, r]))
            .collect::<Result<Vec<_>>>()?;
        let mut others = vec![(x, [t, k]), (&self.s, [t, r])];
        others.extend(dh.iter().zip(sizes).map(|(dh, &(d, _))| (dh, [t, d])));
        with_views(&operands(problem, &self.a, &self.parts, &others), |views| {
            let projections = projections(&self.parts, views);
            let mut weights = Weights::new(views[0], &projections);
            weights.dropout = self.dropout;
            let [x, s, dh @ ..] = &views[1 + 2 * projections.len()..] else {
                bail!("x and S are operands")
            };
            let mut db: Vec<TensorViewMut<'_>> =
                db.iter_mut().map(Output::view).collect::<Result<_>>()?;
            let accumulation = Accumulation::Overwrite;
            let out = GradientsMut { da: da.view()?, db: &mut db, accumulation };
            let mut operations = self.kernels.operations();
            let operation = operations.backward(&self.kernels.device, problem)?;
            let workspace = &mut operations.workspace;
            let run = match &mut dx {
                Some(dx) => operation.run(&weights, dh, *x, *s, dx.view()?, out, workspace),
                None => operation.run_params(&weights, dh, *x, *s, out, workspace),
            };
            run.map_err(err)
        })?;
        let shapes = sizes.iter().map(|&sizes| Shape::from(sizes));
        Ok(Gradients {
            dx: dx.map(|dx| dx.into_tensor(x.shape())),
            da: da.into_tensor(&Shape::from((r, k))),
            db: db.into_iter().zip(shapes).map(|(db, shape)| db.into_tensor(&shape)).collect(),
        })
    }
}

/// A, then W0 and B of every projection, then the rest.
fn operands<'a>(
    problem: &Problem,
    a: &'a Tensor,
    parts: &'a [Part],
    rest: &[(&'a Tensor, [usize; 2])],
) -> Vec<(&'a Tensor, [usize; 2])> {
    let k = problem.k();
    let mut operands = vec![(a, [problem.rank(), k])];
    for (part, &(d, r)) in parts.iter().zip(problem.projections()) {
        operands.extend([(&part.w0, [d, k]), (&part.b, [d, r])]);
    }
    operands.extend(rest);
    operands
}

/// The projections in views of [`operands`].
fn projections<'a>(parts: &[Part], views: &[TensorView<'a>]) -> Vec<Projection<'a>> {
    let pairs = views[1..].chunks_exact(2);
    pairs.zip(parts).map(|(pair, part)| Projection::new(pair[0], pair[1], part.scale)).collect()
}
