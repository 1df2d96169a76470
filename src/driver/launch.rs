//! Launches.

use super::params::KernelParams;
use super::probe::check;
use super::stream::Run;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::marker::PhantomData;
use std::ptr;

/// Threads and dynamic shared memory of a CTA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footprint {
    pub(super) threads: [u32; 2],
    pub(super) shared_bytes: u32,
}

/// An entry point that takes a `P`, and what a CTA of it needs. Kernels are never unloaded, so the
/// handle is valid for as long as the process runs.
pub(crate) struct Kernel<P> {
    function: sys::CUfunction,
    footprint: Footprint,
    params: PhantomData<fn(&P)>,
}

impl<P> Clone for Kernel<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Kernel<P> {}

// SAFETY: the driver's functions may be launched from any thread.
unsafe impl<P> Send for Kernel<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Kernel<P> {}

/// How a launch relates to others.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LaunchMode {
    /// Programmatic dependent launch: CTAs may start as soon as there is room for them, and the
    /// kernel itself waits for the one before it in the stream (`griddepcontrol.wait`).
    pub(crate) overlap: bool,
    /// All CTAs run at the same time, or the launch is refused.
    pub(crate) cooperative: bool,
}

impl<P> Kernel<P> {
    /// # Safety
    /// The function must be loaded for good, and take one parameter, a `P`.
    pub(super) unsafe fn new(function: sys::CUfunction, footprint: Footprint) -> Self {
        Kernel { function, footprint, params: PhantomData }
    }

    /// The same with another size of dynamic shared memory, no larger than it was loaded for.
    pub(crate) fn with_shared_bytes(mut self, shared_bytes: u32) -> Self {
        assert!(shared_bytes <= self.footprint.shared_bytes);
        self.footprint.shared_bytes = shared_bytes;
        self
    }

    fn config(&self, grid: [usize; 2]) -> Result<sys::CUlaunchConfig> {
        if grid[0] > i32::MAX as usize || grid[1] > u16::MAX as usize {
            return Err(Error::TooLarge { what: format!("a launch of {grid:?} blocks") });
        }
        let Footprint { threads, shared_bytes } = self.footprint;
        Ok(sys::CUlaunchConfig {
            gridDimX: grid[0] as u32,
            gridDimY: grid[1] as u32,
            gridDimZ: 1,
            blockDimX: threads[0],
            blockDimY: threads[1],
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: ptr::null_mut(),
            attrs: ptr::null_mut(),
            numAttrs: 0,
        })
    }

    /// The clusters of two CTAs that run at the same time in the current context.
    pub(super) fn max_active_clusters(&self) -> Result<usize> {
        let (config, mut clusters) = (self.config([2, 1])?, 0);
        // SAFETY: the function is loaded in the current context.
        let result =
            unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, self.function, &config) };
        check("cuOccupancyMaxActiveClusters", result)?;
        Ok(clusters.max(0) as usize)
    }
}

impl Run<'_> {
    /// Enqueues a launch.
    pub(crate) fn launch<P: KernelParams>(
        &self,
        kernel: &Kernel<P>,
        grid: [usize; 2],
        mode: LaunchMode,
        params: &P,
    ) -> Result<()> {
        use sys::CUlaunchAttributeID::*;
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let LaunchMode { overlap, cooperative } = mode;
        let overlap =
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: overlap.into() };
        let cooperative = sys::CUlaunchAttributeValue { cooperative: cooperative.into() };
        let mut attributes = [
            attribute(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, overlap),
            attribute(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, cooperative),
        ];
        let mut config = kernel.config(grid)?;
        config.hStream = self.raw();
        config.attrs = attributes.as_mut_ptr();
        config.numAttrs = attributes.len() as u32;
        let mut args = [ptr::from_ref(params).cast_mut().cast()];
        // SAFETY: the kernel takes a `P`, whose addresses hold matrices of the sizes it names (the
        // checked call), and the outputs overlap nothing (`Buffers`). What the pointers refer to
        // lives until the call returns, which has then copied it.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, kernel.function, args.as_mut_ptr(), ptr::null_mut())
        };
        check("cuLaunchKernelEx", launched)
    }
}
