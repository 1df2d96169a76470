//! A plan: how a call is served, and the workspace it needs.

use super::path::Path;
use super::scratch::{Needs, projection_elements};
use super::sm80::decode;
use super::sm80::linear::LinearSchedule;
use super::sm90a::linear::{Projection, Schedule};
use super::sm90a::small::Alone;
use crate::problem::{MAX_PROJECTIONS, Problem};
use std::fmt;

/// How a call is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // half a KiB, one per op
pub(crate) enum Strategy {
    /// On the CPU.
    Reference,
    /// By kernels/sm80/linear.cuh, H of every layer or dX in tiles of these sizes. No tiles: T = 0.
    Mma(LinearSchedule),
    /// By kernels/sm80/decode.cu, one launch for each layer. Unused entries are `None`.
    MmaDecode([Option<decode::Launch>; MAX_PROJECTIONS]),
    /// By kernels/sm90a/linear.cuh, one launch for all layers, and kernels/sm90a/grads.cu.
    Large(Schedule),
    /// By one launch for each layer. Unused entries are `None`.
    Small([Option<Alone>; MAX_PROJECTIONS]),
}

/// How a call will be served, and the workspace it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) strategy: Strategy,
    /// f32 elements of scratch; may be 0.
    pub(crate) scratch: usize,
    /// Flags, of 32 bits; may be 0.
    pub(crate) flags: usize,
    /// Whether a launch before copies what the others read to aligned rows.
    pub(crate) copies: bool,
}

impl Plan {
    /// On the CPU.
    pub(super) const REFERENCE: Plan = Plan::without_workspace(Strategy::Reference);

    pub(super) const fn without_workspace(strategy: Strategy) -> Plan {
        Plan { strategy, scratch: 0, flags: 0, copies: false }
    }

    /// Of a product with a frozen weight, and its copies.
    pub(super) fn of_base(strategy: Strategy, copies: Needs) -> Plan {
        let Needs { partials: scratch, flags } = copies;
        Plan { strategy, scratch, flags, copies: copies != Needs::default() }
    }

    /// Of a pass with S or dS, copies behind it, and what the strategy needs behind these.
    pub(super) fn of_pass(
        problem: &Problem,
        strategy: Strategy,
        needs: Needs,
        copies: Needs,
    ) -> Plan {
        let Needs { partials, flags } = copies.and(needs);
        let scratch = projection_elements(problem) + partials;
        Plan { strategy, scratch, flags, copies: copies != Needs::default() }
    }

    /// The code that serves the call.
    pub(crate) fn path(&self) -> Path {
        match &self.strategy {
            Strategy::Reference => Path::Reference,
            Strategy::Mma(LinearSchedule { short: true, .. }) => Path::MmaShort,
            Strategy::Mma(_) => Path::Mma,
            Strategy::MmaDecode(_) => Path::MmaDecode,
            Strategy::Large(_) => Path::Hopper,
            Strategy::Small(launches) => {
                let mut launches = launches.iter().flatten();
                match launches.all(|launch| launch.path() == Path::HopperShort) {
                    true => Path::HopperShort,
                    false => Path::HopperDecode,
                }
            }
        }
    }
}

/// The path, its tiles and the scratch, on one line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().fmt(f)?;
        match &self.strategy {
            Strategy::Reference => return Ok(()),
            Strategy::Mma(schedule) => schedule.fmt(f)?,
            // The plan of a base op has no projection, and here no scratch.
            Strategy::Large(schedule) => large(f, schedule, self.scratch > 0)?,
            Strategy::MmaDecode(launches) => each(f, launches)?,
            Strategy::Small(launches) => each(f, launches)?,
        }
        f.write_str(if self.copies { ", copies with aligned rows, " } else { ", " })?;
        bytes(f, 4 * self.scratch)?;
        f.write_str(" scratch")
    }
}

fn each(f: &mut fmt::Formatter<'_>, launches: &[Option<impl fmt::Display>]) -> fmt::Result {
    let mut launches = launches.iter().flatten().enumerate();
    launches.try_for_each(|(i, launch)| write!(f, "{} {launch}", if i == 0 { "" } else { ";" }))
}

fn large(f: &mut fmt::Formatter<'_>, schedule: &Schedule, projects: bool) -> fmt::Result {
    let &Schedule { tile_n, clusters, .. } = schedule;
    write!(f, " 128×{tile_n} tiles, {clusters} clusters")?;
    match schedule.projection {
        Projection::Separate if projects => f.write_str(", separate projection")?,
        Projection::Separate => {}
        Projection::Dedicated { proj_clusters } => {
            write!(f, ", dedicated projection on {proj_clusters} clusters")?
        }
        Projection::Fused { slice, .. } => {
            write!(f, ", fused projection in {slice}-column slices")?;
        }
    }
    if schedule.stream_k {
        f.write_str(", stream-K tail")?;
    }
    match schedule.grad_clusters {
        0 => Ok(()),
        grads => write!(f, ", {grads} clusters of grad CTAs"),
    }
}

fn bytes(f: &mut fmt::Formatter<'_>, bytes: usize) -> fmt::Result {
    if bytes == 0 {
        return f.write_str("no");
    }
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.ilog2() as usize / 10).clamp(1, units.len());
    write!(f, "{:.1} {}", bytes as f64 / (1u64 << (10 * unit)) as f64, units[unit - 1])
}
