//! Products with a frozen weight alone.

use super::buffers::Buffers;
use super::forward::SmallForward;
use super::operands::{Handover, Layer, Layers};
use super::sm80;
use super::sm90a::few_tokens::InputGrad;
use super::sm90a::linear::{LargeForward, LargeInputGrad};
use crate::call::BaseCall;
use crate::driver::params::{LinearParams, Operand};
use crate::driver::{Gpu, Kernel};
use crate::error::Result;
use crate::plan::sm90a::{decode, short};
use crate::plan::{Alone, Plan, Strategy};
use crate::problem::Problem;

/// H = X W0ᵀ.
pub(crate) struct BaseForward {
    /// Where all rows start at multiples of 16 bytes.
    hopper: HopperForward,
    linear: Kernel<LinearParams>,
}

enum HopperForward {
    None,
    Large(LargeForward),
    Small(SmallForward),
}

impl BaseForward {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, plan: &Plan) -> Self {
        let dtype = problem.dtype();
        let hopper = match plan.strategy {
            Strategy::Large(schedule) => {
                HopperForward::Large(LargeForward::new(gpu, problem, schedule))
            }
            Strategy::Small([Some(launch), ..]) => {
                HopperForward::Small(SmallForward::new(gpu, dtype, launch))
            }
            _ => HopperForward::None,
        };
        BaseForward { hopper, linear: gpu.kernels.of(dtype).sm80.linear_forward }
    }

    pub(crate) fn run(&self, gpu: &Gpu, call: BaseCall<'_>) -> Result<()> {
        let BaseCall { problem, w0, input, mut output, names } = call;
        let (d, _) = problem.projections()[0];
        let run = gpu.stream.enter()?;
        let mut buffers = Buffers::new(&run);
        let w0 = buffers.read("w0", &w0)?;
        let x = buffers.read(names[0], &input)?;
        let h = buffers.write(names[1], &mut output)?;
        buffers.check_overlap()?;

        let none = Operand::NONE;
        let mut layers = Layers::new(problem, [x, none, none]);
        layers.push(Layer { d, r: 0, w0, b: none, h, scale: 1.0 });
        match &self.hopper {
            HopperForward::Large(large) if layers.is_aligned() => {
                large.run(&run, &layers, Handover::NONE)
            }
            HopperForward::Small(small) if layers.is_aligned() => {
                small.run(&run, &layers, &layers.of()[0], [none, none], 0)
            }
            _ => sm80::run_forward(&run, &self.linear, &layers),
        }
    }
}

/// dX = dH W0.
pub(crate) struct BaseInputGrad {
    /// Where all rows start at multiples of 16 bytes.
    hopper: HopperInputGrad,
    linear: Kernel<LinearParams>,
}

enum HopperInputGrad {
    None,
    Large(LargeInputGrad),
    Decode(InputGrad<decode::Schedule>),
    Short(InputGrad<short::Schedule>),
}

impl BaseInputGrad {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, plan: &Plan) -> Self {
        let dtype = problem.dtype();
        let hopper = match plan.strategy {
            Strategy::Large(schedule) => {
                HopperInputGrad::Large(LargeInputGrad::new(gpu, problem, schedule))
            }
            Strategy::Small([Some(Alone::Decode(schedule)), ..]) => {
                HopperInputGrad::Decode(InputGrad::new(gpu, dtype, schedule))
            }
            Strategy::Small([Some(Alone::Short(schedule)), ..]) => {
                HopperInputGrad::Short(InputGrad::new(gpu, dtype, schedule))
            }
            _ => HopperInputGrad::None,
        };
        BaseInputGrad { hopper, linear: gpu.kernels.of(dtype).sm80.linear_input_grad }
    }

    pub(crate) fn run(&self, gpu: &Gpu, call: BaseCall<'_>) -> Result<()> {
        let BaseCall { problem, w0, input, mut output, names } = call;
        let (d, _) = problem.projections()[0];
        let run = gpu.stream.enter()?;
        let mut buffers = Buffers::new(&run);
        let w0 = buffers.read("w0", &w0)?;
        let dh = buffers.read(names[0], &input)?;
        let dx = buffers.write(names[1], &mut output)?;
        buffers.check_overlap()?;

        let none = Operand::NONE;
        let mut layers = Layers::new(problem, [dx, none, none]);
        layers.push(Layer { d, r: 0, w0, b: none, h: dh, scale: 1.0 });
        match &self.hopper {
            HopperInputGrad::Large(large) if layers.is_aligned() => {
                large.run(&run, &layers, None, Handover::NONE)
            }
            HopperInputGrad::Decode(decode) if layers.is_aligned() => {
                decode.run(&run, &layers, None, 0)
            }
            HopperInputGrad::Short(short) if layers.is_aligned() => {
                short.run(&run, &layers, None, 0)
            }
            _ => sm80::run_input_grad(&run, &self.linear, &layers),
        }
    }
}
