//! The kernels of a context: embedded machine code, loaded once and for good.

use super::context::{self, Current, Relaxed};
use super::launch::Kernel;
use super::params::{
    ForwardParams, GradParams, HopperDecodeParams, HopperGradsParams, HopperShortParams,
    InputGradParams, KernelParams, LinearParams, MergeParams, ProjectParams, ReduceParams,
    RoundParams, WithGrads,
};
use super::probe::{self, check};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::{self, DeviceProfile, Footprint};
use cudarc::driver::{sys, CudaContext};
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

// FATBINS and NOT_BUILT, by the build script.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Entry points by what they are instantiated for; few, so that the first match is soon found.
pub(crate) struct Instances<Key, P>(Vec<(Key, Kernel<P>)>);

impl<Key: PartialEq, P> Instances<Key, P> {
    /// The kernel for this key; `None` on other GPUs, and in builds that were narrowed to others.
    pub(crate) fn get(&self, key: Key) -> Option<Kernel<P>> {
        self.0.iter().find(|(of, _)| *of == key).map(|(_, kernel)| *kernel)
    }
}

/// What hopper_linear is instantiated for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HopperLinear {
    /// For several projections that share X, or for one.
    pub(crate) shared: bool,
    /// The columns of its tiles, and of the slices of S that they may make, or 0.
    pub(crate) tile_n: usize,
    pub(crate) slice: usize,
}

impl HopperLinear {
    /// Its file, and its name but for the element type.
    fn names(&self, form: &str) -> (&'static str, String) {
        let &HopperLinear { shared, tile_n, slice } = self;
        let [file, entry] = match shared {
            true => ["sm90a/linear_shared", "hopper_linear_shared"],
            false => ["sm90a/linear", "hopper_linear"],
        };
        let slice = if slice > 0 { format!("_slice{slice}") } else { String::new() };
        (file, format!("{entry}_{form}{slice}_n{tile_n}"))
    }

    fn all(tiles_n: &[usize], slices: &[usize]) -> impl Iterator<Item = Self> {
        let each = tiles_n.iter().flat_map(move |&tile_n| {
            slices.iter().flat_map(move |&slice| {
                [false, true].map(|shared| HopperLinear { shared, tile_n, slice })
            })
        });
        each.collect::<Vec<_>>().into_iter()
    }
}

/// The kernels of one element type.
pub(crate) struct ElementKernels {
    pub(crate) linear_forward: Kernel<LinearParams>,
    pub(crate) linear_input_grad: Kernel<LinearParams>,
    /// By rank tile, as the next three.
    pub(crate) project_s: Instances<usize, ProjectParams>,
    pub(crate) project_ds: Instances<usize, ProjectParams>,
    pub(crate) grad: Instances<usize, GradParams>,
    pub(crate) merge: Kernel<MergeParams>,
    pub(crate) round: Kernel<RoundParams>,
    pub(crate) hopper_forward: Instances<HopperLinear, ForwardParams>,
    pub(crate) hopper_input_grad: Instances<HopperLinear, InputGradParams>,
    /// By rank tile.
    pub(crate) hopper_grads: Instances<usize, HopperGradsParams>,
    /// By rows and columns of their tiles.
    pub(crate) short_forward: Instances<[usize; 2], HopperShortParams>,
    pub(crate) short_input_grad: Instances<[usize; 2], WithGrads<HopperShortParams>>,
    /// By tokens of their tiles.
    pub(crate) decode_forward: Instances<usize, HopperDecodeParams>,
    pub(crate) decode_input_grad: Instances<usize, WithGrads<HopperDecodeParams>>,
}

/// All kernels of one context, and what plans need to know of it.
pub(crate) struct Kernels {
    context: Arc<CudaContext>,
    bf16: ElementKernels,
    f16: ElementKernels,
    pub(crate) reduce: Kernel<ReduceParams>,
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

