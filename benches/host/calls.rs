//! A layer on inputs, and the crate's operations on the same weights and inputs.

use crate::common::Result;
use crate::common::layer::from;
use crate::common::matrix::{PERIOD, gaussian};
use lora_kernels::ops::{Accumulation, GradientsMut, Path, Projection, Weights};
use lora_kernels::ops::{Backward, Forward};
use lora_kernels::{Adapter, DType, Device, LayerGradients, LoraLinear, Problem, Scaling};
use lora_kernels::{Tensor, TensorView, Workspace};

/// A layer of N projections with its inputs.
pub struct Tensors<const N: usize> {
    pub layer: LoraLinear,
    /// On either stream, as a layer runs where its x is.
    pub x: [Tensor; 2],
    pub dh: [Tensor; N],
}

impl<const N: usize> Tensors<N> {
    pub fn new(streams: &[Device; 2], problem: &Problem) -> Result<Self> {
        let (t, k, dtype) = (problem.t(), problem.k(), problem.dtype());
        let tensor = |device, [rows, cols]: [usize; 2], std, seed| -> Result<Tensor> {
            let numbers = gaussian(PERIOD.min(rows * cols), std, seed);
            let numbers = numbers.iter().cycle().take(rows * cols);
            let values: Vec<f32> = numbers.map(|&number| number as f32).collect();
            Ok(Tensor::from_f32(device, &values, [rows, cols], dtype)?)
        };
        let [one, other] = streams;
        let (mut projections, mut dh) = (Vec::new(), Vec::new());
        for (&(d, r), seed) in problem.projections().iter().zip(0..) {
            let a = tensor(one, [r, k], from(k), 4000 + seed)?;
            let b = tensor(one, [d, r], from(r), 5000 + seed)?;
            let adapter = Adapter::from_tensors(a, b, 2.0 * r as f32, Scaling::Standard)?;
            projections.push((tensor(one, [d, k], from(k), 3000 + seed)?, adapter));
            dh.push(tensor(one, [t, d], 1.0, 2000 + seed)?);
        }
        Ok(Tensors {
            layer: LoraLinear::group(projections)?,
            x: [tensor(one, [t, k], 1.0, 1000)?, tensor(other, [t, k], 1.0, 1000)?],
            dh: dh.try_into().expect("N projections"),
        })
    }
}

/// The layer's forward and backward, which allocate what they return.
pub struct LayerCalls<'a, const N: usize> {
    tensors: &'a Tensors<N>,
    dh: [&'a Tensor; N],
    gradients: LayerGradients,
}

impl<'a, const N: usize> LayerCalls<'a, N> {
    pub fn new(tensors: &'a Tensors<N>) -> Result<Self> {
        let gradients = tensors.layer.zero_gradients()?;
        Ok(LayerCalls { tensors, dh: tensors.dh.each_ref(), gradients })
    }

    /// One of each, and dropping what they return.
    pub fn call(&mut self, stream: usize) -> Result<()> {
        let layer = &self.tensors.layer;
        let out = layer.forward(&self.tensors.x[stream])?;
        let overwrite = Accumulation::Overwrite;
        layer.backward(&self.dh, &out.saved, &mut self.gradients, overwrite)?;
        Ok(())
    }
}

/// The operations on tensors of the first stream. Each call makes its views, as a caller would.
pub struct Operations<'a, const N: usize> {
    /// On either stream.
    forward: [Forward; 2],
    backward: [Backward; 2],
    weights: Weights<'a>,
    x: TensorView<'a>,
    dh: [TensorView<'a>; N],
    h: [Tensor; N],
    s: Tensor,
    dx: Tensor,
    da: Tensor,
    db: [Tensor; N],
    workspace: Workspace,
}

impl<'a, const N: usize> Operations<'a, N> {
    pub fn new(
        streams: &[Device; 2],
        problem: &Problem,
        tensors: &'a Tensors<N>,
        projections: &'a [Projection<'a>],
    ) -> Result<Self> {
        let [one, other] = streams;
        let forward = Forward::new(one, problem)?;
        let backward = Backward::new(one, problem)?;
        let workspace = Workspace::new(one, forward.workspace().max(backward.workspace()))?;
        let (t, k, dtype) = (problem.t(), problem.k(), problem.dtype());
        let zeros = |shape: [usize; 2], dtype| Tensor::zeros(one, shape, dtype);
        let each = problem.projections().iter();
        let h: Vec<Tensor> = each
            .clone()
            .map(|&(d, _)| zeros([t, d], dtype))
            .collect::<lora_kernels::Result<_>>()?;
        let db: Vec<Tensor> =
            each.map(|&(d, r)| zeros([d, r], DType::F32)).collect::<lora_kernels::Result<_>>()?;
        Ok(Operations {
            forward: [forward.clone(), forward.on(other)?],
            backward: [backward.clone(), backward.on(other)?],
            weights: Weights::new(tensors.layer.a().view(), projections),
            x: tensors.x[0].view(),
            dh: tensors.dh.each_ref().map(Tensor::view),
            h: h.try_into().expect("N projections"),
            s: zeros([t, problem.rank()], dtype)?,
            dx: zeros([t, k], dtype)?,
            da: zeros([problem.rank(), k], DType::F32)?,
            db: db.try_into().expect("N projections"),
            workspace,
        })
    }

    pub fn forward_path(&self) -> Path {
        self.forward[0].path()
    }

    pub fn backward_path(&self) -> Path {
        self.backward[0].path()
    }

    pub fn forward(&mut self, stream: usize) -> Result<()> {
        let mut h = self.h.each_mut().map(Tensor::view_mut);
        let (forward, s) = (&self.forward[stream], self.s.view_mut());
        Ok(forward.run(&self.weights, self.x, &mut h, s, &mut self.workspace)?)
    }

    /// Reads the S of the last forward.
    pub fn backward(&mut self, stream: usize) -> Result<()> {
        let mut db = self.db.each_mut().map(Tensor::view_mut);
        let (da, accumulation) = (self.da.view_mut(), Accumulation::Overwrite);
        let out = GradientsMut { da, db: &mut db, accumulation };
        let (backward, weights, workspace) =
            (&self.backward[stream], &self.weights, &mut self.workspace);
        let (s, dx) = (self.s.view(), self.dx.view_mut());
        Ok(backward.run(weights, &self.dh, self.x, s, dx, out, workspace)?)
    }
}
