//! Memory that operations need between and during their launches.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::{Tensor, TensorViewMut};
use std::fmt;

/// The size of the [`Workspace`] that an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WorkspaceSize {
    /// f32 elements.
    pub(crate) scratch: usize,
    /// Words of 32 bits.
    pub(crate) flags: usize,
}

impl WorkspaceSize {
    /// The size that serves either of two operations, one at a time.
    pub fn max(self, other: WorkspaceSize) -> Self {
        WorkspaceSize {
            scratch: self.scratch.max(other.scratch),
            flags: self.flags.max(other.flags),
        }
    }

    /// Bytes of device memory.
    pub fn bytes(self) -> usize {
        self.scratch_bytes() + self.flag_bytes()
    }

    /// Bytes of scratch: see [`Workspace::lend_scratch`].
    pub fn scratch_bytes(self) -> usize {
        4 * self.scratch
    }

    /// Bytes of flags.
    pub fn flag_bytes(self) -> usize {
        4 * self.flags
    }

    /// The flags alone, for a workspace that is lent its scratch.
    pub fn without_scratch(self) -> Self {
        WorkspaceSize { scratch: 0, ..self }
    }
}

impl fmt::Display for WorkspaceSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of scratch, {} of flags", 4 * self.scratch, 4 * self.flags)
    }
}

/// Device memory that operations need besides their arguments: make it once, pass it to every call.
///
/// It holds scratch, and flags by which the CTAs of a launch wait for each other. The flags are
/// zero between calls: each kernel resets those it used.
///
/// Calls that share a workspace run one after the other: on one stream by the stream's order, on
/// several because each waits for the one before. Streams that should run at the same time need a
/// workspace each.
///
/// A workspace that was used in a capture belongs to the stream that captured. Any other stream
/// gets [`Error::Capture`], since its calls could not be ordered against replays.
#[derive(Debug)]
pub struct Workspace {
    size: WorkspaceSize,
    scratch: Part,
    flags: Part,
}

/// The memory of the scratch, or of the flags.
#[derive(Debug)]
pub(crate) enum Part {
    Owned(Tensor),
    /// The caller keeps it alive, and orders its uses.
    Lent(TensorViewMut<'static>),
}

impl Part {
    fn elements(&self) -> usize {
        match self {
            Part::Owned(tensor) => tensor.shape().elements(),
            Part::Lent(view) => view.shape().elements(),
        }
    }

    fn place(&self) -> String {
        match self {
            Part::Owned(tensor) => tensor.device().to_string(),
            Part::Lent(view) => view.context().map_or("cpu".into(), |context| context.to_string()),
        }
    }

    fn is_usable_on(&self, device: &Device) -> bool {
        match self {
            Part::Owned(tensor) => tensor.device().shares_memory_with(device),
            Part::Lent(view) => view.is_usable_on(device),
        }
    }
}

impl Workspace {
    /// A workspace for operations that need this size or less: see
    /// [`Forward::workspace`](crate::ops::Forward::workspace). Scratch is not initialised, flags
    /// are zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Driver`]; [`Error::Capture`] while the stream captures.
    pub fn new(device: &Device, size: WorkspaceSize) -> Result<Self> {
        let scratch = Tensor::for_output(device, Shape::new(&[size.scratch])?, DType::F32)?;
        let flags = Tensor::zeros(device, [size.flags], DType::F32)?;
        Ok(Workspace { size, scratch: Part::Owned(scratch), flags: Part::Owned(flags) })
    }

    /// A workspace in memory that the caller has allocated on a CUDA device: for a framework whose
    /// allocator owns all memory of a graph.
    ///
    /// # Errors
    /// As for [`TensorView::from_raw`](crate::TensorView::from_raw).
    ///
    /// # Safety
    /// `scratch` and `flags` must point to as many bytes as `size` has of each, in the context of
    /// `device`, and the flags must be zeros at the first call. Both must stay allocated until the
    /// work of the last call is done. The caller must order the calls, and let nothing else use the
    /// memory between them.
    #[allow(unsafe_code)]
    pub unsafe fn from_raw(
        device: &Device,
        size: WorkspaceSize,
        scratch: u64,
        flags: u64,
    ) -> Result<Self> {
        let lend = |address, elements| {
            // SAFETY: the caller's promise.
            unsafe { TensorViewMut::from_raw(device, address, [elements], elements, DType::F32) }
        };
        let (scratch, flags) = (lend(scratch, size.scratch)?, lend(flags, size.flags)?);
        Ok(Workspace { size, scratch: Part::Lent(scratch), flags: Part::Lent(flags) })
    }

    /// Replaces the scratch by memory at `address`, of the scratch of `size`: scratch has no
    /// meaning between calls, so it may be another buffer for every call. The flags stay.
    ///
    /// # Errors
    /// As for [`Workspace::from_raw`]; the workspace is unchanged then.
    ///
    /// # Safety
    /// As for [`Workspace::from_raw`], without the flags.
    #[allow(unsafe_code)]
    pub unsafe fn lend_scratch(
        &mut self,
        device: &Device,
        size: WorkspaceSize,
        address: u64,
    ) -> Result<()> {
        let n = size.scratch;
        // SAFETY: the caller's promise.
        let view = unsafe { TensorViewMut::from_raw(device, address, [n], n, DType::F32)? };
        self.scratch = Part::Lent(view);
        self.size.scratch = n;
        Ok(())
    }

    /// Its size.
    pub fn size(&self) -> WorkspaceSize {
        self.size
    }

    /// Makes it at least as large as `size`. Its contents are lost if it grows.
    ///
    /// # Errors
    /// As for [`Workspace::new`]; the workspace is unchanged then.
    pub fn reserve(&mut self, device: &Device, size: WorkspaceSize) -> Result<()> {
        let size = self.size.max(size);
        if size != self.size {
            *self = Workspace::new(device, size)?;
        }
        Ok(())
    }

    /// Refuses operations that need more than there is, or run elsewhere.
    pub(crate) fn check(&self, device: &Device, needed: WorkspaceSize) -> Result<()> {
        let parts =
            [("scratch", &self.scratch, needed.scratch), ("flags", &self.flags, needed.flags)];
        for (part, memory, needed) in parts {
            if !memory.is_usable_on(device) {
                let (expected, got) = (device.to_string(), memory.place());
                return Err(Error::Device { argument: "workspace", expected, got });
            }
            let got = memory.elements();
            if got < needed {
                return Err(Error::Workspace { part, needed, got });
            }
        }
        Ok(())
    }

    /// The scratch and the flags.
    pub(crate) fn parts(&mut self) -> [&mut Part; 2] {
        [&mut self.scratch, &mut self.flags]
    }

    /// The scratch, f32: of no meaning between calls, and for tests to poison.
    ///
    /// # Panics
    /// If it is lent.
    #[doc(hidden)]
    pub fn scratch_mut(&mut self) -> &mut Tensor {
        match &mut self.scratch {
            Part::Owned(tensor) => tensor,
            Part::Lent(_) => panic!("scratch of the caller"),
        }
    }
}
