//! The fastest schedule of a product.
//!
//! Branch and bound over a list of candidates: a lower bound rules out most tiles and numbers of
//! grad CTAs before their candidates are built. Of equally fast candidates the first in the list
//! wins.

use super::model::{Candidate, Model};
use super::schedule::Schedule;
use crate::manifest::sm90a::linear::{DROPOUT_TILES_N, FORWARD_TILES_N, TILES_N};
use crate::plan::cost::CostModel;
use crate::plan::sizes::Sizes;
use crate::plan::sm90a::grads::{self, Items};

/// Clusters of grad CTAs, at most: with dropout, dA takes six times as long.
const MAX_GRAD_CLUSTERS: usize = 12;
const MAX_DROPOUT_GRAD_CLUSTERS: usize = 24;

/// Projection clusters, at most.
const MAX_PROJ_CLUSTERS: usize = 4;

/// The first of the fastest candidates so far.
struct Best {
    us: f64,
    schedule: Schedule,
}

impl Best {
    fn new(first: Candidate) -> Self {
        Best { us: first.us, schedule: first.schedule }
    }

    fn take(&mut self, us: f64, schedule: Schedule) {
        if us < self.us {
            *self = Best { us, schedule };
        }
    }

    /// Whether candidates of `least` µs or more are not worth building.
    fn rules_out(&self, least: f64) -> bool {
        least >= self.us
    }
}

/// For out (m×n) over k without an adapter, and without flags or scratch.
pub(crate) fn base([m, n, k]: [usize; 3], clusters: usize, cost: &CostModel) -> Schedule {
    let sizes = Sizes::of_layer([m, n, k, 0]);
    let models = TILES_N.map(|tile_n| Model::new(&sizes, tile_n, clusters, cost));
    let mut best = Best::new(models[0].product());
    for Candidate { us, schedule, .. } in models.map(|model| model.product()) {
        best.take(us, schedule);
    }
    best.schedule
}

/// For H (m×n) over k and its S (m×r).
pub(crate) fn forward(sizes: &Sizes, clusters: usize, cost: &CostModel) -> Schedule {
    let models = FORWARD_TILES_N.map(|tile_n| Model::new(sizes, tile_n, clusters, cost));
    let mut best = best_without_dedicated(&models, sizes);
    for proj_clusters in proj_clusters(clusters) {
        for model in &models {
            let model = model.on(clusters - proj_clusters);
            if best.rules_out(model.least_dedicated()) {
                continue;
            }
            let Candidate { us, schedule, .. } = model.dedicated(proj_clusters);
            best.take(us, schedule);
        }
    }
    best.schedule
}

/// The same for X with dropout, of which a launch before makes S. Beside wgmmas, which fill the
/// ports of the register file, random numbers would take three to seven times as long.
pub(crate) fn forward_dropout(sizes: &Sizes, clusters: usize, cost: &CostModel) -> Schedule {
    let models = TILES_N.map(|tile_n| Model::new(sizes, tile_n, clusters, cost));
    let mut best = Best::new(models[0].product_after_projection());
    for model in &models {
        model.separate().for_each(|c| best.take(c.us, c.schedule));
    }
    best.schedule
}

fn best_without_dedicated(models: &[Model], sizes: &Sizes) -> Best {
    let slices = forward_slices(sizes.rank());
    let mut best = Best::new(models[0].product_after_projection());
    for model in models.iter().filter(|model| TILES_N.contains(&model.tile_n)) {
        if best.rules_out(least(model, slices)) {
            continue;
        }
        separate_or_fused(model, slices).for_each(|c| best.take(c.us, c.schedule));
    }
    best
}

/// For dX (m×n) over k and its dS (m×r), with dA and dB.
pub(crate) fn input_grad(sizes: &Sizes, clusters: usize, cost: &CostModel) -> Schedule {
    input_grad_in(&TILES_N, sizes, clusters, cost)
}

/// The same where X has dropout.
pub(crate) fn input_grad_dropout(sizes: &Sizes, clusters: usize, cost: &CostModel) -> Schedule {
    input_grad_in(&DROPOUT_TILES_N, sizes, clusters, cost)
}

fn input_grad_in(tiles_n: &[usize], sizes: &Sizes, clusters: usize, cost: &CostModel) -> Schedule {
    let model = |&tile_n: &usize| Model::new(sizes, tile_n, clusters, cost);
    let models: Vec<_> = tiles_n.iter().map(model).collect();
    let slices = input_grad_slices(sizes.rank());
    // dA and dB in a launch of their own.
    let grads_us = grads::alone_us(sizes, 2 * clusters, cost);
    let first = models[0].product_after_projection();
    let mut best = Best::new(Candidate { us: first.us + grads_us, ..first });
    for model in &models {
        if best.rules_out(least(model, slices) + grads_us) {
            continue;
        }
        separate_or_fused(model, slices).for_each(|c| best.take(c.us + grads_us, c.schedule));
    }
    // By grad CTAs, which leave fewer clusters to dX.
    let items = Items::new(sizes, cost);
    for grad_clusters in grad_clusters(clusters, sizes.dropout) {
        let grads = items.on(grad_clusters);
        for model in &models {
            let model = model.on(clusters - grad_clusters);
            let [least, s_us] = match slices {
                [] => [model.least_separate(), model.s_us(0)],
                _ => model.least_fused(slices),
            };
            if best.rules_out(beside_us(&model, least, grads.us(s_us))) {
                continue;
            }
            separate_xor_fused(&model, slices).for_each(|Candidate { us, s_us, schedule }| {
                let us = beside_us(&model, us, grads.us(s_us));
                best.take(us, Schedule { grad_clusters, ..schedule });
            });
        }
    }
    best.schedule
}

