//! Passes for few tokens, of one layer a launch.

use super::MAX_PROJECTIONS;
use super::{hopper_decode, hopper_short, BackwardWorkspace, Path, Plan, SharedProblem};

/// A launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alone {
    /// Of kernels/hopper_decode.cu.
    Decode(hopper_decode::Schedule),
    /// Of kernels/hopper_short.cu.
    Short(hopper_short::Schedule),
}

/// One for every layer.
pub(crate) type Apart = [Option<Alone>; MAX_PROJECTIONS];

/// The tokens up to which bytes of W0 are all that matters.
const DECODE_TOKENS: usize = 64;

impl Alone {
    /// For H (T×d) over k, with S (T×r) unless r is 0, on so many pairs of multiprocessors; `None` for
    /// many tokens.
    pub(crate) fn forward([t, d, k, r]: [usize; 4], pairs: usize) -> Option<Self> {
        let short = || hopper_short::Schedule::forward([t, d, r], pairs).map(Alone::Short);
        let decode = || Alone::Decode(hopper_decode::Schedule::forward([t, d, k, r], pairs));
        match short().filter(|_| t > DECODE_TOKENS) {
            Some(short) => Some(short),
            None => (t <= hopper_decode::MOST_TOKENS).then(decode),
        }
    }

    /// For dX (T×k) over d, with dS (T×r), and dA and dB; `None` for many tokens.
    pub(crate) fn input_grad([t, k, d, r]: [usize; 4], pairs: usize) -> Option<Self> {
        let short = || hopper_short::Schedule::input_grad([t, k, r], pairs).map(Alone::Short);
        let decode = hopper_decode::Schedule::input_grad([t, k, d, r], pairs).map(Alone::Decode);
        decode.or_else(short)
    }

    fn path(&self) -> Path {
        match self {
            Alone::Decode(_) => Path::HopperDecode,
            Alone::Short(_) => Path::HopperShort,
        }
    }

    fn flags(&self, t: usize) -> usize {
        match self {
            Alone::Decode(_) => hopper_decode::FLAGS,
            Alone::Short(schedule) => schedule.flags(t),
        }
    }
}

/// The plan of a forward pass, if it is one for few tokens.
pub(super) fn plan(problem: &SharedProblem, pairs: usize, scratch: usize) -> Option<Plan> {
    let &SharedProblem { t, k, .. } = problem;
    // More tokens take time to be read again for every layer.
    if t > hopper_decode::MOST_TOKENS && problem.projections().len() > 1 {
        return None;
    }
    let mut apart = [None; MAX_PROJECTIONS];
    for (alone, &(d, r)) in apart.iter_mut().zip(problem.projections()) {
        *alone = Some(Alone::forward([t, d, k, r], pairs)?);
    }
    let all = || apart.iter().flatten();
    let path = match all().all(|alone| alone.path() == Path::HopperShort) {
        true => Path::HopperShort,
        false => Path::HopperDecode,
    };
    let flags = all().map(|alone| alone.flags(t)).fold(0, usize::max);
    Some(Plan { path, scratch, flags, hopper: None, apart: Some(apart) })
}

/// The plan of a backward pass for few tokens, if it is one of a layer alone.
pub(super) fn backward_plan(problem: &SharedProblem, pairs: usize) -> Option<Plan> {
    let &[(d, r)] = problem.projections() else { return None };
    let alone = Alone::input_grad([problem.t, problem.k, d, r], pairs)?;
    let apart = Some([Some(alone), None, None, None]);
    let (path, flags) = (alone.path(), alone.flags(problem.t));
    let scratch = BackwardWorkspace::new(problem, None).elements();
    Some(Plan { path, scratch, flags, hopper: None, apart })
}
