//! Device memory that the crate owns.
//!
//! It remembers which lanes use it (see [`Lane`]): a call that reads or overwrites it, and its
//! release, wait for them, on any thread and stream.

use super::context::Relaxed;
use super::probe::check;
use super::stream::{Lane, Run, Stream};
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes on a device, allocated and freed in the order of a stream.
#[derive(Debug)]
pub(crate) struct Allocation {
    /// Shared with the graphs that the memory is used in.
    block: Arc<Block>,
}

#[derive(Debug)]
struct Block {
    address: sys::CUdeviceptr,
    bytes: usize,
    stream: Stream,
    /// Whether it came from the device's memory pool, which orders by streams.
    pooled: bool,
    uses: Mutex<Uses>,
}

/// The lanes to wait for.
#[derive(Debug, Clone)]
struct Uses {
    /// The lane of the last write, at first of the allocation.
    writer: Lane,
    /// The lanes that have waited for that write, and may have read since.
    readers: Vec<Lane>,
    /// The only lane that may use it, once a graph does: the crate does not see its replays.
    bound: Option<Lane>,
}

impl Stream {
    /// Memory with whatever bits it holds.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<Allocation> {
        self.allocate_with(bytes, false)
    }

    pub(crate) fn allocate_zeros(&self, bytes: usize) -> Result<Allocation> {
        self.allocate_with(bytes, true)
    }

    fn allocate_with(&self, bytes: usize, zeros: bool) -> Result<Allocation> {
        let run = self.enter()?;
        run.refuse_capture("a tensor cannot be allocated")?;
        free_pending();
        let _relaxed = Relaxed::new();
        // The driver refuses to allocate nothing; an empty tensor gets a byte it never uses.
        let (bytes, mut address) = (bytes.max(1), 0);
        let pooled = self.context().has_async_alloc();
        // SAFETY: writes the address.
        let allocated = unsafe {
            match pooled {
                true => sys::cuMemAllocAsync(&mut address, bytes, run.raw()),
                false => sys::cuMemAlloc_v2(&mut address, bytes),
            }
        };
        if allocated == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::OutOfMemory { bytes });
        }
        check("cuMemAllocAsync", allocated)?;
        let uses = Uses { writer: run.lane().clone(), readers: Vec::new(), bound: None };
        let (stream, uses) = (self.clone(), Mutex::new(uses));
        let allocation =
            Allocation { block: Arc::new(Block { address, bytes, stream, pooled, uses }) };
        if zeros {
            run.zero(address, bytes)?;
        }
        Ok(allocation)
    }
}

impl Run<'_> {
    /// Enqueues zeros. The memory must hold as many bytes, with its earlier uses ordered.
    pub(crate) fn zero(&self, address: sys::CUdeviceptr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: an allocation, or an output of the call, of so many bytes.
        let zeroed = unsafe { sys::cuMemsetD8Async(address, 0, bytes, self.raw()) };
        check("cuMemsetD8Async", zeroed)
    }
}

impl Allocation {
    pub(super) fn stream(&self) -> &Stream {
        &self.block.stream
    }

    /// The address, for a call that reads the memory, after the last write.
    pub(super) fn read(&self, run: &Run<'_>) -> Result<sys::CUdeviceptr> {
        let mut uses = self.block.uses();
        uses.check_bound(run)?;
        let lane = run.lane();
        if uses.writer != *lane && !uses.readers.contains(lane) {
            run.wait(&uses.writer)?;
            uses.readers.push(lane.clone());
        }
        drop(uses);
        self.retain_in_graph(run)?;
        Ok(self.block.address)
    }

    /// The address, for a call that writes the memory, after all earlier uses.
    pub(super) fn write(&self, run: &Run<'_>) -> Result<sys::CUdeviceptr> {
        let mut uses = self.block.uses();
        uses.check_bound(run)?;
        uses.wait_for_all(run)?;
        if uses.writer != *run.lane() {
            uses.writer = run.lane().clone();
        }
        uses.readers.clear();
        drop(uses);
        self.retain_in_graph(run)?;
        Ok(self.block.address)
    }

    /// As [`Allocation::write`], for memory that must not be used on another stream once a graph
    /// uses it: the crate does not see its replays.
    pub(crate) fn write_bound(&self, run: &Run<'_>) -> Result<sys::CUdeviceptr> {
        let address = self.write(run)?;
        if run.graph().is_some() {
            self.block.uses().bound = Some(run.lane().clone());
        }
        Ok(address)
    }

    /// A graph keeps the memory that it uses, by a reference that goes with the graph.
    fn retain_in_graph(&self, run: &Run<'_>) -> Result<()> {
        let Some(graph) = run.graph() else { return Ok(()) };
        let block = Arc::into_raw(self.block.clone()).cast_mut().cast::<c_void>();
        let mut object = ptr::null_mut();
        let flag = sys::CUuserObject_flags::CU_USER_OBJECT_NO_DESTRUCTOR_SYNC as u32;
        // SAFETY: writes the handle; `released` takes back what `into_raw` gave, once.
        let made = unsafe { sys::cuUserObjectCreate(&mut object, block, Some(released), 1, flag) };
        if made != sys::CUresult::CUDA_SUCCESS {
            // SAFETY: the driver did not take it.
            drop(unsafe { Arc::from_raw(block.cast::<Block>()) });
        }
        check("cuUserObjectCreate", made)?;
        let moved = sys::CUuserObjectRetain_flags::CU_GRAPH_USER_OBJECT_MOVE as u32;
        // SAFETY: the graph is being captured, and the reference is handed over to it.
        let retained = unsafe { sys::cuGraphRetainUserObject(graph, object, 1, moved) };
        check("cuGraphRetainUserObject", retained)
    }

