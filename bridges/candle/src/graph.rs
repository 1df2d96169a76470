//! Passes as nodes of candle's graph.
//!
//! A single layer is one node of x, A and B. A node of candle has one output and at most three
//! arguments, so a group is several. Between them are tokens, of one element that nothing reads:
//!
//! ```text
//! A₀, B₀ ─▶ Vars ─▶ token            backward: an Output leaves dHᵢ with the group; the Hub, which
//! A₁, B₁ ─────────▶ Vars ─▶ token    candle visits after all Outputs, computes dX, and leaves dA
//!                             │      and dB with the group, for the Vars
//!                 x ────────▶ Hub ──▶ token ─┬▶ Output ──▶ H₀
//!                                            └▶ Output ──▶ H₁
//! ```
//!
//! An H that the loss does not use has dH = 0 there, so its gradients are right too.

use crate::adapter::LoraAdapter;
use crate::kernels::lock;
use crate::memory::Output;
use crate::node::{self, Value};
use crate::pass::{Gradients, Pass};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};
use std::sync::{Arc, Mutex};

/// Computes x again, for the backward pass: the memory of x may be freed after the forward pass.
pub(crate) type Again = Arc<dyn Fn() -> Result<Tensor> + Send + Sync>;

/// The x of a forward pass: as it is kept, or computed again.
fn input(kept: &Tensor, again: Option<&Again>) -> Result<Tensor> {
    again.map_or_else(|| Ok(kept.clone()), |again| again())
}

/// Every H [..., d] of a pass, of x [..., k] and the adapters.
pub(crate) fn nodes(
    x: &Tensor,
    again: Option<Again>,
    adapters: &[&LoraAdapter],
    pass: Pass,
    mut h: Vec<Storage>,
) -> Result<Vec<Tensor>> {
    match adapters {
        [adapter] => Ok(vec![single(x, again, adapter, pass, h.remove(0))?]),
        adapters => group(x, again, adapters, pass, h),
    }
}

fn single(
    x: &Tensor,
    again: Option<Again>,
    adapter: &LoraAdapter,
    pass: Pass,
    storage: Storage,
) -> Result<Tensor> {
    let y = Value { storage, shape: pass.outputs[0].clone() };
    node::three("lora-linear", [x, adapter.a(), adapter.b()], y, move |step| {
        let x = input(&step.args[0], again.as_ref())?;
        let Gradients { dx, da, mut db } =
            pass.backward(&x, std::slice::from_ref(step.dy), step.wanted[0])?;
        Ok([dx, Some(da), db.pop()])
    })
}

/// What the nodes of a group share.
struct Shared {
    pass: Pass,
    /// The dH that have arrived in the backward pass that runs.
    dh: Mutex<Vec<Option<Tensor>>>,
    /// The gradients that the nodes of variables have not taken yet.
    vars: Mutex<Vec<Option<[Tensor; 2]>>>,
}

fn group(
    x: &Tensor,
    again: Option<Again>,
    adapters: &[&LoraAdapter],
    pass: Pass,
    h: Vec<Storage>,
) -> Result<Vec<Tensor>> {
    let (dh, vars) = (Mutex::new(vec![None; h.len()]), Mutex::new(vec![None; h.len()]));
    let shared = Arc::new(Shared { pass, dh, vars });
    let mut vars = token(x.device())?.into_tensor();
    for (i, adapter) in adapters.iter().enumerate() {
        let shared = shared.clone();
        let args = [adapter.a().as_tensor(), adapter.b().as_tensor(), &vars];
        vars = node::three("lora-group-vars", args, token(x.device())?, move |step| {
            let Some([da, db]) = lock(&shared.vars)[i].take() else {
                bail!("the gradients of a group have been taken")
            };
            Ok([Some(da), Some(db), Some(step.dy.clone())])
        })?;
    }
    let hub = shared.clone();
    let token = node::two("lora-group", [x, &vars], token(x.device())?, move |step| {
        let x = input(&step.args[0], again.as_ref())?;
        let dx = hub.backward(&x, step.wanted[0])?;
        Ok([dx, Some(step.dy.clone())])
    })?;
    let outputs = h.into_iter().zip(shared.pass.outputs.clone()).enumerate();
    let outputs = outputs.map(|(i, (storage, shape))| {
        let shared = shared.clone();
        node::some("lora-group-output", &token, Value { storage, shape }, move |step| {
            // The token needs a gradient for candle to visit the hub: one is enough.
            Ok(if shared.arrive(i, step.dy)? { Some(step.args[0].clone()) } else { None })
        })
    });
    outputs.collect()
}

/// One element, which nothing reads: candle wants a gradient of the shape of each node.
fn token(device: &Device) -> Result<Value> {
    let storage = Output::new(device, DType::F32, [1, 1])?.into_storage();
    Ok(Value { storage, shape: Shape::from(1) })
}

impl Shared {
    /// Keeps a dH. Returns whether it is the first of this backward pass.
    fn arrive(&self, index: usize, dh: &Tensor) -> Result<bool> {
        let mut all = lock(&self.dh);
        let first = all.iter().all(Option::is_none);
        if all[index].is_some() {
            bail!("a backward pass of this graph failed, or runs: repeat the forward pass")
        }
        all[index] = Some(dh.clone());
        Ok(first)
    }

    /// Leaves the gradients of the variables, and returns dX.
    fn backward(&self, x: &Tensor, want_dx: bool) -> Result<Option<Tensor>> {
        let count = self.pass.outputs.len();
        let arrived = std::mem::replace(&mut *lock(&self.dh), vec![None; count]);
        let dh = arrived.into_iter().zip(&self.pass.outputs).map(|(dh, shape)| match dh {
            Some(dh) => Ok(dh),
            None => Tensor::zeros(shape, x.dtype(), x.device()),
        });
        let Gradients { dx, da, db } =
            self.pass.backward(x, &dh.collect::<Result<Vec<_>>>()?, want_dx)?;
        let mut start = 0;
        let vars = db.into_iter().map(|db| {
            let r = db.dim(1)?;
            start += r;
            Ok(Some([da.narrow(0, start - r, r)?, db]))
        });
        *lock(&self.vars) = vars.collect::<Result<_>>()?;
        Ok(dx)
    }
}
