//! The buffers of a call.

use crate::driver::params::{self, Operand};
use crate::driver::{LentUse, Run};
use crate::dropout::{Dropout, Source};
use crate::error::{Error, Result};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{Part, Workspace};

/// The most buffers that a call has: of a backward pass, 9 for all projections and 5 for each.
const MOST: usize = 9 + 5 * crate::problem::MAX_PROJECTIONS;

/// The buffers of a call: their addresses, checked for overlap, and cudarc's records of their use,
/// which are taken when this is dropped, after the launches.
pub(super) struct Buffers<'r> {
    run: &'r Run<'r>,
    ranges: [Range; MOST],
    count: usize,
    /// Of lent memory; the crate's own has none.
    records: Vec<LentUse<'r>>,
}

/// Where a buffer has which bytes.
#[derive(Clone, Copy)]
struct Range {
    argument: &'static str,
    start: u64,
    /// From the first to the last.
    bytes: u64,
    /// Of a row, and from a row to the next.
    row: [u64; 2],
    written: bool,
}

impl Range {
    const NONE: Range = Range { argument: "", start: 0, bytes: 0, row: [0; 2], written: false };

    fn overlaps(&self, other: &Range) -> bool {
        if self.start + self.bytes <= other.start || other.start + other.bytes <= self.start {
            return false;
        }
        let (first, second) = if self.start <= other.start { (self, other) } else { (other, self) };
        let distance = second.start - first.start;
        if self.bytes == 0 || other.bytes == 0 || distance >= first.bytes {
            return false;
        }
        // Columns of the same matrix lie in the gaps of one another.
        let ([row, stride], [other_row, other_stride]) = (first.row, second.row);
        let column = distance % stride.max(1);
        let beside = column >= row && column + other_row <= stride;
        !(stride == other_stride && beside)
    }
}

/// Low word first.
fn words(of: &u64) -> [u32; 2] {
    [*of as u32, (*of >> 32) as u32]
}

impl<'r> Buffers<'r> {
    pub(super) fn new(run: &'r Run<'r>) -> Self {
        Buffers { run, ranges: [Range::NONE; MOST], count: 0, records: Vec::new() }
    }

    pub(super) fn read(
        &mut self,
        argument: &'static str,
        view: &TensorView<'r>,
    ) -> Result<Operand> {
        let (start, record) = view.resolve(self.run)?;
        let (dtype, stride) = (view.dtype(), view.row_stride());
        let layout = [view.shape().cols(), stride, view.extent()].map(|n| n * dtype.bytes());
        self.add(argument, start, layout, record, false);
        Ok(Operand::new(start, stride, dtype))
    }

    pub(super) fn write(
        &mut self,
        argument: &'static str,
        view: &'r mut TensorViewMut<'_>,
    ) -> Result<Operand> {
        let (dtype, stride) = (view.dtype(), view.row_stride());
        let layout = [view.shape().cols(), stride, view.extent()].map(|n| n * dtype.bytes());
        let (start, record) = view.resolve(self.run)?;
        self.add(argument, start, layout, record, true);
        Ok(Operand::new(start, stride, dtype))
    }

    pub(super) fn dropout(
        &mut self,
        dropout: Option<&'r Dropout<'r>>,
    ) -> Result<Option<params::Dropout>> {
        let Some(dropout) = dropout else { return Ok(None) };
        let (state, [seed, offset]) = match dropout.source() {
            Source::Values { seed, offset } => (0, [seed, offset].map(words)),
            Source::Memory(view) => (self.read("dropout", view)?.data, [[0; 2]; 2]),
        };
        let (threshold, inv_keep) = (dropout.threshold(), dropout.inv_keep());
        Ok(Some(params::Dropout { state, seed, offset, threshold, inv_keep }))
    }

    /// The addresses of a workspace's scratch and flags.
    pub(super) fn workspace(&mut self, workspace: &mut Workspace) -> Result<[u64; 2]> {
        let mut addresses = [0; 2];
        let names = ["scratch of the workspace", "flags of the workspace"];
        for ((address, part), name) in addresses.iter_mut().zip(workspace.parts()).zip(names) {
            let bytes = match part {
                Part::Owned(tensor) => {
                    let allocation = tensor.allocation().expect("checked to be on the device");
                    *address = allocation.write_bound(self.run)?;
                    tensor.bytes()
                }
                Part::Lent(view) => {
                    (*address, _) = view.resolve(self.run)?;
                    view.extent() * view.dtype().bytes()
                }
            };
            self.add(name, *address, [bytes; 3], None, true);
        }
        Ok(addresses)
    }

    fn add(
        &mut self,
        argument: &'static str,
        start: u64,
        [row, stride, bytes]: [usize; 3],
        record: Option<LentUse<'r>>,
        written: bool,
    ) {
        let row = [row as u64, stride as u64];
        self.ranges[self.count] = Range { argument, start, bytes: bytes as u64, row, written };
        self.count += 1;
        self.records.extend(record);
    }

    /// Refuses outputs that share memory with anything else.
    pub(super) fn check_overlap(&self) -> Result<()> {
        let ranges = &self.ranges[..self.count];
        for (i, output) in ranges.iter().enumerate().filter(|(_, range)| range.written) {
            // Of two outputs, the later one is said to overlap the other.
            let others = ranges.iter().enumerate();
            let mut others = others.filter(|&(j, other)| j < i || !other.written);
            if let Some((_, other)) = others.find(|(_, other)| output.overlaps(other)) {
                let (output, other) = (output.argument, other.argument);
                return Err(Error::Overlap { output, other });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_one_matrix_do_not_overlap() {
        // Rows of `cols` bytes, 100 apart, 5 of them.
        let columns = |start, cols| {
            let bytes = if cols == 0 { 0 } else { 400 + cols };
            Range { argument: "", start, bytes, row: [cols, 100], written: true }
        };
        let overlap = |a: &Range, b: &Range| {
            assert_eq!(a.overlaps(b), b.overlaps(a));
            a.overlaps(b)
        };
        assert!(!overlap(&columns(1000, 40), &columns(1040, 60)));
        assert!(!overlap(&columns(1000, 40), &columns(1240, 60)));
        assert!(overlap(&columns(1000, 41), &columns(1040, 60)));
        assert!(overlap(&columns(1000, 40), &columns(1040, 61)));
        assert!(overlap(&columns(1000, 40), &columns(1039, 10)));
        assert!(!overlap(&columns(1000, 40), &columns(1440, 40)), "behind the last row");
        assert!(!overlap(&columns(1000, 0), &columns(1000, 40)), "nothing");
        let dense = Range { argument: "", start: 1050, bytes: 10, row: [10, 10], written: true };
        assert!(overlap(&columns(1000, 40), &dense), "another stride");
    }
}