/// All candidates of [`forward`] with their µs, in the order of the list.
pub(crate) fn all_forward(
    sizes: &Sizes,
    clusters: usize,
    cost: &CostModel,
) -> Vec<(f64, Schedule)> {
    let model = |tile_n, clusters| Model::new(sizes, tile_n, clusters, cost);
    let mut all = Vec::new();
    for tile_n in TILES_N {
        let model = model(tile_n, clusters);
        let candidates = separate_or_fused(&model, forward_slices(sizes.rank()));
        all.extend(candidates.map(|c| (c.us, c.schedule)));
    }
    for proj_clusters in proj_clusters(clusters) {
        all.extend(FORWARD_TILES_N.map(|tile_n| {
            let c = model(tile_n, clusters - proj_clusters).dedicated(proj_clusters);
            (c.us, c.schedule)
        }));
    }
    all
}

/// All candidates of [`input_grad`] with their µs, in the order of the list.
pub(crate) fn all_input_grad(
    sizes: &Sizes,
    clusters: usize,
    cost: &CostModel,
) -> Vec<(f64, Schedule)> {
    let slices = input_grad_slices(sizes.rank());
    let mut all = Vec::new();
    for grad_clusters in [0].into_iter().chain(grad_clusters(clusters, sizes.dropout)) {
        for tile_n in TILES_N {
            let model = Model::new(sizes, tile_n, clusters - grad_clusters, cost);
            for c in separate_or_fused(&model, slices) {
                let us = match grad_clusters {
                    0 => c.us + grads::alone_us(sizes, 2 * clusters, cost),
                    // Kernels without slices have grad CTAs for the ranks that allow none.
                    _ if (c.schedule.slice() == 0) != slices.is_empty() => continue,
                    _ => {
                        let grads = Items::new(sizes, cost).on(grad_clusters);
                        beside_us(&model, c.us, grads.us(c.s_us))
                    }
                };
                all.push((us, Schedule { grad_clusters, ..c.schedule }));
            }
        }
    }
    all
}

/// µs of dX beside grad CTAs, given the µs of either alone. Never shorter if either is longer.
fn beside_us(model: &Model, us: f64, grads_us: f64) -> f64 {
    let cost = model.cost;
    let us = us * (1.0 + (256 - model.tile_n) as f64 * cost.narrow_beside_grads);
    f64::max(us, grads_us) + cost.shorter_beside_longer * f64::min(us, grads_us)
}

/// A lower bound of [`separate_or_fused`].
fn least(model: &Model, slices: &[usize]) -> f64 {
    let [fused, _] = model.least_fused(slices);
    f64::min(model.least_separate(), fused)
}

/// A separate projection, or one fused in slices of any of these columns.
fn separate_or_fused<'a>(
    model: &'a Model,
    slices: &'static [usize],
) -> impl Iterator<Item = Candidate> + 'a {
    model.separate().chain(slices.iter().flat_map(|&slice| model.fused(slice)))
}

/// A fused projection, or a separate one if no slices are possible. Kernels with slices have grad
/// CTAs for the ranks that allow slices, and kernels without for all others.
fn separate_xor_fused<'a>(
    model: &'a Model,
    slices: &'static [usize],
) -> impl Iterator<Item = Candidate> + 'a {
    let separate = slices.is_empty().then(|| model.separate());
    let fused = slices.iter().flat_map(|&slice| model.fused(slice));
    separate.into_iter().flatten().chain(fused)
}

/// Slices of S that tiles of H may compute.
fn forward_slices(rank: usize) -> &'static [usize] {
    match rank {
        17..=64 => &[16, 64],
        _ => &[16],
    }
}

/// Slices of dS that tiles of dX may compute.
fn input_grad_slices(rank: usize) -> &'static [usize] {
    match rank {
        ..=16 => &[16],
        17..=64 => &[16, 64],
        _ => &[],
    }
}

/// Numbers of projection clusters.
fn proj_clusters(clusters: usize) -> impl Iterator<Item = usize> {
    1..=MAX_PROJ_CLUSTERS.min(clusters - 1)
}

/// Numbers of clusters of grad CTAs.
fn grad_clusters(clusters: usize, dropout: bool) -> impl Iterator<Item = usize> {
    let most = if dropout { MAX_DROPOUT_GRAD_CLUSTERS } else { MAX_GRAD_CLUSTERS };
    1..=most.min(clusters - 1)
}
