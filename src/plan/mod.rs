//! Which kernels serve a call, in which tiles: pure functions of the problem and the device.
//!
//! A file imports the files it needs, never this one, and no two import each other.

pub(crate) mod cost;
mod path;
mod profile;
mod rates;
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
pub(crate) use rates::Rates;
pub(crate) use scratch::{Needs, projection_elements};
pub(crate) use sizes::Sizes;
pub(crate) use sm90a::small::Alone;
pub(crate) use strategy::{Plan, Strategy};

use crate::manifest::sm90a::linear::TILES_N;
use crate::problem::{MAX_PROJECTIONS, Problem};
use cost::CostModel;
use sm80::LinearSchedule;
use sm90a::{grads, linear, small};

/// The plan of a forward pass; `profile` is `None` on the CPU.
pub(crate) fn forward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    if problem.t() == 0 {
        return EMPTY;
    }
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let strategy = match hopper_clusters([t, k], layers, profile) {
        None => sm80::forward(problem, profile),
        Some(clusters) => {
            let sizes = Sizes::of_forward(t, k, layers.iter().copied());
            if problem.dropout() {
                let schedule = linear::forward_dropout(&sizes, clusters, &profile.cost());
                return forward_by(problem, Strategy::Large(schedule));
            }
            match small::forward(problem, clusters, &profile.cost()) {
                Some(launches) => Strategy::Small(launches),
                None => Strategy::Large(linear::forward(&sizes, clusters, &profile.cost())),
            }
        }
    };
    forward_by(problem, strategy)
}

/// The plan of a forward pass that is served like this on a GPU.
fn forward_by(problem: &Problem, strategy: Strategy) -> Plan {
    let t = problem.t();
    let needs = match &strategy {
        Strategy::Large(schedule) => {
            Needs { partials: schedule.partials(), flags: schedule.flags(t) }
        }
        Strategy::Small(launches) => small_needs(launches, t),
        Strategy::MmaDecode(launches) => sm80::decode_needs(launches),
        Strategy::Mma(schedule) => sm80::forward_needs(problem, schedule.short),
        Strategy::Reference => Needs::default(),
    };
    let copies = sm80::forward_copies(problem, &strategy);
    Plan::of_pass(problem, strategy, needs, copies)
}

/// The plan of a backward pass, with dX or without; `profile` is `None` on the CPU.
pub(crate) fn backward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    if problem.t() == 0 {
        return EMPTY;
    }
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let strategy = match hopper_clusters([t, k], layers, profile) {
        None => sm80::backward(problem, profile),
        Some(clusters) => {
            let sizes = input_grad_sizes(problem);
            if problem.dropout() {
                let schedule = linear::input_grad_dropout(&sizes, clusters, &profile.cost());
                return backward_by(problem, Strategy::Large(schedule));
            }
            match small::backward(problem, clusters, &profile.cost()) {
                Some(launch) => Strategy::Small([Some(launch), None, None, None]),
                None => Strategy::Large(linear::input_grad(&sizes, clusters, &profile.cost())),
            }
        }
    };
    backward_by(problem, strategy)
}

/// The plan of a backward pass that is served like this on a GPU.
fn backward_by(problem: &Problem, strategy: Strategy) -> Plan {
    let t = problem.t();
    let needs = match &strategy {
        Strategy::Large(schedule) => {
            let (before, splits) = large_backward_needs(problem, schedule);
            before.and(splits.needs)
        }
        Strategy::Small(launches) => small_needs(launches, t),
        Strategy::MmaDecode(launches) => sm80::decode_needs(launches),
        Strategy::Mma(_) | Strategy::Reference => Needs::default(),
    };
    // Where views are not aligned, other kernels than the strategy's serve a call.
    let needs = match &strategy {
        Strategy::Reference => needs,
        Strategy::Mma(schedule) => sm80::backward_needs(problem, schedule.short),
        _ => needs.or(sm80::backward_needs(problem, false)),
    };
    let copies = sm80::backward_copies(problem, &strategy);
    Plan::of_pass(problem, strategy, needs, copies)
}

/// What the launches of a large batch need, and the splits of dA, whose needs lie behind it.
pub(crate) fn large_backward_needs(
    problem: &Problem,
    schedule: &linear::Schedule,
) -> (Needs, grads::Splits) {
    let flags = schedule.flags(problem.t()).max(grads::flags(problem.t()));
    let needs = Needs { partials: schedule.partials(), flags };
    (needs, grads::Splits::new(&input_grad_sizes(problem)))
}

