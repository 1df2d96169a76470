//! How the kernels of `kernels/sm80` are launched.

mod copies;
pub(crate) mod decode;
pub(crate) mod linear;
mod split;

pub(crate) use copies::{copy_ctas, copy_needs, padded};
pub(crate) use linear::{
    LinearSchedule, LinearTile, merge_blocks, project_blocks, rank_tile, round_blocks,
};
pub(crate) use split::{GradSplit, ProjSplit, backward_needs, forward_needs, s_flags, whole_s};

use super::profile::DeviceProfile;
use super::scratch::Needs;
use super::strategy::Strategy;
use crate::problem::{MAX_PROJECTIONS, Problem};
use copies::{W0_TOKENS, of_backward, of_forward, of_w0, padded_size};
use decode::Launch;

/// How a forward pass is served: few tokens by a launch for each layer, of W0 where it lies. Tiles
/// read aligned rows, or copies.
pub(crate) fn forward(problem: &Problem, profile: &DeviceProfile) -> Strategy {
    let of_copies = padded(problem);
    let (t, k, layers) = (problem.t(), of_copies.k(), of_copies.projections());
    if problem.dropout() {
        return Strategy::Mma(LinearSchedule::forward_after_s([t, k], layers, profile));
    }
    let mut launches = [None; MAX_PROJECTIONS];
    for (launch, &(d, r)) in launches.iter_mut().zip(problem.projections()) {
        *launch = Launch::forward([t, d, problem.k(), r], profile);
        if launch.is_none() {
            return Strategy::Mma(LinearSchedule::forward([t, k], layers, profile));
        }
    }
    Strategy::MmaDecode(launches)
}

/// How a backward pass is served: few tokens of a single layer by one launch, of W0 where it lies.
/// Other rows that are read are aligned, or copies are.
pub(crate) fn backward(problem: &Problem, profile: &DeviceProfile) -> Strategy {
    let of_copies = padded(problem);
    let (t, k, layers) = (problem.t(), of_copies.k(), of_copies.projections());
    if problem.dropout() {
        return Strategy::Mma(LinearSchedule::input_grad_dropout([t, k], layers, profile));
    }
    let launch = match *layers {
        [(d, r)] => Launch::input_grad([t, problem.k(), d, r], profile),
        _ => None,
    };
    one(launch, || LinearSchedule::input_grad([t, k], layers, profile))
}

/// How H = X W0ᵀ is served, given T, k and d, and its copies: few tokens need none.
pub(crate) fn base_forward([t, k, d]: [usize; 3], profile: &DeviceProfile) -> (Strategy, Needs) {
    let tiles = || LinearSchedule::forward([t, padded_size(k)], &[(d, 0)], profile);
    let strategy = one(Launch::forward([t, d, k, 0], profile), tiles);
    let copies = match strategy {
        Strategy::MmaDecode(_) => Needs::default(),
        _ => copy_needs([t, k]).and_if(copies_w0(t, &strategy), copy_needs([d, k])),
    };
    (strategy, copies)
}

/// How dX = dH W0 is served, likewise.
pub(crate) fn base_input_grad([t, k, d]: [usize; 3], profile: &DeviceProfile) -> (Strategy, Needs) {
    let padded_d = padded_size(d);
    let tiles = || LinearSchedule::input_grad([t, padded_size(k)], &[(padded_d, 0)], profile);
    let strategy = one(Launch::input_grad([t, k, padded_d, 0], profile), tiles);
    let copies = copy_needs([t, d]).and_if(may_copy_w0(t, &strategy), copy_needs([d, k]));
    (strategy, copies)
}

/// By this launch, or by these tiles.
fn one(launch: Option<Launch>, tiles: impl Fn() -> LinearSchedule) -> Strategy {
    match launch {
        None => Strategy::Mma(tiles()),
        some => Strategy::MmaDecode([some, None, None, None]),
    }
}

/// The copies of a forward pass that is served like this.
pub(crate) fn forward_copies(problem: &Problem, strategy: &Strategy) -> Needs {
    of_forward(problem).and_if(copies_w0(problem.t(), strategy), of_w0(problem))
}

/// The copies of a backward pass, likewise.
pub(crate) fn backward_copies(problem: &Problem, strategy: &Strategy) -> Needs {
    of_backward(problem).and_if(may_copy_w0(problem.t(), strategy), of_w0(problem))
}

/// Whether W0 is one of the copies of T tokens that are served like this. Launches for few tokens
/// read it where it lies, and so do tiles that shift it.
pub(crate) fn copies_w0(t: usize, strategy: &Strategy) -> bool {
    match strategy {
        Strategy::MmaDecode([Some(launch), ..]) => !launch.instance.shifts(),
        Strategy::Mma(schedule) => t > W0_TOKENS || schedule.unaligned[0].is_none(),
        _ => true,
    }
}

/// Whether it may be, in dX: a launch for few tokens does not serve views of dH and B that are not
/// aligned.
fn may_copy_w0(t: usize, strategy: &Strategy) -> bool {
    matches!(strategy, Strategy::MmaDecode(_)) || copies_w0(t, strategy)
}

/// What launches for few tokens need, one after the other.
pub(crate) fn decode_needs(launches: &[Option<Launch>]) -> Needs {
    let each = launches.iter().flatten();
    let needs = |of: &Launch| Needs { partials: of.partials(), flags: of.flags() };
    each.map(needs).fold(Needs::default(), Needs::or)
}