        let mut modules = Modules(HashMap::new());
        for fatbin in FATBINS.iter().filter(|fatbin| fatbin.runs_on(capability)) {
            modules.load(fatbin)?;
        }
        let (bf16, f16) =
            (ElementKernels::load(&modules, "bf16")?, ElementKernels::load(&modules, "f16")?);
        let clusters = bf16.max_active_clusters()?.min(f16.max_active_clusters()?).min(sms / 2);
        Ok(Kernels {
            context: context.clone(),
            reduce: modules.kernel("sm80/reduce", "reduce_partials", plan::mma::REDUCE)?,
            bf16,
            f16,
            overlap: probe::version()? >= 12_030,
            profile: Arc::new(DeviceProfile::new(name, capability, sms, clusters)),
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
    fn load(modules: &Modules, element: &str) -> Result<Self> {
        use plan::mma::{self, grad_kernel, linear_kernel, merge_kernel, project_kernel};
        use plan::{hopper, hopper_decode, hopper_grads, hopper_short};
        let named = |name: &str| format!("{name}_{element}");
        let by_rank = |rank_tile: usize, name: &str| named(&format!("{name}_r{rank_tile}"));
        let ranks = || [16, 64].into_iter();
        let tiles = |tiles_n: &[usize]| -> Vec<_> {
            let each = tiles_n.iter();
            each.flat_map(|&n| hopper_short::TILES_M.map(|m| [m, n])).collect()
        };
        let with_slices = HopperLinear::all(&hopper::TILES_N, &hopper::SLICES);
        let forward = with_slices.chain(HopperLinear::all(&hopper::FORWARD_TILES_N, &[0]));
        let input_grad = HopperLinear::all(&hopper::TILES_N, &[0, 16, 64]);
        let linear = |form: &'static str| {
            move |of: HopperLinear| {
                let (file, name) = of.names(form);
                (file, format!("{name}_{element}"), hopper::FOOTPRINT)
            }
        };
        Ok(ElementKernels {
            linear_forward: modules.kernel(
                "sm80/linear",
                &named("linear_forward"),
                linear_kernel(),
            )?,
            linear_input_grad: modules.kernel(
                "sm80/linear",
                &named("linear_input_grad"),
                linear_kernel(),
            )?,
            project_s: modules.instances(ranks(), |r| {
                ("sm80/project", by_rank(r, "project_s"), project_kernel(r))
            })?,
            project_ds: modules.instances(ranks(), |r| {
                ("sm80/project", by_rank(r, "project_ds"), project_kernel(r))
            })?,
            grad: modules
                .instances(ranks(), |r| ("sm80/grad", by_rank(r, "grad"), grad_kernel(r)))?,
            merge: modules.kernel("sm80/merge", &named("merge"), merge_kernel())?,
            round: modules.kernel("sm80/round", &named("round"), mma::ROUND)?,
            hopper_forward: modules.instances(forward, linear("forward"))?,
            hopper_input_grad: modules.instances(input_grad, linear("input_grad"))?,
            hopper_grads: modules.instances(hopper_grads::RANK_TILES.into_iter(), |r| {
                ("sm90a/grads", by_rank(r, "hopper_grads"), hopper_grads::FOOTPRINT)
            })?,
            short_forward: modules.instances(
                tiles(&hopper_short::FORWARD_TILES_N).into_iter(),
                |[m, n]| {
                    let name = named(&format!("hopper_short_forward_m{m}_n{n}"));
                    ("sm90a/short", name, hopper_short::FOOTPRINT)
                },
            )?,
            short_input_grad: modules.instances(
                tiles(&hopper_short::INPUT_GRAD_TILES_N).into_iter(),
                |[m, n]| {
                    let name = named(&format!("hopper_short_input_grad_m{m}_n{n}"));
                    ("sm90a/short", name, hopper_short::FOOTPRINT)
                },
            )?,
            decode_forward: modules.instances(hopper_decode::TILES_T.into_iter(), |t| {
                let name = named(&format!("hopper_decode_forward_n{t}"));
                ("sm90a/decode", name, hopper_decode::FOOTPRINT)
            })?,
            decode_input_grad: modules.instances(
                hopper_decode::INPUT_GRAD_TILES_T.into_iter(),
                |t| {
                    let name = named(&format!("hopper_decode_input_grad_n{t}"));
                    ("sm90a/decode", name, hopper_decode::INPUT_GRAD_FOOTPRINT)
                },
            )?,
        })
    }

    /// Clusters of the persistent kernels for Hopper that run at once, whose CTAs may wait for one
    /// another; 0 if there are none of these kernels.
    fn max_active_clusters(&self) -> Result<usize> {
        let forward = self.hopper_forward.0.iter().map(|(_, kernel)| kernel.max_active_clusters());
        let input_grad =
            self.hopper_input_grad.0.iter().map(|(_, kernel)| kernel.max_active_clusters());
        let all = forward.chain(input_grad).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().min().unwrap_or(0))
    }
}

/// The modules of a context, by the names of their files.
struct Modules(HashMap<&'static str, sys::CUmodule>);

impl Modules {
    fn load(&mut self, fatbin: &'static Fatbin) -> Result<()> {
        // On the heap it is aligned, which embedded it need not be.
        let (image, mut module) = (fatbin.image.to_vec(), ptr::null_mut());
        // SAFETY: the image is a whole fatbin, which nvcc made.
        let loaded = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        check("cuModuleLoadData", loaded)?;
        self.0.insert(fatbin.name, module);
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
        let &module = self.0.get(file).ok_or(Error::KernelsNotBuilt {
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
        // SAFETY: modules are never unloaded, and `ElementKernels` has every kernel with its
        // parameters.
        Ok(unsafe { Kernel::new(function, footprint) })
    }

    /// The same for every key, unless the file is not there.
    fn instances<Key: Copy, P: KernelParams>(
        &self,
        keys: impl Iterator<Item = Key>,
        of: impl Fn(Key) -> (&'static str, String, Footprint),
    ) -> Result<Instances<Key, P>> {
        let mut all = Vec::new();
        for key in keys {
            let (file, name, footprint) = of(key);
            if self.0.contains_key(file) || file.starts_with("sm80/") {
                all.push((key, self.kernel(file, &name, footprint)?));
            }
        }
        Ok(Instances(all))
    }
}
