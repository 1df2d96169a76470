//! Memory that operations need between and during their launches.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;
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
        4 * (self.scratch + self.flags)
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
    scratch: Tensor,
    flags: Tensor,
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
        Ok(Workspace { size, scratch, flags: Tensor::zeros(device, [size.flags], DType::F32)? })
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
        if !self.scratch.device().shares_memory_with(device) {
            let (expected, got) = (device.to_string(), self.scratch.device().to_string());
            return Err(Error::Device { argument: "workspace", expected, got });
        }
        let parts = [
            ("scratch", needed.scratch, self.scratch.shape().elements()),
            ("flags", needed.flags, self.flags.shape().elements()),
        ];
        for (part, needed, got) in parts {
            if got < needed {
                return Err(Error::Workspace { part, needed, got });
            }
        }
        Ok(())
    }

    /// The scratch and the flags.
    pub(crate) fn tensors(&mut self) -> [&mut Tensor; 2] {
        [&mut self.scratch, &mut self.flags]
    }

    /// The scratch, f32: of no meaning between calls, and for tests to poison.
    #[doc(hidden)]
    pub fn scratch_mut(&mut self) -> &mut Tensor {
        &mut self.scratch
    }
}
