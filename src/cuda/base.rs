//! Products with a frozen weight alone.

use super::buffers::Buffers;
use super::forward::SmallForward;
use super::operands::{Handover, Layer, Layers};
use super::sm80::align::Align;
use super::sm80::decode::Decode;
use super::sm80::linear::{MmaForward, MmaInputGrad};
use super::sm90a::few_tokens::InputGrad;
use super::sm90a::linear::{LargeForward, LargeInputGrad};
use crate::call::BaseCall;
use crate::driver::Gpu;
use crate::driver::params::Operand;
use crate::error::Result;
use crate::plan::sm80::{copies_w0, padded};
use crate::plan::sm90a::{decode, short};
use crate::plan::{Alone, Plan, Strategy};
use crate::problem::Problem;
use crate::workspace::Workspace;

/// H = X W0ᵀ.
pub(crate) struct BaseForward {
    /// For sizes that need copies of X or W0.
    align: Option<Align>,
    /// Whether W0 is copied too.
    copies_w0: bool,
    best: BestForward,
    mma: MmaForward,
}

/// What serves a call, where all rows start at multiples of 16 bytes, and some products elsewhere.
enum BestForward {
    Mma,
    MmaDecode(Decode),
    Large(LargeForward),
    Small(SmallForward),
}

impl BaseForward {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, plan: &Plan) -> Self {
        let dtype = problem.dtype();
        let best = match plan.strategy {
            Strategy::Large(schedule) => {
                BestForward::Large(LargeForward::new(gpu, problem, schedule))
            }
            Strategy::Small([Some(launch), ..]) => {
                BestForward::Small(SmallForward::new(gpu, dtype, launch))
            }
            Strategy::MmaDecode([Some(schedule), ..]) => {
                BestForward::MmaDecode(Decode::forward(gpu, dtype, schedule))
            }
            _ => BestForward::Mma,
        };
        BaseForward {
            align: plan.copies.then(|| Align::new(gpu, dtype)),
            copies_w0: copies_w0(problem.t(), &plan.strategy),
            best,
            mma: MmaForward::new(gpu, &padded(problem), false),
        }
    }

    pub(crate) fn run(
        &self,
        gpu: &Gpu,
        call: BaseCall<'_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let BaseCall { problem, w0, input, mut output, names } = call;
        let (d, _) = problem.projections()[0];
        let run = gpu.stream.enter()?;
        let mut buffers = Buffers::new(&run);
        let w0 = buffers.read("w0", &w0)?;
        let x = buffers.read(names[0], &input)?;
        let h = buffers.write(names[1], &mut output)?;
        let mut copies = handover(&mut buffers, self.align.as_ref(), workspace)?;
        buffers.check_overlap()?;

        let none = Operand::NONE;
        let mut layers = Layers::new(problem, [x, none, none]);
        layers.push(Layer { d, r: 0, w0, b: none, h, scale: 1.0 });
        if let Some(align) = &self.align {
            align.run_forward(&run, &mut layers, self.copies_w0, &mut copies)?;
        }
        match &self.best {
            BestForward::Large(large) if layers.is_aligned() => {
                large.run(&run, &layers, Handover::NONE)
            }
            BestForward::Small(small) if layers.is_aligned() => {
                small.run(&run, &layers, &layers.of()[0], [none, none], 0)
            }
            BestForward::MmaDecode(decode) if decode.serves_forward(&layers) => {
                decode.run_forward(&run, &layers, &layers.of()[0], [none, none], Handover::NONE)
            }
            _ => self.mma.run(&run, &layers, Handover::NONE),
        }
    }
}

/// dX = dH W0.
pub(crate) struct BaseInputGrad {
    /// For sizes that need copies of dH or W0.
    align: Option<Align>,
    /// Whether W0 is copied too, where tiles serve the call.
    copies_w0: bool,
    best: BestInputGrad,
    mma: MmaInputGrad,
}

/// The same.
enum BestInputGrad {
    Mma,
    MmaDecode(Decode),
    Large(LargeInputGrad),
    Decode(InputGrad<decode::Schedule>),
    Short(InputGrad<short::Schedule>),
}

impl BaseInputGrad {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, plan: &Plan) -> Self {
        let dtype = problem.dtype();
        let best = match plan.strategy {
            Strategy::Large(schedule) => {
                BestInputGrad::Large(LargeInputGrad::new(gpu, problem, schedule))
            }
            Strategy::Small([Some(Alone::Decode(schedule)), ..]) => {
                BestInputGrad::Decode(InputGrad::new(gpu, dtype, schedule))
            }
            Strategy::Small([Some(Alone::Short(schedule)), ..]) => {
                BestInputGrad::Short(InputGrad::new(gpu, dtype, schedule))
            }
            Strategy::MmaDecode([Some(schedule), ..]) => {
                BestInputGrad::MmaDecode(Decode::input_grad(gpu, dtype, schedule))
            }
            _ => BestInputGrad::Mma,
        };
        let of_copies = padded(problem);
        let mma = MmaInputGrad::new(gpu, &of_copies, &of_copies.projections()[..1]);
        BaseInputGrad {
            align: plan.copies.then(|| Align::new(gpu, dtype)),
            copies_w0: copies_w0(problem.t(), &plan.strategy),
            best,
            mma,
        }
    }

    pub(crate) fn run(
        &self,
        gpu: &Gpu,
        call: BaseCall<'_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let BaseCall { problem, w0, input, mut output, names } = call;
        let (d, _) = problem.projections()[0];
        let run = gpu.stream.enter()?;
        let mut buffers = Buffers::new(&run);
        let w0 = buffers.read("w0", &w0)?;
        let dh = buffers.read(names[0], &input)?;
        let dx = buffers.write(names[1], &mut output)?;
        let mut copies = handover(&mut buffers, self.align.as_ref(), workspace)?;
        buffers.check_overlap()?;

        let none = Operand::NONE;
        let mut layers = Layers::new(problem, [dx, none, none]);
        layers.push(Layer { d, r: 0, w0, b: none, h: dh, scale: 1.0 });
        if let Some(align) = &self.align {
            let copies_w0 = match &self.best {
                BestInputGrad::MmaDecode(decode) => !decode.reads_w0(&layers),
                _ => self.copies_w0,
            };
            align.run_input_grad(&run, &mut layers, copies_w0, &mut copies)?;
        }
        match &self.best {
            BestInputGrad::Large(large) if layers.is_aligned() => {
                large.run(&run, &layers, None, Handover::NONE)
            }
            BestInputGrad::Decode(decode) if layers.is_aligned() => {
                decode.run(&run, &layers, None, 0)
            }
            BestInputGrad::Short(short) if layers.is_aligned() => short.run(&run, &layers, None, 0),
            BestInputGrad::MmaDecode(decode) if decode.serves_input_grad(&layers, true) => {
                decode.run_input_grad(&run, &layers, true, None, Handover::NONE)
            }
            _ => self.mma.run(&run, &layers),
        }
    }
}

/// The memory of copies, if there are any: other calls have no use for the workspace.
fn handover(
    buffers: &mut Buffers<'_>,
    align: Option<&Align>,
    workspace: &mut Workspace,
) -> Result<Handover> {
    match align {
        None => Ok(Handover::NONE),
        Some(_) => {
            let [partials, flags] = buffers.workspace(workspace)?;
            Ok(Handover { flags, partials })
        }
    }
}
