//! The buffers of a call.

use super::memory::{self, Resolved};
use crate::{Error, Result, TensorView, TensorViewMut};
use cudarc::driver::{sys, CudaStream, SyncOnDrop};

/// The buffers of a call: their addresses, checked for overlap, and cudarc's records of their use,
/// which are taken when this is dropped, after the launches.
pub(super) struct Buffers<'a> {
    stream: &'a CudaStream,
    ranges: Vec<Range>,
    records: Vec<SyncOnDrop<'a>>,
}

struct Range {
    argument: &'static str,
    start: sys::CUdeviceptr,
    bytes: u64,
    written: bool,
}

impl<'a> Buffers<'a> {
    pub(super) fn new(stream: &'a CudaStream) -> Self {
        Buffers { stream, ranges: Vec::new(), records: Vec::new() }
    }

    pub(super) fn read(
        &mut self,
        argument: &'static str,
        view: &'a TensorView<'_>,
    ) -> sys::CUdeviceptr {
        let bytes = memory::bytes(view.shape, view.dtype);
        self.add(argument, view.region.resolve(self.stream), bytes, false)
    }

    pub(super) fn write(
        &mut self,
        argument: &'static str,
        view: &'a mut TensorViewMut<'_>,
    ) -> sys::CUdeviceptr {
        let bytes = memory::bytes(view.shape, view.dtype);
        self.add(argument, view.region.resolve(self.stream), bytes, true)
    }

    fn add(
        &mut self,
        argument: &'static str,
        (start, record): Resolved<'a>,
        bytes: u64,
        written: bool,
    ) -> sys::CUdeviceptr {
        self.ranges.push(Range { argument, start, bytes, written });
        self.records.extend(record);
        start
    }

    /// Refuses outputs that share memory with anything else.
    pub(super) fn check_overlap(&self) -> Result<()> {
        for (i, a) in self.ranges.iter().enumerate() {
            for b in &self.ranges[i + 1..] {
                let apart = a.start + a.bytes <= b.start || b.start + b.bytes <= a.start;
                if apart || !(a.written || b.written) {
                    continue;
                }
                let (output, other) = if b.written { (b, a) } else { (a, b) };
                let (output, other) = (output.argument, other.argument);
                return Err(Error::Overlap { output, other });
            }
        }
        Ok(())
    }
}
