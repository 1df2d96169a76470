//! How the kernels of `kernels/sm80` are launched.

pub(crate) mod decode;
pub(crate) mod linear;

pub(crate) use linear::{
    forward_tiles, input_grad_tile, merge_blocks, project_blocks, rank_tile, round_blocks,
    GradSplit, LinearTile,
};

use super::profile::DeviceProfile;
use super::strategy::Strategy;
use crate::problem::{Problem, MAX_PROJECTIONS};
use decode::{Limits, Schedule};

fn limits(profile: &DeviceProfile) -> Limits {
    Limits { sms: profile.sms(), shared_bytes: profile.shared_bytes() }
}

/// How a forward pass is served: few tokens by a launch for each layer.
pub(crate) fn forward(problem: &Problem, profile: &DeviceProfile) -> Strategy {
    let (t, k, layers, limits) = (problem.t(), problem.k(), problem.projections(), limits(profile));
    let mut launches = [None; MAX_PROJECTIONS];
    for (launch, &(d, r)) in launches.iter_mut().zip(layers) {
        *launch = Schedule::forward([t, d, k, r], limits);
        if launch.is_none() {
            return Strategy::Mma(forward_tiles([t, k], layers, profile));
        }
    }
    Strategy::MmaDecode(launches)
}

/// How a backward pass is served: few tokens of a single layer by one launch.
pub(crate) fn backward(problem: &Problem, profile: &DeviceProfile) -> Strategy {
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let launch = match *layers {
        [(d, r)] => Schedule::input_grad([t, k, d, r], limits(profile)),
        _ => None,
    };
    one(launch, || input_grad_tile([t, k], layers, profile))
}

/// How H = X W0ᵀ is served, given T, k and d.
pub(crate) fn base_forward([t, k, d]: [usize; 3], profile: &DeviceProfile) -> Strategy {
    match Schedule::forward([t, d, k, 0], limits(profile)) {
        None => Strategy::Mma(forward_tiles([t, k], &[(d, 0)], profile)),
        some => Strategy::MmaDecode([some, None, None, None]),
    }
}

/// How dX = dH W0 is served, given T, k and d.
pub(crate) fn base_input_grad([t, k, d]: [usize; 3], profile: &DeviceProfile) -> Strategy {
    let launch = Schedule::input_grad([t, k, d, 0], limits(profile));
    one(launch, || input_grad_tile([t, k], &[(d, 0)], profile))
}

/// By this launch, or in this tile.
fn one(launch: Option<Schedule>, tile: impl Fn() -> LinearTile) -> Strategy {
    match launch {
        None => Strategy::Mma([Some(tile()), None, None, None]),
        some => Strategy::MmaDecode([some, None, None, None]),
    }
}

/// f32 elements of partial tiles, and flags, of launches one after the other.
pub(crate) fn workspace(launches: &[Option<Schedule>]) -> (usize, usize) {
    let each = launches.iter().flatten();
    let most = |of: fn(&Schedule) -> usize| each.clone().map(of).fold(0, usize::max);
    (most(Schedule::partials), most(Schedule::flags))
}
