//! Nodes of candle's graph whose forward pass has run before candle asks for it.
//!
//! A node is a result and a closure that computes the gradients of the arguments. The result moves
//! into candle's graph without a copy.

use crate::kernels::lock;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp1, Layout, Result, Shape, Storage,
    Tensor, bail,
};
use std::sync::Mutex;

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, cuda_backend::CudaStorageSlice};

/// What the backward pass of a node of N arguments has. None of it is tracked.
pub(crate) struct Step<'a, const N: usize> {
    pub(crate) args: [Tensor; N],
    /// Whether a gradient of the argument is wanted.
    pub(crate) wanted: [bool; N],
    /// The result.
    pub(crate) y: Tensor,
    pub(crate) dy: &'a Tensor,
}

/// The result of a node.
pub(crate) struct Value {
    pub(crate) storage: Storage,
    pub(crate) shape: Shape,
}

type Grads<const N: usize> = [Option<Tensor>; N];
type Backward<const N: usize> = Box<dyn Fn(&Step<'_, N>) -> Result<Grads<N>> + Send + Sync>;

struct Node<const N: usize> {
    name: &'static str,
    y: Mutex<Option<Storage>>,
    shape: Shape,
    backward: Backward<N>,
}

/// The result `y` of `x`, with a backward pass.
pub(crate) fn one(
    name: &'static str,
    x: &Tensor,
    y: Value,
    backward: impl Fn(&Step<'_, 1>) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    some(name, x, y, move |step| Ok(Some(backward(step)?)))
}

/// The same, if the backward pass has a gradient only sometimes.
pub(crate) fn some(
    name: &'static str,
    x: &Tensor,
    y: Value,
    backward: impl Fn(&Step<'_, 1>) -> Result<Option<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(y.into_tensor());
    }
    x.apply_op1(Node::new(name, y, move |step| Ok([backward(step)?])))
}

/// The same of two arguments.
pub(crate) fn two(
    name: &'static str,
    [a, b]: [&Tensor; 2],
    y: Value,
    backward: impl Fn(&Step<'_, 2>) -> Result<Grads<2>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if ![a, b].iter().any(|x| x.track_op()) {
        return Ok(y.into_tensor());
    }
    a.apply_op2(b, Node::new(name, y, backward))
}

/// The same of three arguments.
pub(crate) fn three(
    name: &'static str,
    [a, b, c]: [&Tensor; 3],
    y: Value,
    backward: impl Fn(&Step<'_, 3>) -> Result<Grads<3>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if ![a, b, c].iter().any(|x| x.track_op()) {
        return Ok(y.into_tensor());
    }
    a.apply_op3(b, c, Node::new(name, y, backward))
}

impl<const N: usize> Node<N> {
    fn new(
        name: &'static str,
        y: Value,
        backward: impl Fn(&Step<'_, N>) -> Result<Grads<N>> + Send + Sync + 'static,
    ) -> Self {
        let Value { storage, shape } = y;
        Node { name, y: Mutex::new(Some(storage)), shape, backward: Box::new(backward) }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match lock(&self.y).take() {
            Some(Storage::Cpu(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("{}: the result is not on the CPU, or was taken", self.name),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match lock(&self.y).take() {
            Some(Storage::Cuda(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("{}: the result is not on a CUDA device, or was taken", self.name),
        }
    }

    /// A gradient for an argument that wants none would stay in candle's store to the end.
    fn grads(&self, args: [&Tensor; N], y: &Tensor, dy: &Tensor) -> Result<Grads<N>> {
        let wanted = args.map(Tensor::track_op);
        let step = Step { args: args.map(Tensor::detach), wanted, y: y.detach(), dy };
        let mut grads = (self.backward)(&step)?;
        for (grad, wanted) in grads.iter_mut().zip(wanted) {
            if !wanted {
                *grad = None;
            }
        }
        Ok(grads)
    }
}

impl CustomOp1 for Node<1> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = self.grads([x], y, dy)?;
        Ok(dx)
    }
}

impl CustomOp2 for Node<2> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = self.grads([a, b], y, dy)?;
        Ok((da, db))
    }
}

impl CustomOp3 for Node<3> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.grads([a, b, c], y, dy)?;
        Ok((da, db, dc))
    }
}

impl Value {
    /// The memory of a tensor that nothing reads any more. What stays behind has the shape and the
    /// type of the tensor, but no elements.
    pub(crate) fn take(tensor: &Tensor) -> Result<Self> {
        let shape = tensor.shape().clone();
        if tensor.layout().contiguous_offsets() != Some((0, shape.elem_count())) {
            bail!("{shape:?} is a view: its memory cannot be taken")
        }
        let taken = Take(Mutex::new(None));
        tensor.inplace_op1(&taken)?;
        match lock(&taken.0).take() {
            Some(storage) => Ok(Value { storage, shape }),
            None => bail!("no memory was taken"),
        }
    }

    /// Outside of any graph.
    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}

struct Take(Mutex<Option<Storage>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let taken = std::mem::replace(storage, CpuStorage::U8(Vec::new()));
        *lock(&self.0) = Some(Storage::Cpu(taken));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device.clone();
        let slice = CudaStorageSlice::U8(crate::memory::placeholder(&device)?);
        let taken = std::mem::replace(storage, CudaStorage { slice, device });
        *lock(&self.0) = Some(Storage::Cuda(taken));
        Ok(())
    }
}
