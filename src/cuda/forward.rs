//! Forward passes.

use super::buffers::Buffers;
use super::operands::{Handover, Layer, Layers};
use super::sm80::align::Align;
use super::sm80::decode::Decode;
use super::sm80::linear::MmaForward;
use super::sm80::project::Project;
use super::sm90a::few_tokens;
use super::sm90a::linear::LargeForward;
use crate::call::ForwardCall;
use crate::driver::params::Operand;
use crate::driver::{Gpu, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::sm80::{copies_w0, padded};
use crate::plan::sm90a::{decode, short};
use crate::plan::{Alone, Path, Plan, Strategy, projection_elements};
use crate::problem::{MAX_PROJECTIONS, Problem};
use crate::workspace::Workspace;

/// The launches of a forward pass.
pub(crate) struct Forward {
    align: Align,
    /// Whether W0 is copied too, where sizes need copies.
    copies_w0: bool,
    best: Best,
    project: Project,
    mma: MmaForward,
}

/// What serves a call: Hopper's kernels where all rows start at multiples of 16 bytes.
#[allow(clippy::large_enum_variant)] // one a pass, behind an `Arc`
enum Best {
    Mma,
    /// One for each layer.
    MmaDecode([Option<Decode>; MAX_PROJECTIONS]),
    Large(LargeForward),
    /// One for each layer.
    Small([Option<SmallForward>; MAX_PROJECTIONS]),
}

/// S and H of a layer of a small batch, or H alone where r = 0.
pub(super) enum SmallForward {
    Decode(few_tokens::Forward<decode::Schedule>),
    Short(few_tokens::Forward<short::Schedule>),
}

impl SmallForward {
    pub(super) fn new(gpu: &Gpu, dtype: DType, launch: Alone) -> Self {
        match launch {
            Alone::Decode(schedule) => {
                SmallForward::Decode(few_tokens::Forward::new(gpu, dtype, schedule))
            }
            Alone::Short(schedule) => {
                SmallForward::Short(few_tokens::Forward::new(gpu, dtype, schedule))
            }
        }
    }

    /// Given the layer's A and its columns of S.
    pub(super) fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        layer: &Layer,
        a_and_s: [Operand; 2],
        flags: u64,
    ) -> Result<()> {
        match self {
            SmallForward::Decode(launch) => launch.run(run, layers, layer, a_and_s, flags),
            SmallForward::Short(launch) => launch.run(run, layers, layer, a_and_s, flags),
        }
    }
}

impl Forward {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, plan: &Plan) -> Self {
        let dtype = problem.dtype();
        let best = match plan.strategy {
            Strategy::Large(schedule) => Best::Large(LargeForward::new(gpu, problem, schedule)),
            Strategy::Small(launches) => {
                Best::Small(launches.map(|launch| Some(SmallForward::new(gpu, dtype, launch?))))
            }
            Strategy::MmaDecode(launches) => {
                Best::MmaDecode(launches.map(|launch| Some(Decode::forward(gpu, dtype, launch?))))
            }
            Strategy::Mma(_) | Strategy::Reference => Best::Mma,
        };
        Forward {
            align: Align::new(gpu, dtype),
            copies_w0: copies_w0(problem.t(), &plan.strategy),
            best,
            project: Project::s(gpu.kernels, problem),
            mma: MmaForward::new(gpu, &padded(problem), plan.path() == Path::MmaShort),
        }
    }

    pub(crate) fn run(
        &self,
        gpu: &Gpu,
        call: ForwardCall<'_, '_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let ForwardCall { problem, weights, names, x, h, mut s, .. } = call;
        let run = gpu.stream.enter()?;
        let mut buffers = Buffers::new(&run);
        let a = buffers.read("a", &weights.a)?;
        let x = buffers.read("x", &x)?;
        let mut layers = Layers::new(problem, [x, a, Operand::NONE]);
        let each = weights.projections.iter().zip(problem.projections()).zip(names).zip(h);
        for (((projection, &(d, r)), names), h) in each {
            let w0 = buffers.read(names.w0, &projection.w0)?;
            let b = buffers.read(names.b, &projection.b)?;
            let h = buffers.write(names.h, h)?;
            layers.push(Layer { d, r, w0, b, h, scale: projection.scale });
        }
        let s = s.as_mut().map(|s| buffers.write("s", s)).transpose()?;
        layers.dropout = buffers.dropout(weights.dropout.as_ref())?;
        let [scratch, flags] = buffers.workspace(workspace)?;
        buffers.check_overlap()?;

        // Unless S is asked for, it is made at the start of the scratch.
        layers.s = s.unwrap_or(Operand::new(scratch, problem.rank(), problem.dtype()));
        let partials = scratch + 4 * projection_elements(problem) as u64;
        let mut handover = Handover { flags, partials };
        self.align.run_forward(&run, &mut layers, self.copies_w0, &mut handover)?;
        match &self.best {
            Best::Large(large) if layers.is_aligned() => {
                if large.wants_s() {
                    self.project.run_s(&run, &layers)?;
                }
                large.run(&run, &layers, handover)
            }
            // Few tokens take little time to read again for every layer.
            Best::Small(launches) if layers.is_aligned() => {
                let mut each = layers.with_operands().zip(launches.iter().flatten());
                each.try_for_each(|((layer, a_and_s), launch)| {
                    launch.run(&run, &layers, layer, a_and_s, flags)
                })
            }
            Best::MmaDecode(launches)
                if launches.iter().flatten().all(|launch| launch.serves_forward(&layers)) =>
            {
                let mut each = layers.with_operands().zip(launches.iter().flatten());
                each.try_for_each(|((layer, a_and_s), launch)| {
                    launch.run_forward(&run, &layers, layer, a_and_s, handover)
                })
            }
            _ => self.mma.run(&run, &layers, handover),
        }
    }
}
