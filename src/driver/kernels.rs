//! The kernels of a context: embedded machine code, loaded once and for good.

use super::context::{self, Current, Relaxed};
use super::launch::{Footprint, Kernel};
use super::params::*;
use super::probe::{self, check};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::{DeviceProfile, Rates};
use cudarc::driver::{CudaContext, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

/// The machine code of a kernel file.
struct Fatbin {
    /// Like `sm90a/linear`.
    name: &'static str,
    /// The oldest compute capability that runs it, and whether no other does.
    oldest: (u32, u32),
    only: bool,
    image: &'static [u8],
}

impl Fatbin {
    fn runs_on(&self, capability: (u32, u32)) -> bool {
        capability == self.oldest || capability > self.oldest && !self.only
    }
}

// By the build script: FATBINS, NOT_BUILT, and the modules sm80 and sm90a, whose `Kernels` have all
// kernels of the manifest.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Entry points by what they are instantiated for; few, so that the first match is soon found.
pub(crate) struct Instances<Key, P>(Vec<(Key, Kernel<P>)>);

impl<Key: PartialEq, P> Instances<Key, P> {
    /// The kernel for this key; `None` on other GPUs, and in builds that were narrowed to others.
    pub(crate) fn get(&self, key: Key) -> Option<Kernel<P>> {
        self.0.iter().find(|(of, _)| *of == key).map(|(_, kernel)| *kernel)
    }

    /// The fewest clusters of two CTAs that run at once, of any of these.
    fn clusters(&self) -> Result<Option<usize>> {
        let all = self.0.iter().map(|(_, kernel)| kernel.max_active_clusters());
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().min())
    }
}

/// The kernels of one element type.
pub(crate) struct ElementKernels {
    pub(crate) sm80: sm80::Kernels,
    pub(crate) sm90a: sm90a::Kernels,
}

/// All kernels of one context, and what plans need to know of it.
pub(crate) struct Kernels {
    context: Arc<CudaContext>,
    bf16: ElementKernels,
    f16: ElementKernels,
    /// Whether launches may overlap, inside graph captures too.
    pub(crate) overlap: bool,
    pub(crate) profile: Arc<DeviceProfile>,
}

/// The kernels of every context that has any.
///
/// NOTES: they are never unloaded, and keep their context. A captured graph may run them without
/// anybody here knowing, and to unload a module while another thread captures breaks its capture.
static LOADED: Mutex<Vec<&'static Kernels>> = Mutex::new(Vec::new());

