//! The kernels of a context: embedded machine code, loaded once.

use super::driver;
use super::launch::Linear;
use crate::plan::{self, grad_kernel, linear_kernel, merge_kernel, project_kernel, Footprint};
use crate::{DType, Error, Result};
use cudarc::driver::{sys, CudaContext, CudaFunction, CudaModule, CudaStream, LaunchConfig};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::iter;
use std::sync::{Arc, Mutex, PoisonError, Weak};

// FATBINS and NOT_BUILT, by the build script.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// An entry point and what it takes to launch it.
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    pub(super) footprint: Footprint,
}

impl Kernel {
    /// For so many blocks.
    pub(super) fn config(&self, grid: [usize; 2]) -> Result<LaunchConfig> {
        if grid[0] > i32::MAX as usize || grid[1] > u16::MAX as usize {
            return Err(Error::TooLarge { what: format!("a launch of {grid:?} blocks") });
        }
        let Footprint { threads, shared_bytes } = self.footprint;
        Ok(LaunchConfig {
            grid_dim: (grid[0] as u32, grid[1] as u32, 1),
            block_dim: (threads[0], threads[1], 1),
            shared_mem_bytes: shared_bytes,
        })
    }
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

/// A form of the product on Hopper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HopperLinear {
    pub(super) linear: Linear,
    /// For several layers that share X, or for one.
    pub(super) shared: bool,
    /// The columns of its tiles, and of the slices of S that they may make, or 0.
    pub(super) tile_n: usize,
    pub(super) slice: usize,
}

impl HopperLinear {
    /// All that there are.
    fn all() -> impl Iterator<Item = HopperLinear> {
        use plan::hopper::{FORWARD_TILES_N, SLICES, TILES_N};
        let with_slices = TILES_N.into_iter().flat_map(|tile_n| {
            let slices = SLICES.into_iter().map(move |slice| (Linear::Forward, tile_n, slice));
            let input_grad = iter::once(0).chain(SLICES);
            slices.chain(input_grad.map(move |slice| (Linear::InputGrad, tile_n, slice)))
        });
        let without = FORWARD_TILES_N.map(|tile_n| (Linear::Forward, tile_n, 0));
        with_slices.chain(without).flat_map(|(linear, tile_n, slice)| {
            [false, true].map(|shared| HopperLinear { linear, shared, tile_n, slice })
        })
    }

    /// The file that it is in.
    fn file(&self) -> &'static str {
        if self.shared {
            "hopper_linear_shared"
        } else {
            "hopper_linear"
        }
    }

    /// Its name, but for the element type.
    fn name(&self) -> String {
        let &HopperLinear { linear, tile_n, slice, .. } = self;
        let slice = if slice > 0 { format!("_slice{slice}") } else { String::new() };
        format!("{}_{}{slice}_n{tile_n}", self.file(), linear.name())
    }
}

/// A form of the product for short batches, in tiles of so many rows and columns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HopperShort {
    pub(super) linear: Linear,
    pub(super) tile_m: usize,
    pub(super) tile_n: usize,
}

impl HopperShort {
    /// All that there are.
    fn all() -> impl Iterator<Item = HopperShort> {
        use plan::hopper_short::{FORWARD_TILES_N, INPUT_GRAD_TILES_N, TILES_M};
        let forward = FORWARD_TILES_N.map(|tile_n| (Linear::Forward, tile_n));
        let input_grad = INPUT_GRAD_TILES_N.map(|tile_n| (Linear::InputGrad, tile_n));
        let both = forward.into_iter().chain(input_grad);
        both.flat_map(|(linear, tile_n)| {
            TILES_M.map(|tile_m| HopperShort { linear, tile_m, tile_n })
        })
    }
}

