//! Device memory as the views have it: the crate's own, a caller's slice, or an address.

use super::memory::Allocation;
use super::probe;
use super::stream::{Run, Stream};
use crate::dtype::Element;
use crate::error::Result;
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut,
    DeviceSlice, SyncOnDrop, sys,
};
use std::fmt;
use std::sync::Arc;

/// Device memory that an operation reads.
#[derive(Clone, Copy)]
pub(crate) enum DeviceMemory<'a> {
    Owned(&'a Allocation),
    Lent(&'a dyn LentMemory),
    Raw(RawMemory),
}

/// Device memory that an operation writes.
pub(crate) enum DeviceMemoryMut<'a> {
    Owned(&'a Allocation),
    Lent(&'a mut dyn LentMemoryMut),
    Raw(RawMemory),
}

/// A device address whose memory somebody else keeps alive, and whose uses they order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawMemory {
    address: sys::CUdeviceptr,
    context: ContextId,
}

/// A context, as far as it decides which calls may use its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContextId {
    raw: sys::CUcontext,
    ordinal: usize,
}

// SAFETY: the handle is only compared.
unsafe impl Send for ContextId {}
// SAFETY: as above.
unsafe impl Sync for ContextId {}

impl ContextId {
    pub(crate) fn of(context: &CudaContext) -> Self {
        ContextId { raw: context.cu_ctx(), ordinal: context.ordinal() }
    }
}

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.ordinal)
    }
}

impl RawMemory {
    /// The caller promises that the memory is there.
    pub(crate) fn new(context: &CudaContext, address: sys::CUdeviceptr) -> Self {
        RawMemory { address, context: ContextId::of(context) }
    }
}

/// Memory of a cudarc slice or of a view of one.
///
/// cudarc orders its uses by events, if its context tracked events when the slice was made. A
/// writer waits for the last reader only: the caller waits for concurrent readers on several
/// streams.
pub trait LentMemory: Send + Sync {
    #[doc(hidden)]
    fn context_of(&self) -> &Arc<CudaContext>;
    #[doc(hidden)]
    fn stream_of(&self) -> &Arc<CudaStream>;
    #[doc(hidden)]
    fn elements(&self) -> usize;
    #[doc(hidden)]
    fn resolve<'s>(&'s self, stream: &'s CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'s>);
}

/// The same, to be written.
pub trait LentMemoryMut: Send + Sync {
    #[doc(hidden)]
    fn stream_of_mut(&self) -> &Arc<CudaStream>;
    #[doc(hidden)]
    fn elements_mut(&self) -> usize;
    #[doc(hidden)]
    fn resolve_mut<'s>(&'s mut self, stream: &'s CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'s>);
}

/// What a [`TensorView`](crate::TensorView) of elements `E` can be of: a `CudaSlice<E>` or a
/// `CudaView<E>`.
pub trait CudaMemory<E: Element>: LentMemory {}
/// What a [`TensorViewMut`](crate::TensorViewMut) of elements `E` can be of: a `CudaSlice<E>` or a
/// `CudaViewMut<E>`.
pub trait CudaMemoryMut<E: Element>: LentMemoryMut {}

macro_rules! lent {
    ($($memory:ty),*) => {$(
        impl<E: Element> LentMemory for $memory {
            fn context_of(&self) -> &Arc<CudaContext> {
                DeviceSlice::stream(self).context()
            }
            fn stream_of(&self) -> &Arc<CudaStream> {
                DeviceSlice::stream(self)
            }
            fn elements(&self) -> usize {
                DeviceSlice::len(self)
            }
            fn resolve<'s>(&'s self, stream: &'s CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'s>) {
                self.device_ptr(stream)
            }
        }
        impl<E: Element> CudaMemory<E> for $memory {}
    )*};
}
lent!(CudaSlice<E>, CudaView<'_, E>);

macro_rules! lent_mut {
    ($($memory:ty),*) => {$(
        impl<E: Element> LentMemoryMut for $memory {
            fn stream_of_mut(&self) -> &Arc<CudaStream> {
                DeviceSlice::stream(self)
            }
            fn elements_mut(&self) -> usize {
                DeviceSlice::len(self)
            }
            fn resolve_mut<'s>(
                &'s mut self,
                stream: &'s CudaStream,
            ) -> (sys::CUdeviceptr, SyncOnDrop<'s>) {
                self.device_ptr_mut(stream)
            }
        }
        impl<E: Element> CudaMemoryMut<E> for $memory {}
    )*};
}
lent_mut!(CudaSlice<E>, CudaViewMut<'_, E>);

/// cudarc's record of a use of lent memory, to be dropped after the launch that uses it.
pub(crate) struct LentUse<'a> {
    record: Option<SyncOnDrop<'a>>,
    context: &'a CudaContext,
}

