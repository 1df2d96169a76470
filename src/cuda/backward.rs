//! Backward passes.

use super::buffers::Buffers;
use super::operands::{Gradients, Handover, Layer, Layers};
use super::sm80::align::Align;
use super::sm80::decode::Decode;
use super::sm80::linear::MmaBackward;
use super::sm90a::few_tokens;
use super::sm90a::grads::Grads;
use super::sm90a::linear::LargeInputGrad;
use crate::call::{Accumulation, BackwardCall};
use crate::driver::params::Operand;
use crate::driver::{Gpu, Run};
use crate::error::Result;
use crate::plan::sm80::{copies_w0, padded};
use crate::plan::sm90a::grads::{Makes, Splits};
use crate::plan::sm90a::linear::{Projection, Schedule};
use crate::plan::sm90a::{decode, short};
use crate::plan::{Alone, Needs, Path, Plan, Strategy, large_backward_needs, projection_elements};
use crate::problem::{MAX_PROJECTIONS, Problem};
use crate::tensor::TensorViewMut;
use crate::workspace::Workspace;

/// The launches of a backward pass, with dX or without.
pub(crate) struct Backward {
    align: Align,
    /// Whether W0 is copied too, where sizes need copies and tiles serve the call.
    copies_w0: bool,
    best: Best,
    mma: MmaBackward,
    /// f32 elements from the start of the scratch to the partial sums.
    partials: usize,
    splits: Splits,
    /// What lies before the needs of the splits.
    before_splits: Needs,
}

/// What serves a call: Hopper's kernels where all rows start at multiples of 16 bytes.
enum Best {
    Mma,
    MmaDecode(Decode),
    Large(LargeBackward),
    Decode(few_tokens::Backward<decode::Schedule>),
    Short(few_tokens::Backward<short::Schedule>),
}

/// dS, dX, dA and dB of all layers.
struct LargeBackward {
    input_grad: LargeInputGrad,
    /// The launches around it, or without it.
    ds: Grads,
    da_db: Grads,
    all: Grads,
}

impl LargeBackward {
    fn new(gpu: &Gpu, problem: &Problem, schedule: Schedule) -> Self {
        LargeBackward {
            input_grad: LargeInputGrad::new(gpu, problem, schedule),
            ds: Grads::new(gpu, problem, Makes::Ds),
            da_db: Grads::new(gpu, problem, Makes::DaDb),
            all: Grads::new(gpu, problem, Makes::All),
        }
    }

    fn run(
        &self,
        run: &Run<'_>,
        layers: &Layers,
        wants_dx: bool,
        gradients: &Gradients,
        handover: Handover,
    ) -> Result<()> {
        let (schedule, flags) = (self.input_grad.schedule(), handover.flags);
        if !wants_dx {
            return self.all.run(run, layers, gradients, flags);
        }
        if schedule.projection == Projection::Separate {
            self.ds.run(run, layers, gradients, flags)?;
        }
        self.input_grad.run(run, layers, Some(gradients), handover)?;
        if schedule.grad_clusters == 0 {
            self.da_db.run(run, layers, gradients, flags)?;
        }
        Ok(())
    }
}