fn find(loaded: &[&'static Kernels], context: sys::CUcontext) -> Option<&'static Kernels> {
    loaded.iter().find(|kernels| kernels.context.cu_ctx() == context).copied()
}

/// Refuses a build without kernels.
fn check_built() -> Result<()> {
    match NOT_BUILT {
        None => Ok(()),
        Some(reason) => Err(Error::KernelsNotBuilt { reason }),
    }
}

impl Kernels {
    /// The kernels of this context, loaded by the first caller.
    pub(crate) fn of_context(context: &Arc<CudaContext>) -> Result<&'static Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = find(&loaded, context.cu_ctx()) {
            return Ok(kernels);
        }
        check_built()?;
        let _current = Current::new(context)?;
        let _relaxed = Relaxed::new();
        let kernels: &'static Self = Box::leak(Box::new(Kernels::load(context)?));
        loaded.push(kernels);
        Ok(kernels)
    }

    /// The context with this handle, if its kernels are loaded.
    pub(super) fn loaded_context(context: sys::CUcontext) -> Option<&'static Arc<CudaContext>> {
        let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        find(&loaded, context).map(|kernels| &kernels.context)
    }

    fn load(context: &Arc<CudaContext>) -> Result<Self> {
        let attribute = |attribute| {
            let value = context.attribute(attribute);
            value.map(|value| value as u32).map_err(probe::during("cuDeviceGetAttribute"))
        };
        use sys::CUdevice_attribute::*;
        let capability = (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let name = context.name().map_err(probe::during("cuDeviceGetName"))?;
        if capability.0 < 8 {
            return Err(Error::UnsupportedDevice { name, compute_capability: capability });
        }
        let sms = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let sms = context::sms(context).unwrap_or(sms);
        let mhz = |khz: u32| khz as usize / 1000;
        // Two transfers a clock.
        let bus_bytes = attribute(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? as usize / 8;
        let rates = Rates {
            clock_mhz: mhz(attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?),
            memory_mb_s: 2 * bus_bytes * mhz(attribute(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?),
        };

        let shared_bytes = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut modules = Modules { of: HashMap::new(), shared_bytes };
        for fatbin in FATBINS.iter().filter(|fatbin| fatbin.runs_on(capability)) {
            modules.load(fatbin)?;
        }
        let [bf16, f16] = [0, 1].map(|element| ElementKernels::load(&modules, element));
        let (bf16, f16) = (bf16?, f16?);
        let clusters = bf16.max_active_clusters()?.min(f16.max_active_clusters()?).min(sms / 2);
        Ok(Kernels {
            context: context.clone(),
            bf16,
            f16,
            overlap: probe::version()? >= 12_030,
            profile: {
                let profile = DeviceProfile::new(name, capability, [sms, clusters], rates);
                Arc::new(profile.with_shared_limit(shared_bytes as usize))
            },
        })
    }

    /// The kernels for bf16 or f16, the element types that calls on CUDA devices are checked for.
    pub(crate) fn of(&self, dtype: DType) -> &ElementKernels {
        match dtype {
            DType::Bf16 => &self.bf16,
            DType::F16 => &self.f16,
            DType::F32 => unreachable!("calls on CUDA devices are checked to be of 16 bits"),
        }
    }
}

impl ElementKernels {
    /// bf16 is element 0, f16 element 1.
    fn load(modules: &Modules, element: usize) -> Result<Self> {
        let sm80 = sm80::Kernels::load(modules, element)?;
        Ok(ElementKernels { sm80, sm90a: sm90a::Kernels::load(modules, element)? })
    }

    /// Clusters of the persistent kernels for Hopper that run at once, whose CTAs may wait for one
    /// another; 0 if there are none of these kernels.
    fn max_active_clusters(&self) -> Result<usize> {
        let sm90a::Kernels {
            linear_forward,
            linear_input_grad,
            linear_group_forward,
            linear_group_input_grad,
            ..
        } = &self.sm90a;
        let forward = [linear_forward.clusters(), linear_group_forward.clusters()];
        let input_grad = [linear_input_grad.clusters(), linear_group_input_grad.clusters()];
        let all = forward.into_iter().chain(input_grad).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().min().unwrap_or(0))
    }
}

/// The modules of a context.
struct Modules {
    /// By the names of their files.
    of: HashMap<&'static str, sys::CUmodule>,
    /// Shared memory of a CTA, at most.
    shared_bytes: u32,
}

impl Modules {
    fn load(&mut self, fatbin: &'static Fatbin) -> Result<()> {
        // On the heap it is aligned, which embedded it need not be.
        let (image, mut module) = (fatbin.image.to_vec(), ptr::null_mut());
        // SAFETY: the image is a whole fatbin, which nvcc made.
        let loaded = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        check("cuModuleLoadData", loaded)?;
        self.of.insert(fatbin.name, module);
        Ok(())
    }

    /// An entry point, with its dynamic shared memory allowed. That also loads its code now, not
    /// at its first launch, which may be inside a graph capture.
    fn kernel<P: KernelParams>(
        &self,
        file: &str,
        name: &str,
        footprint: Footprint,
    ) -> Result<Kernel<P>> {
        let &module = self.of.get(file).ok_or(Error::KernelsNotBuilt {
            reason: "a kernel file was left out for the architectures the build was narrowed to",
        })?;
        let symbol = CString::new(name).expect("a name without zeros");
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded.
        let found = unsafe { sys::cuModuleGetFunction(&mut function, module, symbol.as_ptr()) };
        check("cuModuleGetFunction", found)?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = footprint.shared_bytes as i32;
        // SAFETY: the function is of that module.
        check("cuFuncSetAttribute", unsafe {
            sys::cuFuncSetAttribute(function, attribute, bytes)
        })?;
        // SAFETY: modules are never unloaded, and the manifest has the parameters of a kernel once,
        // for its definition and for its field in `sm80::Kernels` or `sm90a::Kernels`.
        Ok(unsafe { Kernel::new(function, footprint) })
    }

    /// The same for every key whose shared memory the device has, unless the file is not there.
    fn instances<Key: Copy, P: KernelParams>(
        &self,
        file: &str,
        instances: &[(Key, &str, Footprint)],
    ) -> Result<Instances<Key, P>> {
        let there = if self.of.contains_key(file) { instances } else { &[] };
        let all = there
            .iter()
            .filter(|(.., footprint)| footprint.shared_bytes <= self.shared_bytes)
            .map(|&(key, name, footprint)| Ok((key, self.kernel(file, name, footprint)?)));
        all.collect::<Result<_>>().map(Instances)
    }
}