/// Resolves lent memory, or records its use.
///
/// NOTES: cudarc keeps the error of a wait or a record in the context, and skips either where one
/// is kept already, whoever caused it. So what is kept is put aside meanwhile.
fn without_kept_error<R>(context: &CudaContext, call: impl FnOnce() -> R) -> (R, Result<()>) {
    let kept = context.check_err();
    let result = call();
    let failed = context.check_err();
    context.record_err(kept);
    (result, failed.map_err(probe::during("cuStreamWaitEvent")))
}

impl<'a> LentUse<'a> {
    fn new(
        context: &'a CudaContext,
        resolve: impl FnOnce() -> (sys::CUdeviceptr, SyncOnDrop<'a>),
    ) -> Result<(sys::CUdeviceptr, Option<Self>)> {
        let ((address, record), waited) = without_kept_error(context, resolve);
        waited?;
        Ok((address, Some(LentUse { record: Some(record), context })))
    }
}

impl Drop for LentUse<'_> {
    fn drop(&mut self) {
        let _ = without_kept_error(self.context, || drop(self.record.take()));
    }
}

impl<'a> DeviceMemory<'a> {
    /// Whether a call on this stream may use it.
    ///
    /// cudarc orders uses on several streams by the events of one `CudaContext` object. Two
    /// objects may stand for the same CUDA context and not know of each other's streams; between
    /// those, only the same stream will do.
    pub(crate) fn is_usable_on(&self, stream: &Stream) -> bool {
        match self {
            DeviceMemory::Owned(_) | DeviceMemory::Raw(_) => {
                self.context() == ContextId::of(stream.context())
            }
            DeviceMemory::Lent(lent) => is_lent_to(lent.stream_of(), stream),
        }
    }

    pub(crate) fn context(&self) -> ContextId {
        match self {
            DeviceMemory::Owned(owned) => ContextId::of(owned.stream().context()),
            DeviceMemory::Lent(lent) => ContextId::of(lent.context_of()),
            DeviceMemory::Raw(raw) => raw.context,
        }
    }

    /// The address, for a call that reads it, in its context.
    pub(crate) fn resolve(self, run: &Run<'a>) -> Result<(sys::CUdeviceptr, Option<LentUse<'a>>)> {
        match self {
            DeviceMemory::Owned(owned) => Ok((owned.read(run)?, None)),
            DeviceMemory::Raw(raw) => Ok((raw.address, None)),
            DeviceMemory::Lent(lent) => {
                let stream = run.cudarc();
                LentUse::new(stream.context(), || lent.resolve(stream))
            }
        }
    }
}

impl<'a> DeviceMemoryMut<'a> {
    pub(crate) fn is_usable_on(&self, stream: &Stream) -> bool {
        match self {
            DeviceMemoryMut::Lent(lent) => is_lent_to(lent.stream_of_mut(), stream),
            _ => self.context() == ContextId::of(stream.context()),
        }
    }

    pub(crate) fn context(&self) -> ContextId {
        match self {
            DeviceMemoryMut::Owned(owned) => ContextId::of(owned.stream().context()),
            DeviceMemoryMut::Lent(lent) => ContextId::of(lent.stream_of_mut().context()),
            DeviceMemoryMut::Raw(raw) => raw.context,
        }
    }

    pub(crate) fn reborrow(&mut self) -> DeviceMemoryMut<'_> {
        match self {
            DeviceMemoryMut::Owned(owned) => DeviceMemoryMut::Owned(owned),
            DeviceMemoryMut::Lent(lent) => DeviceMemoryMut::Lent(*lent),
            DeviceMemoryMut::Raw(raw) => DeviceMemoryMut::Raw(*raw),
        }
    }

    /// The address, for a call that writes it, in its context.
    pub(crate) fn resolve<'r>(
        &'r mut self,
        run: &Run<'r>,
    ) -> Result<(sys::CUdeviceptr, Option<LentUse<'r>>)> {
        match self {
            DeviceMemoryMut::Owned(owned) => Ok((owned.write(run)?, None)),
            DeviceMemoryMut::Raw(raw) => Ok((raw.address, None)),
            DeviceMemoryMut::Lent(lent) => {
                let stream = run.cudarc();
                LentUse::new(stream.context(), || lent.resolve_mut(stream))
            }
        }
    }
}

fn is_lent_to(own: &Arc<CudaStream>, stream: &Stream) -> bool {
    Arc::ptr_eq(own.context(), stream.context()) || own == stream.inner()
}

impl fmt::Debug for DeviceMemory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.context())
    }
}

impl fmt::Debug for DeviceMemoryMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.context())
    }
}
