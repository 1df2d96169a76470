//! f32 tensors, rounded to 16 bits.

use super::buffers::Buffers;
use crate::call::RoundCall;
use crate::driver::params::RoundParams;
use crate::driver::{Gpu, Kernel, LaunchMode, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::manifest::sm80::round::MAX_SEGMENTS;
use crate::plan::sm80::round_blocks;

/// Dense f32 at `src`, to be rounded to `dst`.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) src: u64,
    pub(super) dst: u64,
    pub(super) elements: usize,
}

/// Launches of kernels/sm80/round.cu.
pub(super) struct Rounding {
    kernel: Kernel<RoundParams>,
    sms: usize,
}

impl Rounding {
    pub(super) fn new(gpu: &Gpu, dtype: DType) -> Self {
        Rounding { kernel: gpu.kernels.of(dtype).sm80.round, sms: gpu.profile.sms() }
    }

    /// As many segments as a launch takes, at most.
    fn run(&self, run: &Run<'_>, segments: &[Segment]) -> Result<()> {
        let mut params = RoundParams {
            src: [0; MAX_SEGMENTS],
            dst: [0; MAX_SEGMENTS],
            elements: [0; MAX_SEGMENTS],
            count: segments.len() as i32,
        };
        for (i, segment) in segments.iter().enumerate() {
            (params.src[i], params.dst[i]) = (segment.src, segment.dst);
            params.elements[i] = segment.elements as i64;
        }
        match round_blocks(segments.iter().map(|segment| segment.elements), self.sms) {
            0 => Ok(()),
            blocks => run.launch(&self.kernel, [blocks, 1], LaunchMode::default(), &params),
        }
    }
}

/// Each output is its source, rounded.
pub(crate) fn round(gpu: &Gpu, call: RoundCall<'_, '_>) -> Result<()> {
    let RoundCall { sources, outputs } = call;
    let Some(dtype) = outputs.first().map(|output| output.dtype()) else { return Ok(()) };
    let run = gpu.stream.enter()?;
    let mut buffers = Buffers::new(&run);
    let mut segments = [Segment { src: 0, dst: 0, elements: 0 }; MAX_SEGMENTS];
    let count = outputs.len();
    for ((segment, source), output) in segments.iter_mut().zip(sources).zip(outputs) {
        segment.elements = source.shape().elements();
        segment.src = buffers.read("sources", source)?.data;
        segment.dst = buffers.write("outputs", output)?.data;
    }
    buffers.check_overlap()?;
    Rounding::new(gpu, dtype).run(&run, &segments[..count])
}

const _: () = assert!(MAX_SEGMENTS >= crate::call::MOST_ROUNDED);
