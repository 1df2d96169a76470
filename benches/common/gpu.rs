//! The GPU that is timed: a stream of its own, CUDA graphs, and a stopwatch of events.

use super::Result;
use lora_kernels::cudarc::driver::sys::{
    self, CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use lora_kernels::cudarc::driver::{CudaContext, CudaEvent, CudaGraph, CudaSlice, CudaStream};
use lora_kernels::{Device, Error};
use std::ptr;
use std::sync::Arc;

pub struct Gpu {
    pub device: Device,
    pub stream: Arc<CudaStream>,
}

impl Gpu {
    /// The first GPU; `None`, after a line that says why, where there is nothing to time.
    pub fn open(benchmark: &str) -> Result<Option<Gpu>> {
        let probe = match Device::cuda(0) {
            Ok(device) => device,
            Err(
                reason @ (Error::NoDriver { .. }
                | Error::NoDevice { .. }
                | Error::KernelsNotBuilt { .. }
                | Error::UnsupportedDevice { .. }),
            ) => {
                eprintln!("{benchmark}: nothing was timed: {reason}");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let context = probe.context().expect("a CUDA device has a context");
        // SAFETY: cudarc's slices are used, allocated and freed on the one stream made below,
        // which orders it. With tracking, cudarc would record two events for every argument of
        // every launch, and wait for events from outside a capture inside it.
        unsafe { context.disable_event_tracking() };
        // A stream of its own, as the default stream cannot be captured in a graph.
        let stream = context.new_stream()?;
        let device = Device::from_stream(stream.clone())?;
        Ok(Some(Gpu { device, stream }))
    }

    pub fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    pub fn attribute(&self, attribute: CUdevice_attribute) -> Result<usize> {
        Ok(self.context().attribute(attribute)? as usize)
    }

    /// Memory with whatever bits it holds. Asking for none gives a byte nobody uses.
    pub fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: every bit pattern is a u8, and a value of every element type.
        Ok(unsafe { self.stream.alloc(bytes.max(1)) }?)
    }

    /// Waits for all work so far, and reports its failures.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    pub fn event(&self) -> Result<CudaEvent> {
        // cudarc's own default is an event that cannot be timed.
        Ok(self.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?)
    }

    /// A graph of `call(0)`, `call(1)`, ... `call(calls - 1)`.
    ///
    /// Everything called must have run before: code that is loaded at its first launch cannot be
    /// loaded inside a capture.
    pub fn capture(
        &self,
        calls: usize,
        mut call: impl FnMut(usize) -> Result<()>,
    ) -> Result<CudaGraph> {
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        let enqueued = (0..calls).try_for_each(&mut call);
        // Ended in any case, so that the stream can be used again.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        enqueued?;
        graph?.ok_or_else(|| "the capture recorded nothing".into())
    }

    /// Whether the memory pool keeps what is free when the host synchronises. By default it does
    /// not, and the next allocations map memory again.
    pub fn keep_pool(&self, keep: bool) -> Result<()> {
        let mut bytes: u64 = if keep { u64::MAX } else { 0 };
        let mut pool = ptr::null_mut();
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the attribute is a u64, and the call reads it before it returns.
        unsafe {
            sys::cuDeviceGetMemPool(&mut pool, self.context().cu_device()).result()?;
            let bytes = (&raw mut bytes).cast();
            Ok(sys::cuMemPoolSetAttribute(pool, attribute, bytes).result()?)
        }
    }

    /// Another stream of the same context.
    pub fn another_stream(&self) -> Result<Device> {
        Ok(Device::from_stream(self.context().new_stream()?)?)
    }

    /// The device's time for what `work` enqueues, in µs.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (start, end) = (self.event()?, self.event()?);
        start.record(&self.stream)?;
        work()?;
        end.record(&self.stream)?;
        Ok(f64::from(start.elapsed_ms(&end)?) * 1e3)
    }
}

/// The nodes of a graph: its launches, copies and memsets.
pub fn nodes(graph: &CudaGraph) -> Result<usize> {
    let mut count = 0;
    // SAFETY: the graph is alive; without an array, the call only writes the count.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), ptr::null_mut(), &mut count) }.result()?;
    Ok(count)
}
