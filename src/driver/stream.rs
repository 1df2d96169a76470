//! Streams, and how the work of one waits for that of another.

use super::context::{Current, Relaxed};
use super::probe::{check, function};
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaStream, sys};
use std::cell::RefCell;
use std::ptr;
use std::sync::Arc;

/// The handle of the per-thread default stream, which is another stream in every thread.
const PER_THREAD: usize = 2;

/// A stream that calls are enqueued on.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    inner: Arc<CudaStream>,
}

impl Stream {
    pub(crate) fn new(inner: Arc<CudaStream>) -> Self {
        Stream { inner }
    }

    pub(crate) fn inner(&self) -> &Arc<CudaStream> {
        &self.inner
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        self.inner.context()
    }

    /// Begins a call: makes the context current, and looks whether the stream captures.
    pub(crate) fn enter(&self) -> Result<Run<'_>> {
        let current = Current::new(self.context())?;
        let capture = capture(self.inner.cu_stream())?;
        let lane = Lane::of(&self.inner)?;
        Ok(Run { stream: &self.inner, lane, capture, _current: current })
    }

    /// Waits until all work enqueued is done.
    pub(crate) fn synchronize(&self) -> Result<()> {
        let run = self.enter()?;
        run.refuse_capture("the stream cannot be synchronised")?;
        run.synchronize()
    }
}

/// Whether a stream captures, and into what.
#[derive(Clone, Copy)]
struct Capture {
    graph: sys::CUgraph,
}

fn is_capturing(stream: sys::CUstream) -> Result<bool> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is alive, and its context current.
    let result = unsafe { sys::cuStreamIsCapturing(stream, &mut status) };
    if result == sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT {
        let what = "nothing can be enqueued on the default stream while a blocking stream captures";
        return Err(Error::Capture { what: what.into() });
    }
    check("cuStreamIsCapturing", result)?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

fn capture(stream: sys::CUstream) -> Result<Option<Capture>> {
    /// In drivers since CUDA 11.3, but in the bindings under another name in every version.
    type GetInfo = unsafe extern "C" fn(
        sys::CUstream,
        *mut sys::CUstreamCaptureStatus,
        *mut u64,
        *mut sys::CUgraph,
        *mut *const sys::CUgraphNode,
        *mut usize,
    ) -> sys::CUresult;

    if !is_capturing(stream)? {
        return Ok(None);
    }
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let (mut id, mut graph) = (0, ptr::null_mut());
    // SAFETY: the type of the function.
    if let Some(get) = unsafe { function::<GetInfo>(c"cuStreamGetCaptureInfo_v2") } {
        let none = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the stream is alive; the null pointers are for what is not asked for.
        let result = unsafe { get(stream, &mut status, &mut id, &mut graph, none.0, none.1) };
        check("cuStreamGetCaptureInfo", result)?;
    }
    if status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE || graph.is_null() {
        let what = "the capture of the stream was invalidated";
        return Err(Error::Capture { what: what.into() });
    }
    Ok(Some(Capture { graph }))
}

/// A call in progress on a stream: its context is current until this is dropped.
pub(crate) struct Run<'a> {
    stream: &'a Arc<CudaStream>,
    lane: Lane,
    capture: Option<Capture>,
    _current: Current,
}

impl<'a> Run<'a> {
    /// cudarc's stream, for memory that cudarc tracks.
    pub(super) fn cudarc(&self) -> &'a CudaStream {
        self.stream
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// The graph that the call is captured into, if it is.
    pub(crate) fn graph(&self) -> Option<sys::CUgraph> {
        self.capture.map(|capture| capture.graph)
    }

    /// An error if the stream captures: `what` is not possible then.
    pub(crate) fn refuse_capture(&self, what: &str) -> Result<()> {
        match self.capture {
            None => Ok(()),
            Some(_) => Err(Error::Capture { what: format!("{what} while its stream captures") }),
        }
    }

    /// Has the stream wait for all work that `other` has at present.
    pub(super) fn wait(&self, other: &Lane) -> Result<()> {
        if *other == self.lane {
            return Ok(());
        }
        if self.capture.is_some() {
            let what = "a capture cannot wait for memory that another stream has used; use it \
                        once on the stream that captures, before it does";
            return Err(Error::Capture { what: what.into() });
        }
        other.hold_up(self.raw())
    }

    /// Waits on the host for the stream, which is known not to capture.
    pub(super) fn synchronize(&self) -> Result<()> {
        let _relaxed = Relaxed::new();
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw()) })
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if let (Lane::Thread(thread), None) = (&self.lane, self.capture) {
            // SAFETY: the event and the stream are alive. If it fails, so does every later call.
            let _ = unsafe { sys::cuEventRecord(thread.last.raw, self.raw()) };
        }
    }
}