impl Backward {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, plan: &Plan) -> Self {
        let best = match plan.strategy {
            Strategy::Large(schedule) => Best::Large(LargeBackward::new(gpu, problem, schedule)),
            Strategy::Small([Some(Alone::Decode(schedule)), ..]) => {
                Best::Decode(few_tokens::Backward::new(gpu, problem, schedule))
            }
            Strategy::Small([Some(Alone::Short(schedule)), ..]) => {
                Best::Short(few_tokens::Backward::new(gpu, problem, schedule))
            }
            Strategy::MmaDecode([Some(schedule), ..]) => {
                Best::MmaDecode(Decode::input_grad(gpu, problem.dtype(), schedule))
            }
            _ => Best::Mma,
        };
        let (before_splits, splits) = match &plan.strategy {
            Strategy::Large(schedule) => large_backward_needs(problem, schedule),
            _ => (Needs::default(), Splits::whole(problem.t())),
        };
        Backward {
            align: Align::new(gpu, problem.dtype()),
            copies_w0: copies_w0(problem.t(), &plan.strategy),
            best,
            mma: MmaBackward::new(gpu, &padded(problem), plan.path() == Path::MmaShort),
            partials: projection_elements(problem),
            splits,
            before_splits,
        }
    }

    pub(crate) fn run(
        &self,
        gpu: &Gpu,
        call: BackwardCall<'_, '_, '_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let BackwardCall { problem, weights, names, dh, x, s, mut dx, mut out } = call;
        let (dtype, accumulate) = (out.da.dtype(), out.accumulation == Accumulation::Add);
        let run = gpu.stream.enter()?;
        let mut buffers = Buffers::new(&run);
        let a = buffers.read("a", &weights.a)?;
        let x = buffers.read("x", &x)?;
        let s = buffers.read("s", &s)?;
        let dx = dx.as_mut().map(|dx| buffers.write("dx", dx)).transpose()?;
        let da = buffers.write("da", &mut out.da)?.data;
        let mut layers = Layers::new(problem, [dx.unwrap_or(Operand::NONE), a, Operand::NONE]);
        let mut db = [0; MAX_PROJECTIONS];
        let each = weights.projections.iter().zip(problem.projections()).zip(names).zip(dh);
        for ((((projection, &(d, r)), names), dh), (db, out)) in
            each.zip(db.iter_mut().zip(out.db.iter_mut()))
        {
            let w0 = buffers.read(names.w0, &projection.w0)?;
            let b = buffers.read(names.b, &projection.b)?;
            let h = buffers.read(names.dh, dh)?;
            *db = buffers.write(names.db, out)?.data;
            layers.push(Layer { d, r, w0, b, h, scale: projection.scale });
        }
        layers.dropout = buffers.dropout(weights.dropout.as_ref())?;
        let [scratch, flags] = buffers.workspace(workspace)?;
        buffers.check_overlap()?;

        layers.s = Operand::new(scratch, problem.rank(), problem.dtype());
        let partials = scratch + 4 * self.partials as u64;
        let (mut handover, mut x, wants_dx) = (Handover { flags, partials }, x, dx.is_some());
        let copies_w0 = match &self.best {
            Best::MmaDecode(decode) => !decode.reads_w0(&layers),
            _ => self.copies_w0,
        };
        let wants = [wants_dx, wants_dx && copies_w0];
        self.align.run_backward(&run, &mut layers, &mut x, wants, &mut handover)?;
        let mut splits_at = handover;
        splits_at.take(self.before_splits);
        let splits = self.splits;
        let gradients = Gradients { x, s, da, db, dtype, accumulate, splits, splits_at };
        let aligned = layers.is_aligned() && gradients.is_aligned();
        match &self.best {
            Best::MmaDecode(decode) if decode.serves_input_grad(&layers, wants_dx) => {
                decode.run_input_grad(&run, &layers, wants_dx, Some(&gradients), handover)?;
            }
            Best::Large(large) if aligned => {
                large.run(&run, &layers, wants_dx, &gradients, handover)?;
            }
            Best::Decode(decode) if aligned => {
                decode.run(&run, &layers, wants_dx, &gradients, flags)?;
            }
            Best::Short(short) if aligned => {
                short.run(&run, &layers, wants_dx, &gradients, flags)?;
            }
            _ => self.mma.run(&run, &layers, wants_dx, &gradients, handover)?,
        }
        Ok(())
    }
}

/// dA and dB of an empty batch: zeros.
pub(crate) fn zero_gradients(gpu: &Gpu, call: BackwardCall<'_, '_, '_>) -> Result<()> {
    let BackwardCall { names, mut out, .. } = call;
    let run = gpu.stream.enter()?;
    let mut buffers = Buffers::new(&run);
    let bytes = |gradient: &TensorViewMut<'_>| gradient.extent() * gradient.dtype().bytes();
    let of_da = bytes(&out.da);
    run.zero(buffers.write("da", &mut out.da)?.data, of_da)?;
    for (db, names) in out.db.iter_mut().zip(names) {
        let of_db = bytes(db);
        run.zero(buffers.write(names.db, db)?.data, of_db)?;
    }
    Ok(())
}