/// The kernels of one element type.
pub(super) struct ElementKernels {
    pub(super) linear: LinearKernels,
    /// None on other GPUs, and in builds that were narrowed to others.
    pub(super) hopper_linear: Vec<(HopperLinear, Kernel)>,
    /// The same for few tokens, by tile of them.
    pub(super) hopper_decode: Vec<((Linear, usize), Kernel)>,
    /// The same for short batches.
    pub(super) hopper_short: Vec<(HopperShort, Kernel)>,
    /// The same for gradients, by tile of the rank.
    pub(super) hopper_grads: Vec<(usize, Kernel)>,
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
    /// Whether launches may overlap, inside graph captures too.
    pub(super) overlap: bool,
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
            overlap: driver::version()? >= 12_030,
        })
    }

    /// Pairs of blocks of the Hopper kernels that run at once, for which launches may wait for one
    /// another's blocks; 0 if there are none of these kernels.
    pub(super) fn hopper_pairs(&self, stream: &CudaStream) -> Result<usize> {
        let elements = [&self.bf16, &self.f16].into_iter();
        let kernels = elements.flat_map(|kernels| &kernels.hopper_linear);
        let pairs = kernels.map(|(_, kernel)| {
            let config = kernel.config([2, 1])?;
            let pairs = kernel.function.occupancy_max_active_clusters(config, stream);
            pairs.map_err(driver::during("cuOccupancyMaxActiveClusters"))
        });
        let pairs = pairs.collect::<Result<Vec<u32>>>()?;
        Ok(pairs.into_iter().min().unwrap_or(0) as usize)
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
        let hopper_linear =
            |of: HopperLinear| Ok((of, one(of.file(), &of.name(), plan::hopper::FOOTPRINT)?));
        let hopper_decode = |of: (Linear, usize)| {
            let (linear, tile_t) = of;
            let footprint = match linear {
                Linear::Forward => plan::hopper_decode::FOOTPRINT,
                Linear::InputGrad => plan::hopper_decode::INPUT_GRAD_FOOTPRINT,
            };
            let name = format!("hopper_decode_{}_n{tile_t}", linear.name());
            Ok((of, one("hopper_decode", &name, footprint)?))
        };
        let hopper_short = |of: HopperShort| {
            let HopperShort { linear, tile_m, tile_n } = of;
            let name = format!("hopper_short_{}_m{tile_m}_n{tile_n}", linear.name());
            Ok((of, one("hopper_short", &name, plan::hopper_short::FOOTPRINT)?))
        };
        let hopper_grads = |rank_tile: usize| {
            let name = format!("hopper_grads_r{rank_tile}");
            Ok((rank_tile, one("hopper_grads", &name, plan::hopper_grads::FOOTPRINT)?))
        };
        let by_rank = |file: &str, name: &str, footprint: fn(usize) -> Footprint| {
            let r16 = one(file, &format!("{name}_r16"), footprint(16))?;
            let r64 = one(file, &format!("{name}_r64"), footprint(64))?;
            Ok(ByRank { r16, r64 })
        };
        Ok(ElementKernels {
            linear: LinearKernels {
                forward: one("linear", "linear_forward", linear_kernel())?,
                input_grad: one("linear", "linear_input_grad", linear_kernel())?,
            },
            hopper_linear: match modules.contains_key("hopper_linear") {
                true => HopperLinear::all().map(hopper_linear).collect::<Result<_>>()?,
                false => Vec::new(),
            },
            hopper_decode: match modules.contains_key("hopper_decode") {
                true => {
                    use plan::hopper_decode::{INPUT_GRAD_TILES_T, TILES_T};
                    let forward = TILES_T.map(|tile_t| (Linear::Forward, tile_t)).into_iter();
                    let input_grad = INPUT_GRAD_TILES_T.map(|tile_t| (Linear::InputGrad, tile_t));
                    forward.chain(input_grad).map(hopper_decode).collect::<Result<_>>()?
                }
                false => Vec::new(),
            },
            hopper_short: match modules.contains_key("hopper_short") {
                true => HopperShort::all().map(hopper_short).collect::<Result<_>>()?,
                false => Vec::new(),
            },
            hopper_grads: match modules.contains_key("hopper_grads") {
                true => {
                    let tiles = plan::hopper_grads::RANK_TILES.into_iter();
                    tiles.map(hopper_grads).collect::<Result<_>>()?
                }
                false => Vec::new(),
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
