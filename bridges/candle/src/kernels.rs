//! What layers of one candle device share: the stream, the workspace and the operations.

use crate::memory::err;
use candle_core::{Device, Result, bail};
use lora_kernels::ops::{Backward, BaseForward, BaseInputGrad, Forward};
use lora_kernels::{self as lk, Problem, Workspace};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Operations kept of each kind. A model has a handful of shapes; the number of tokens may change
/// with every batch.
const KEPT: usize = 128;

/// The handles of one candle device. They live as long as a layer or a graph uses them.
pub(crate) struct Kernels {
    candle: Device,
    pub(crate) device: lk::Device,
    operations: Mutex<Operations>,
}

/// The workspace, and operations by their problems. One lock: calls that share a workspace run one
/// after the other anyway.
pub(crate) struct Operations {
    pub(crate) workspace: Workspace,
    forward: Cache<Forward>,
    backward: Cache<Backward>,
    base_forward: Cache<BaseForward>,
    base_input_grad: Cache<BaseInputGrad>,
}

/// A lock. A panic elsewhere leaves nothing half-written that the next call reads.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernels {
    /// The handles of this device: made for its first layer.
    pub(crate) fn of(device: &Device) -> Result<Arc<Self>> {
        static ALL: Mutex<Vec<Weak<Kernels>>> = Mutex::new(Vec::new());
        let mut all = lock(&ALL);
        all.retain(|kernels| kernels.strong_count() > 0);
        let mut known = all.iter().filter_map(Weak::upgrade);
        if let Some(kernels) = known.find(|kernels| kernels.candle.same_device(device)) {
            return Ok(kernels);
        }
        let own = match device {
            Device::Cpu => lk::Device::cpu(),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => lk::Device::from_stream(device.cuda_stream()).map_err(err)?,
            other => bail!("lora-kernels has no kernels for {:?}", other.location()),
        };
        let operations = Mutex::new(Operations {
            workspace: Workspace::new(&own, lk::WorkspaceSize::default()).map_err(err)?,
            forward: Cache::default(),
            backward: Cache::default(),
            base_forward: Cache::default(),
            base_input_grad: Cache::default(),
        });
        let kernels = Arc::new(Kernels { candle: device.clone(), device: own, operations });
        all.push(Arc::downgrade(&kernels));
        Ok(kernels)
    }

    pub(crate) fn operations(&self) -> MutexGuard<'_, Operations> {
        lock(&self.operations)
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels on {}", self.device)
    }
}

impl Operations {
    /// The forward pass, with a workspace that is large enough.
    pub(crate) fn forward(&mut self, device: &lk::Device, problem: &Problem) -> Result<Forward> {
        let operation = self.forward.get(problem, || Forward::new(device, problem))?;
        self.workspace.reserve(device, operation.workspace()).map_err(err)?;
        Ok(operation)
    }

    pub(crate) fn backward(&mut self, device: &lk::Device, problem: &Problem) -> Result<Backward> {
        let operation = self.backward.get(problem, || Backward::new(device, problem))?;
        self.workspace.reserve(device, operation.workspace()).map_err(err)?;
        Ok(operation)
    }

    /// The frozen layer's forward, likewise. `problem` is that of a layer of rank 1.
    pub(crate) fn base_forward(
        &mut self,
        device: &lk::Device,
        problem: &Problem,
    ) -> Result<BaseForward> {
        let (t, sizes, dtype) = base(problem);
        let operation =
            self.base_forward.get(problem, || BaseForward::new(device, t, sizes, dtype))?;
        self.workspace.reserve(device, operation.workspace()).map_err(err)?;
        Ok(operation)
    }

    pub(crate) fn base_input_grad(
        &mut self,
        device: &lk::Device,
        problem: &Problem,
    ) -> Result<BaseInputGrad> {
        let (t, sizes, dtype) = base(problem);
        let operation =
            self.base_input_grad.get(problem, || BaseInputGrad::new(device, t, sizes, dtype))?;
        self.workspace.reserve(device, operation.workspace()).map_err(err)?;
        Ok(operation)
    }
}

/// T, [d, k] and the element type.
fn base(problem: &Problem) -> (usize, [usize; 2], lk::DType) {
    (problem.t(), [problem.projections()[0].0, problem.k()], problem.dtype())
}

/// The operations used last, at most [`KEPT`].
struct Cache<T> {
    entries: HashMap<Problem, (u64, T)>,
    uses: u64,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Cache { entries: HashMap::new(), uses: 0 }
    }
}

impl<T: Clone> Cache<T> {
    fn get(&mut self, problem: &Problem, make: impl FnOnce() -> lk::Result<T>) -> Result<T> {
        self.uses += 1;
        if let Some((last, operation)) = self.entries.get_mut(problem) {
            *last = self.uses;
            return Ok(operation.clone());
        }
        let operation = make().map_err(err)?;
        if self.entries.len() >= KEPT {
            let oldest = self.entries.iter().min_by_key(|(_, (last, _))| *last);
            if let Some(oldest) = oldest.map(|(problem, _)| *problem) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(*problem, (self.uses, operation.clone()));
        Ok(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_kept_and_bounded() {
        let mut cache = Cache::default();
        let mut made = 0;
        let mut get = |t| {
            let problem = Problem::single(t, 8, 8, 2, lk::DType::F32).unwrap();
            let make = || {
                made += 1;
                Ok(made)
            };
            (cache.get(&problem, make).unwrap(), cache.entries.len())
        };
        assert_eq!([1, 2, 1, 1, 2].map(|t| get(t).0), [1, 2, 1, 1, 2]);
        // T = 1 is used between all others, so it stays.
        for t in 3..3 * KEPT {
            assert_eq!(get(t).0, t);
            assert_eq!(get(1).0, 1);
        }
        assert_eq!(get(1).1, KEPT);
        // T = 2 is not kept: it is made again.
        assert_eq!(get(2).0, 3 * KEPT);
    }

    #[test]
    fn layers_of_a_device_share_its_handles() {
        let (one, two) = (Kernels::of(&Device::Cpu).unwrap(), Kernels::of(&Device::Cpu).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
    }
}