/// A queue of work that others can wait for.
///
/// NOTES: cudarc keeps one event for the last read of a slice and one for the last write. A writer
/// waits for the last of several readers only, and for none once the last stream that the context
/// made is dropped (`is_managing_stream_synchronization`). Here memory remembers the lanes and
/// keeps them alive. An event is recorded when a call has to wait, so a single stream pays nothing.
/// The call waits for all work that the lane has by then, which may be more than the use in
/// question.
#[derive(Debug, Clone)]
pub(super) enum Lane {
    Stream(Arc<CudaStream>),
    /// The default stream of one thread.
    Thread(Arc<ThreadLane>),
}

/// Only its own thread can record events in its default stream, so it does after every call.
#[derive(Debug)]
pub(super) struct ThreadLane {
    last: Event,
}

/// Of every context in which a thread has used its default stream.
struct ThreadLanes(Vec<Arc<ThreadLane>>);

impl Drop for ThreadLanes {
    /// NOTES: the driver destroys the stream with its thread, and with it the waits that are still
    /// in it. A wait for an event behind them hangs (seen with driver 580). So a thread that has
    /// used the stream ends when the stream's work is done.
    fn drop(&mut self) {
        for lane in &self.0 {
            let _ = lane.last.synchronize();
        }
    }
}

impl PartialEq for Lane {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Lane::Stream(one), Lane::Stream(two)) => {
                one.cu_stream() == two.cu_stream()
                    && one.context().cu_ctx() == two.context().cu_ctx()
            }
            (Lane::Thread(one), Lane::Thread(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

impl Lane {
    /// The lane of this stream for this thread. Its context is current.
    pub(super) fn of(stream: &Arc<CudaStream>) -> Result<Self> {
        thread_local! {
            static LANES: RefCell<ThreadLanes> = const { RefCell::new(ThreadLanes(Vec::new())) };
        }
        if stream.cu_stream() as usize != PER_THREAD {
            return Ok(Lane::Stream(stream.clone()));
        }
        let context = stream.context();
        let lane = LANES.try_with(|lanes| {
            let ThreadLanes(lanes) = &mut *lanes.borrow_mut();
            let found = lanes.iter().find(|lane| lane.last.context.cu_ctx() == context.cu_ctx());
            if let Some(lane) = found {
                return Ok(Lane::Thread(lane.clone()));
            }
            lanes.push(Arc::new(ThreadLane { last: Event::new(context)? }));
            Ok(Lane::Thread(lanes[lanes.len() - 1].clone()))
        });
        lane.unwrap_or_else(|_| {
            let what = "the default stream of a thread that ends cannot be used";
            Err(Error::Capture { what: what.into() })
        })
    }

    /// Has `stream` wait for all work that this has at present.
    pub(super) fn hold_up(&self, stream: sys::CUstream) -> Result<()> {
        let wait = |event: &Event| {
            // SAFETY: both are alive.
            check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, event.raw, 0) })
        };
        match self {
            Lane::Thread(thread) => wait(&thread.last),
            Lane::Stream(other) => {
                // NOTES: an event recorded in a stream that captures belongs to its graph, and so
                // would all that waits for it.
                if is_capturing(other.cu_stream())? {
                    let what = "memory that a capturing stream has used cannot be waited for; use \
                                it here before the capture, or after";
                    return Err(Error::Capture { what: what.into() });
                }
                let event = Event::new(other.context())?;
                // SAFETY: both are alive. The driver destroys the event after it has completed.
                let recorded = unsafe { sys::cuEventRecord(event.raw, other.cu_stream()) };
                check("cuEventRecord", recorded)?;
                wait(&event)
            }
        }
    }

    /// Waits on the host.
    pub(super) fn synchronize(&self) -> Result<()> {
        match self {
            Lane::Thread(thread) => thread.last.synchronize(),
            Lane::Stream(stream) => {
                // SAFETY: the stream is alive.
                let done = unsafe { sys::cuStreamSynchronize(stream.cu_stream()) };
                check("cuStreamSynchronize", done)
            }
        }
    }
}

/// An event without a time.
#[derive(Debug)]
pub(super) struct Event {
    raw: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: the driver's events may be used and destroyed by any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// In this context, which is current.
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes the handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        Ok(Event { raw, context: context.clone() })
    }

    /// Waits on the host.
    fn synchronize(&self) -> Result<()> {
        let _current = Current::new(&self.context)?;
        let _relaxed = Relaxed::new();
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = Current::new(&self.context) else { return };
        // SAFETY: the last use. The driver keeps what of it is still waited for.
        let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}
