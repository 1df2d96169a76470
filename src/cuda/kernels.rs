//! The kernels of a context: embedded machine code, loaded once.

use super::driver;
use crate::plan::{
    grad_kernel, hopper_linear_kernel, linear_kernel, merge_kernel, project_kernel, Footprint,
};
use crate::{DType, Error, Result};
use cudarc::driver::{sys, CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

// FATBINS and NOT_BUILT, by the build script.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// An entry point and what it takes to launch it.
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    pub(super) footprint: Footprint,
}

/// One kernel for rank tiles of 16, one for 64.
pub(super) struct ByRank {
    r16: Kernel,
    r64: Kernel,
}

impl ByRank {
    pub(super) fn get(&self, rank_tile: usize) -> &Kernel {
        match rank_tile {
            16 => &self.r16,
            _ => &self.r64,
        }
    }
}

/// The two forms of the base product.
pub(super) struct LinearKernels {
    pub(super) forward: Kernel,
    pub(super) input_grad: Kernel,
}

/// The kernels of one element type.
pub(super) struct ElementKernels {
    pub(super) linear: LinearKernels,
    /// Absent on other GPUs, and in builds that were narrowed to others.
    pub(super) hopper_linear: Option<LinearKernels>,
    pub(super) project_s: ByRank,
    pub(super) project_ds: ByRank,
    pub(super) grad: ByRank,
    pub(super) merge: Kernel,
}

/// All kernels of one context.
pub(super) struct Kernels {
    context: Arc<CudaContext>,
    bf16: ElementKernels,
    f16: ElementKernels,
    pub(super) reduce: Kernel,
}

/// The kernels of every context that has any; gone with the last device that uses them.
static LOADED: Mutex<Vec<Weak<Kernels>>> = Mutex::new(Vec::new());

/// Refuses a build without kernels.
pub(super) fn check_built() -> Result<()> {
    match NOT_BUILT {
        None => Ok(()),
        Some(reason) => Err(Error::KernelsNotBuilt { reason }),
    }
}

impl Kernels {
    /// The kernels of this context, loaded by the first caller.
    pub(super) fn of_context(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|kernels| kernels.strong_count() > 0);
        let found = loaded.iter().filter_map(Weak::upgrade).find(|k| k.context == *context);
        if let Some(kernels) = found {
            return Ok(kernels);
        }
        let kernels = Arc::new(Kernels::load(context)?);
        loaded.push(Arc::downgrade(&kernels));
        Ok(kernels)
    }

    fn load(context: &Arc<CudaContext>) -> Result<Self> {
        let mut modules = HashMap::new();
        for &(name, fatbin) in FATBINS {
            if name.starts_with("hopper") && !is_hopper(context)? {
                continue;
            }
            let module = context.load_module(Ptx::from_binary(fatbin.to_vec()));
            modules.insert(name, module.map_err(driver::during("cuModuleLoadData"))?);
        }
        Ok(Kernels {
            context: context.clone(),
            bf16: ElementKernels::load(&modules, "bf16")?,
            f16: ElementKernels::load(&modules, "f16")?,
            reduce: kernel(&modules, "reduce", "reduce_partials", Footprint::REDUCE)?,
        })
    }

    pub(super) fn has_hopper(&self) -> bool {
        self.bf16.hopper_linear.is_some() && self.f16.hopper_linear.is_some()
    }

    /// The kernels for bf16 or f16, the element types that calls on CUDA devices are checked for.
    pub(super) fn of(&self, dtype: DType) -> &ElementKernels {
        match dtype {
            DType::F16 => &self.f16,
            _ => &self.bf16,
        }
    }
}

/// Code for sm_90a runs on compute capability 9.0 and nowhere else; others refuse to load it.
fn is_hopper(context: &Arc<CudaContext>) -> Result<bool> {
    let capability = context.compute_capability();
    Ok(capability.map_err(driver::during("cuDeviceGetAttribute"))? == (9, 0))
}

impl ElementKernels {
    fn load(modules: &HashMap<&str, Arc<CudaModule>>, element: &str) -> Result<Self> {
        let one = |file: &str, name: &str, footprint| {
            kernel(modules, file, &format!("{name}_{element}"), footprint)
        };
        let linear = |file: &str, footprint: Footprint| {
            let forward = one(file, &format!("{file}_forward"), footprint)?;
            let input_grad = one(file, &format!("{file}_input_grad"), footprint)?;
            Ok(LinearKernels { forward, input_grad })
        };
        let by_rank = |file: &str, name: &str, footprint: fn(usize) -> Footprint| {
            let r16 = one(file, &format!("{name}_r16"), footprint(16))?;
            let r64 = one(file, &format!("{name}_r64"), footprint(64))?;
            Ok(ByRank { r16, r64 })
        };
        Ok(ElementKernels {
            linear: linear("linear", linear_kernel())?,
            hopper_linear: match modules.contains_key("hopper_linear") {
                true => Some(linear("hopper_linear", hopper_linear_kernel())?),
                false => None,
            },
            project_s: by_rank("project", "project_s", project_kernel)?,
            project_ds: by_rank("project", "project_ds", project_kernel)?,
            grad: by_rank("grad", "grad", grad_kernel)?,
            merge: one("merge", "merge", merge_kernel())?,
        })
    }
}

/// Looks an entry point up and allows it its shared memory. That also loads its code now, not at
/// its first launch, which may be inside a graph capture.
fn kernel(
    modules: &HashMap<&str, Arc<CudaModule>>,
    file: &str,
    name: &str,
    footprint: Footprint,
) -> Result<Kernel> {
    let module = modules.get(file).ok_or(Error::KernelsNotBuilt {
        reason: "a kernel file was left out for the architectures the build was narrowed to",
    })?;
    let function = module.load_function(name).map_err(driver::during("cuModuleGetFunction"))?;
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let allowed = function.set_attribute(attribute, footprint.shared_bytes as i32);
    allowed.map_err(driver::during("cuFuncSetAttribute"))?;
    Ok(Kernel { function, footprint })
}
