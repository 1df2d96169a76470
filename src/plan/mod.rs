//! Which kernels serve a call, in which tiles: pure functions of the problem and the device.
//!
//! A file imports the files it needs, never this one, and no two import each other.

pub(crate) mod cost;
mod path;
mod profile;
mod scratch;
mod sizes;
pub(crate) mod sm80;
pub(crate) mod sm90a;
mod strategy;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use path::Path;
pub use profile::DeviceProfile;
pub(crate) use scratch::{projection_elements, BackwardWorkspace};
pub(crate) use sizes::Sizes;
pub(crate) use sm90a::small::Alone;
pub(crate) use strategy::{Plan, Strategy};

use crate::manifest::sm90a::linear::TILES_N;
use crate::problem::{Problem, MAX_PROJECTIONS};
use cost::CostModel;
use sm90a::{grads, linear, small};

/// The plan of a forward pass; `profile` is `None` on the CPU.
pub(crate) fn forward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    if problem.t() == 0 {
        return EMPTY;
    }
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let s = projection_elements(problem);
    let Some(clusters) = hopper_clusters([t, k], layers, profile) else { return Plan::mma(s) };
    if let Some(launches) = small::forward(problem, clusters) {
        let flags = launches.iter().flatten().map(|launch| launch.flags(t)).fold(0, usize::max);
        return Plan { strategy: Strategy::Small(launches), scratch: s, flags };
    }
    let sizes = Sizes::of_forward(t, k, layers.iter().copied());
    let schedule = linear::forward(&sizes, clusters, profile.cost());
    let (scratch, flags) = (s + schedule.partials(), schedule.flags(t));
    Plan { strategy: Strategy::Large(schedule), scratch, flags }
}

/// The plan of a backward pass, with dX or without; `profile` is `None` on the CPU.
pub(crate) fn backward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    if problem.t() == 0 {
        return EMPTY;
    }
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let scratch = |partials| BackwardWorkspace::new(problem, partials).elements();
    let Some(clusters) = hopper_clusters([t, k], layers, profile) else {
        return Plan::mma(scratch(0));
    };
    if let Some(launch) = small::backward(problem, clusters) {
        let strategy = Strategy::Small([Some(launch), None, None, None]);
        return Plan { strategy, scratch: scratch(0), flags: launch.flags(t) };
    }
    let sizes = Sizes::of_input_grad(t, k, layers.iter().copied());
    let schedule = linear::input_grad(&sizes, clusters, profile.cost());
    let flags = schedule.flags(t).max(grads::flags(t));
    Plan { strategy: Strategy::Large(schedule), scratch: scratch(schedule.partials()), flags }
}

/// The plan of H = X W0ᵀ, the frozen layer of the first projection; `profile` is `None` on the CPU.
/// It needs no workspace.
pub(crate) fn base_forward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    base(problem, profile, |[t, k, d], clusters, cost| {
        let launch = Alone::forward([t, d, k, 0], clusters);
        launch.ok_or_else(|| linear::base([t, d, k], clusters, cost))
    })
}

/// The plan of dX = dH W0, the frozen layer of the first projection; `profile` is `None` on the
/// CPU. It needs no workspace.
pub(crate) fn base_input_grad(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    base(problem, profile, |[t, k, d], clusters, cost| {
        let launch = Alone::base_input_grad([t, k, d], clusters);
        launch.ok_or_else(|| linear::base([t, k, d], clusters, cost))
    })
}

/// An empty batch launches nothing.
const EMPTY: Plan = Plan { strategy: Strategy::Mma, scratch: 0, flags: 0 };

/// A plan without an adapter, given T, k, d and the clusters: a small batch, or a large one.
fn base(
    problem: &Problem,
    profile: Option<&DeviceProfile>,
    on_hopper: impl Fn([usize; 3], usize, &CostModel) -> Result<Alone, linear::Schedule>,
) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    if problem.t() == 0 {
        return EMPTY;
    }
    let (t, k, (d, _)) = (problem.t(), problem.k(), problem.projections()[0]);
    let Some(clusters) = hopper_clusters([t, k], &[(d, 0)], profile) else { return Plan::mma(0) };
    let strategy = match on_hopper([t, k, d], clusters, profile.cost()) {
        Ok(launch) => Strategy::Small([Some(launch), None, None, None]),
        Err(schedule) => Strategy::Large(schedule),
    };
    Plan { strategy, scratch: 0, flags: 0 }
}

/// The clusters that run at once, if the Hopper kernels can serve layers of these (d, r): rows
/// start at multiples of 16 bytes, and all counts fit the kernels' arithmetic.
fn hopper_clusters(
    [t, k]: [usize; 2],
    layers: &[(usize, usize)],
    profile: &DeviceProfile,
) -> Option<usize> {
    /// `int` counts the outputs of all layers, each padded to whole tiles.
    const MOST_OUTPUTS: usize = i32::MAX as usize - MAX_PROJECTIONS * 256;
    /// `divide` in kernels/sm90a/linear_tiles.cuh counts tiles in floats, exact up to 2²⁴.
    const MOST_TILES: usize = 1 << 24;
    /// `int` counts the steps of all rounds of kernels/sm90a/decode.cu: on one cluster, a round is
    /// 2 × 128 rows of W0, and a step 64 columns.
    const MOST_WEIGHTS: usize = 1 << 44;
    let narrowest = TILES_N[0];
    let tile_cols = |n: usize| n.div_ceil(narrowest);
    let (mut aligned, mut outputs, mut cols) = (k % 8 == 0, 0, 0);
    for &(d, r) in layers {
        aligned &= d % 8 == 0 && r % 8 == 0;
        outputs += d;
        cols += tile_cols(d);
    }
    let tiles = t.div_ceil(linear::CLUSTER_M) * cols.max(tile_cols(k));
    let fits = outputs <= MOST_OUTPUTS && tiles < MOST_TILES && outputs * k <= MOST_WEIGHTS;
    (profile.hopper() && aligned && fits).then_some(profile.clusters())
}