/// The sizes of dX.
pub(crate) fn input_grad_sizes(problem: &Problem) -> Sizes {
    let layers = problem.projections().iter().copied();
    Sizes::of_input_grad(problem.t(), problem.k(), layers).with_dropout(problem.dropout())
}

fn small_needs(launches: &[Option<Alone>], t: usize) -> Needs {
    let flags = launches.iter().flatten().map(|launch| launch.flags(t)).fold(0, usize::max);
    Needs { partials: 0, flags }
}

/// A way to serve a pass, and the µs it is predicted to take; `None` for small batches, whose plans
/// follow rules.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) us: Option<f64>,
    pub(crate) plan: Plan,
}

/// All ways to serve a forward pass with the Hopper kernels; none without them.
pub(crate) fn all_forward(
    problem: &Problem,
    profile: &DeviceProfile,
    cost: &CostModel,
) -> Vec<Candidate> {
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let Some(clusters) = hopper_clusters([t, k], layers, profile) else { return Vec::new() };
    let sizes = Sizes::of_forward(t, k, layers.iter().copied());
    let large = linear::all_forward(&sizes, clusters, cost).into_iter();
    let large = large.map(|(us, schedule)| (Some(us), Strategy::Large(schedule)));
    let small = small::all_forward(problem, clusters, cost).into_iter();
    let small = small.map(|launch| (None, Strategy::Small([Some(launch), None, None, None])));
    let all = small.chain(large);
    all.map(|(us, strategy)| Candidate { us, plan: forward_by(problem, strategy) }).collect()
}

/// All ways to serve a backward pass with the Hopper kernels; none without them.
pub(crate) fn all_backward(
    problem: &Problem,
    profile: &DeviceProfile,
    cost: &CostModel,
) -> Vec<Candidate> {
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let Some(clusters) = hopper_clusters([t, k], layers, profile) else { return Vec::new() };
    let sizes = Sizes::of_input_grad(t, k, layers.iter().copied());
    let large = linear::all_input_grad(&sizes, clusters, cost).into_iter();
    let large = large.map(|(us, schedule)| (Some(us), Strategy::Large(schedule)));
    let small = small::all_backward(problem, clusters, cost).into_iter();
    let small = small.map(|launch| (None, Strategy::Small([Some(launch), None, None, None])));
    let all = small.chain(large);
    all.map(|(us, strategy)| Candidate { us, plan: backward_by(problem, strategy) }).collect()
}

/// The plan of H = X W0ᵀ, the frozen layer of the first projection; `profile` is `None` on the CPU.
pub(crate) fn base_forward(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    base(problem, profile, sm80::base_forward, |[t, k, d], clusters, cost| {
        let launch = Alone::forward([t, d, k, 0], clusters, cost);
        launch.ok_or_else(|| linear::base([t, d, k], clusters, cost))
    })
}

/// The plan of dX = dH W0, the frozen layer of the first projection; `profile` is `None` on the
/// CPU.
pub(crate) fn base_input_grad(problem: &Problem, profile: Option<&DeviceProfile>) -> Plan {
    base(problem, profile, sm80::base_input_grad, |[t, k, d], clusters, cost| {
        let launch = Alone::base_input_grad([t, k, d], clusters, cost);
        launch.ok_or_else(|| linear::base([t, k, d], clusters, cost))
    })
}

/// An empty batch launches nothing.
const EMPTY: Plan = Plan::without_workspace(Strategy::Mma(LinearSchedule::NONE));

/// A plan without an adapter, given T, k, d and the clusters: a small batch, or a large one.
fn base(
    problem: &Problem,
    profile: Option<&DeviceProfile>,
    elsewhere: impl Fn([usize; 3], &DeviceProfile) -> (Strategy, Needs),
    on_hopper: impl Fn([usize; 3], usize, &CostModel) -> Result<Alone, linear::Schedule>,
) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    if problem.t() == 0 {
        return EMPTY;
    }
    let (t, k, (d, _)) = (problem.t(), problem.k(), problem.projections()[0]);
    let Some(clusters) = hopper_clusters([t, k], &[(d, 0)], profile) else {
        let (strategy, copies) = elsewhere([t, k, d], profile);
        return Plan::of_base(strategy, copies);
    };
    Plan::without_workspace(match on_hopper([t, k, d], clusters, &profile.cost()) {
        Ok(launch) => Strategy::Small([Some(launch), None, None, None]),
        Err(schedule) => Strategy::Large(schedule),
    })
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
