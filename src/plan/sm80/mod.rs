//! How the kernels of `kernels/sm80` are launched.

pub(crate) mod decode;
mod linear;

pub(crate) use linear::{
    linear_blocks, merge_blocks, project_blocks, rank_tile, round_blocks, GradSplit,
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
    let (t, k, limits) = (problem.t(), problem.k(), limits(profile));
    let mut launches = [None; MAX_PROJECTIONS];
    for (launch, &(d, r)) in launches.iter_mut().zip(problem.projections()) {
        *launch = Schedule::forward([t, d, k, r], limits);
        if launch.is_none() {
            return Strategy::Mma;
        }
    }
    Strategy::MmaDecode(launches)
}

/// How a backward pass is served: few tokens of a single layer by one launch.
pub(crate) fn backward(problem: &Problem, profile: &DeviceProfile) -> Strategy {
    let &[(d, r)] = problem.projections() else { return Strategy::Mma };
    alone(Schedule::input_grad([problem.t(), problem.k(), d, r], limits(profile)))
}

/// How H = X W0ᵀ is served, given T, k and d.
pub(crate) fn base_forward([t, k, d]: [usize; 3], profile: &DeviceProfile) -> Strategy {
    alone(Schedule::forward([t, d, k, 0], limits(profile)))
}

/// How dX = dH W0 is served, given T, k and d.
pub(crate) fn base_input_grad([t, k, d]: [usize; 3], profile: &DeviceProfile) -> Strategy {
    alone(Schedule::input_grad([t, k, d, 0], limits(profile)))
}

fn alone(launch: Option<Schedule>) -> Strategy {
    match launch {
        None => Strategy::Mma,
        some => Strategy::MmaDecode([some, None, None, None]),
    }
}

/// f32 elements of partial tiles, and flags, of launches one after the other.
pub(crate) fn workspace(launches: &[Option<Schedule>]) -> (usize, usize) {
    let each = launches.iter().flatten();
    let most = |of: fn(&Schedule) -> usize| each.clone().map(of).fold(0, usize::max);
    (most(Schedule::partials), most(Schedule::flags))
}
