//! Small batches: one launch for each layer.

use super::decode;
use super::short;
use crate::manifest::sm90a::decode::INPUT_GRAD_HALF_TOKENS;
use crate::plan::cost::CostModel;
use crate::plan::path::Path;
use crate::problem::{MAX_PROJECTIONS, Problem};
use std::fmt;

/// A launch for one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alone {
    /// Of kernels/sm90a/decode.cu.
    Decode(decode::Schedule),
    /// Of kernels/sm90a/short.cu.
    Short(short::Schedule),
}

/// The tokens up to which only the bytes of W0 matter.
const DECODE_TOKENS: usize = 64;

impl Alone {
    /// For H (T×d) over k, with S (T×r) unless r is 0, on `clusters` clusters; `None` for large T.
    pub(crate) fn forward(
        [t, d, k, r]: [usize; 4],
        clusters: usize,
        cost: &CostModel,
    ) -> Option<Self> {
        let short = || short::Schedule::forward([t, d, r], clusters).map(Alone::Short);
        let decode = || Alone::Decode(decode::Schedule::forward([t, d, k, r], clusters, cost));
        match short().filter(|_| t > DECODE_TOKENS) {
            Some(short) => Some(short),
            None => (t <= decode::MOST_TOKENS).then(decode),
        }
    }

    /// For dX (T×k) over d, with dS (T×r), dA and dB; `None` for large T.
    pub(crate) fn input_grad(sizes: [usize; 4], clusters: usize, cost: &CostModel) -> Option<Self> {
        let [t, k, _, r] = sizes;
        let short = || short::Schedule::input_grad([t, k, r], clusters).map(Alone::Short);
        let decode = || decode::Schedule::input_grad(sizes, clusters, cost).map(Alone::Decode);
        // With more tokens, two CTAs of decode do not fit on an SM.
        match t <= INPUT_GRAD_HALF_TOKENS {
            true => decode(),
            false => short().or_else(decode),
        }
    }

    /// For dX (T×k) over d without an adapter; `None` for large T.
    pub(crate) fn base_input_grad(
        [t, k, d]: [usize; 3],
        clusters: usize,
        cost: &CostModel,
    ) -> Option<Self> {
        Alone::input_grad([t, k, d, 0], clusters, cost)
    }

    pub(crate) fn path(&self) -> Path {
        match self {
            Alone::Decode(_) => Path::HopperDecode,
            Alone::Short(_) => Path::HopperShort,
        }
    }

    pub(crate) fn flags(&self, t: usize) -> usize {
        match self {
            Alone::Decode(_) => decode::FLAGS,
            Alone::Short(schedule) => schedule.flags(t),
        }
    }
}

impl fmt::Display for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tile, clusters, projection) = match self {
            Alone::Decode(s) => ([s.tile_t, s.rows], s.clusters, s.proj.clusters),
            Alone::Short(s) => ([s.rows, s.tile_n], s.clusters, s.proj_clusters),
        };
        let [rows, cols] = tile;
        write!(f, "{rows}×{cols} tiles, {clusters} clusters")?;
        match projection {
            0 => Ok(()),
            n => write!(f, " + {n} for the projection"),
        }
    }
}

/// The launches of a forward pass; `None` if one of its layers is not a small batch.
pub(crate) fn forward(
    problem: &Problem,
    clusters: usize,
    cost: &CostModel,
) -> Option<[Option<Alone>; MAX_PROJECTIONS]> {
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    // Reading more tokens again for every layer takes longer than one launch for all layers.
    if t > decode::MOST_TOKENS && layers.len() > 1 {
        return None;
    }
    let mut launches = [None; MAX_PROJECTIONS];
    for (launch, &(d, r)) in launches.iter_mut().zip(layers) {
        *launch = Some(Alone::forward([t, d, k, r], clusters, cost)?);
    }
    Some(launches)
}

/// The launch of a backward pass; `None` for several layers, which are one launch for all, and for
/// large T.
pub(crate) fn backward(problem: &Problem, clusters: usize, cost: &CostModel) -> Option<Alone> {
    let &[(d, r)] = problem.projections() else { return None };
    Alone::input_grad([problem.t(), problem.k(), d, r], clusters, cost)
}

/// All launches for a forward pass of one layer.
pub(crate) fn all_forward(problem: &Problem, clusters: usize, cost: &CostModel) -> Vec<Alone> {
    let &[(d, r)] = problem.projections() else { return Vec::new() };
    let (t, k) = (problem.t(), problem.k());
    let decode = || Alone::Decode(decode::Schedule::forward([t, d, k, r], clusters, cost));
    let decode = (t <= decode::MOST_TOKENS).then(decode);
    let short = short::Schedule::all_forward([t, d, r], clusters).map(Alone::Short);
    decode.into_iter().chain(short).collect()
}

/// All launches for a backward pass of one layer.
pub(crate) fn all_backward(problem: &Problem, clusters: usize, cost: &CostModel) -> Vec<Alone> {
    let &[(d, r)] = problem.projections() else { return Vec::new() };
    let (t, k) = (problem.t(), problem.k());
    let decode = decode::Schedule::input_grad([t, k, d, r], clusters, cost).map(Alone::Decode);
    let short = short::Schedule::all_input_grad([t, k, r], clusters).map(Alone::Short);
    decode.into_iter().chain(short).collect()
}
