//! Forward passes.

use super::buffers::Buffers;
use super::operands::{Handover, Layer, Layers};
use super::sm80::{self, Project};
use super::sm90a::few_tokens;
use super::sm90a::linear::LargeForward;
use crate::call::ForwardCall;
use crate::driver::params::{LinearParams, Operand};
use crate::driver::{Gpu, Kernel, Run};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::sm90a::{decode, short};
use crate::plan::{projection_elements, Alone, Plan, Strategy};
use crate::problem::{Problem, MAX_PROJECTIONS};
use crate::workspace::Workspace;

/// The launches of a forward pass.
pub(crate) struct Forward {
    /// Where all rows start at multiples of 16 bytes.
    hopper: Hopper,
    project: Project,
    linear: Kernel<LinearParams>,
}

#[allow(clippy::large_enum_variant)] // one a pass, behind an `Arc`
enum Hopper {
    None,
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
        let hopper = match plan.strategy {
            Strategy::Large(schedule) => Hopper::Large(LargeForward::new(gpu, problem, schedule)),
            Strategy::Small(launches) => {
                Hopper::Small(launches.map(|launch| Some(SmallForward::new(gpu, dtype, launch?))))
            }
            Strategy::Mma | Strategy::Reference => Hopper::None,
        };
        Forward {
            hopper,
            project: Project::s(gpu.kernels, problem),
            linear: gpu.kernels.of(dtype).sm80.linear_forward,
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
        let [scratch, flags] = buffers.workspace(workspace)?;
        buffers.check_overlap()?;

        // Unless S is asked for, it is made at the start of the scratch.
        layers.s = s.unwrap_or(Operand::new(scratch, problem.rank(), problem.dtype()));
        let partials = scratch + 4 * projection_elements(problem) as u64;
        match &self.hopper {
            Hopper::Large(large) if layers.is_aligned() => {
                if large.wants_s() {
                    self.project.run_s(&run, &layers)?;
                }
                large.run(&run, &layers, Handover { flags, partials })
            }
            // Few tokens take little time to read again for every layer.
            Hopper::Small(launches) if layers.is_aligned() => {
                let mut a = layers.a;
                for ((layer, s), launch) in layers.with_columns().zip(launches.iter().flatten()) {
                    launch.run(&run, &layers, layer, [a, s], flags)?;
                    a.data += layer.r as u64 * a.ld as u64 * layers.dtype.bytes() as u64;
                }
                Ok(())
            }
            _ => {
                self.project.run_s(&run, &layers)?;
                sm80::run_forward(&run, &self.linear, &layers)
            }
        }
    }
}