    /// Overwrites the memory from `start` on. The host's bytes are free when this returns.
    pub(crate) fn copy_from_host(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let run = self.block.stream.enter()?;
        run.refuse_capture("a tensor cannot be copied from the host")?;
        let address = self.write(&run)?;
        assert!(bytes.len() <= self.block.bytes);
        // SAFETY: the allocation holds as many bytes, and the host's slice lives until the
        // synchronisation below.
        let copied = unsafe {
            sys::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), run.raw())
        };
        check("cuMemcpyHtoDAsync", copied)?;
        // Where the device reads pageable memory itself, the copy may not have read it yet.
        run.synchronize()
    }

    /// Reads the first bytes of the memory.
    pub(crate) fn copy_to_host(&self, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let run = self.block.stream.enter()?;
        run.refuse_capture("a tensor cannot be read")?;
        let address = self.read(&run)?;
        assert!(bytes.len() <= self.block.bytes);
        // SAFETY: the allocation holds as many bytes, and the host's slice lives until the
        // synchronisation below.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), address, bytes.len(), run.raw())
        };
        check("cuMemcpyDtoHAsync", copied)?;
        run.synchronize()
    }

    /// Overwrites `bytes` from `start` on with the bytes of another allocation, from its `from` on.
    pub(crate) fn copy_from(
        &mut self,
        start: usize,
        source: &Allocation,
        from: usize,
        bytes: usize,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let run = self.block.stream.enter()?;
        assert!(start + bytes <= self.block.bytes && from + bytes <= source.block.bytes);
        let (to, from) = (self.write(&run)? + start as u64, source.read(&run)? + from as u64);
        // SAFETY: both allocations hold as many bytes.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, run.raw()) })
    }
}

impl Uses {
    /// Has the call wait for all lanes.
    fn wait_for_all(&self, run: &Run<'_>) -> Result<()> {
        run.wait(&self.writer)?;
        self.readers.iter().try_for_each(|reader| run.wait(reader))
    }

    fn check_bound(&self, run: &Run<'_>) -> Result<()> {
        match &self.bound {
            Some(lane) if lane != run.lane() => {
                let what = "the workspace is used by a graph of another stream, and belongs to \
                            that; take one for each stream";
                Err(Error::Capture { what: what.into() })
            }
            _ => Ok(()),
        }
    }
}

/// Blocks to be freed when no stream captures. They were dropped during a capture, or by a graph,
/// whose callback must not call the driver.
static PENDING: Mutex<Vec<Arc<Block>>> = Mutex::new(Vec::new());
/// Whether there are any.
static IS_PENDING: AtomicBool = AtomicBool::new(false);

fn pending() -> MutexGuard<'static, Vec<Arc<Block>>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn free_later(block: Arc<Block>) {
    pending().push(block);
    IS_PENDING.store(true, Ordering::Release);
}

/// Tries to free what could not be freed before.
pub(super) fn free_pending() {
    if IS_PENDING.swap(false, Ordering::AcqRel) {
        let blocks = mem::take(&mut *pending());
        // What still cannot be freed goes back.
        drop(blocks);
    }
}

/// What a graph calls when it no longer uses a block.
unsafe extern "C" fn released(block: *mut c_void) {
    // SAFETY: from `Arc::into_raw`, and called once.
    free_later(unsafe { Arc::from_raw(block.cast::<Block>()) });
}

impl Block {
    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the memory after all its uses, or says why that is not possible now.
    fn free(&self) -> Result<()> {
        let run = self.stream.enter()?;
        run.refuse_capture("memory cannot be freed")?;
        let uses = self.uses();
        let _relaxed = Relaxed::new();
        if self.pooled {
            uses.wait_for_all(&run)?;
            // SAFETY: the last use.
            return check("cuMemFreeAsync", unsafe {
                sys::cuMemFreeAsync(self.address, run.raw())
            });
        }
        uses.writer.synchronize()?;
        uses.readers.iter().try_for_each(Lane::synchronize)?;
        // SAFETY: the last use.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(self.address) })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // NOTES: cudarc frees without making the context current: on a thread that never used
        // CUDA, the default stream has no context then, the memory leaks, and the error turns up
        // in somebody's next call.
        match self.free() {
            Ok(()) => free_pending(),
            Err(Error::Capture { .. }) => {
                let (stream, uses) = (self.stream.clone(), self.uses().clone());
                let (&mut Block { address, bytes, pooled, .. }, uses) = (self, Mutex::new(uses));
                free_later(Arc::new(Block { address, bytes, stream, pooled, uses }));
            }
            // The context is gone, and the memory with it.
            Err(_) => {}
        }
    }
}
