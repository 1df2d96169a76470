//! Large batches of kernels/sm90a/linear.cuh that compute-sanitizer runs on.

use super::gpu_shapes::{HOPPER, HOPPER_GROUPS};
use crate::manifest::sm90a::linear::TILES_N;
use crate::plan::cost::CostModel;
use crate::plan::sizes::Sizes;
use crate::plan::sm90a::linear::{CLUSTER_M, Projection, Schedule, forward, input_grad};
use crate::plan::sm90a::small::Alone;
use crate::plan::sm90a::{decode, grads, short};
use std::collections::HashSet;

/// The code a launch reaches: its tile and its slices, whether a cluster computes slices
/// repeatedly, a stream-K tail, a dedicated projection, and how dA and dB are computed.
fn reaches(schedule: &Schedule, sizes: &Sizes) -> Vec<String> {
    let r = sizes.rank();
    let slice = schedule.slice();
    let again = match schedule.projection {
        Projection::Separate | Projection::Dedicated { .. } => false,
        Projection::Fused { slice_cols, slice_clusters, .. } => {
            sizes.m.div_ceil(CLUSTER_M) * slice_cols > slice_clusters
        }
    };
    let several = if slice > 0 && schedule.slices(r) > 1 { " several" } else { "" };
    let kernel = format!("{} with {slice}{several}", schedule.tile_n);
    let again = again.then(|| format!("{slice}{several} again"));
    let shared = schedule.stream_k.then(|| format!("{slice} and shared"));
    let rank_tile = grads::rank_tile(r);
    let s = (schedule.proj_clusters() > 0).then(|| format!("S of {rank_tile} beside"));
    let grads = match schedule.grad_clusters {
        0 => format!("{rank_tile} after"),
        _ => format!("{rank_tile} beside {slice}"),
    };
    [Some(kernel), again, shared, s, Some(grads)].into_iter().flatten().collect()
}

/// The shapes that compute-sanitizer runs on reach every kernel and every role of its CTAs, of a
/// single layer and of several that share X.
#[test]
fn everything_is_sanitized() {
    for cost in [CostModel::H100_SXM, CostModel::H200] {
        everything_is_reached(&cost);
    }
}

fn everything_is_reached(cost: &CostModel) {
    let mut seen = [HashSet::new(), HashSet::new()];
    for &([t, d, k, r], sms) in HOPPER {
        let [of_h, of_dx] = [[t, d, k, r], [t, k, d, r]].map(Sizes::of_layer);
        // Small batches have other kernels.
        if Alone::forward([t, d, k, r], sms / 2, cost).is_none() {
            seen[0].extend(reaches(&forward(&of_h, sms / 2, cost), &of_h));
        }
        if short::Schedule::input_grad([t, k, r], sms / 2).is_none() {
            seen[1].extend(reaches(&input_grad(&of_dx, sms / 2, cost), &of_dx));
        }
    }
    assert_all_seen(&seen);

    let mut seen = [HashSet::new(), HashSet::new()];
    for &(t, k, layers, sms) in HOPPER_GROUPS {
        assert!(t > decode::MOST_TOKENS && layers.len() > 1);
        let layers = || layers.iter().copied();
        let of_h = Sizes::of_forward(t, k, layers());
        let of_dx = Sizes::of_input_grad(t, k, layers());
        seen[0].extend(reaches(&forward(&of_h, sms / 2, cost), &of_h));
        seen[1].extend(reaches(&input_grad(&of_dx, sms / 2, cost), &of_dx));
    }
    assert_all_seen(&seen);
}

/// Asserts that forwards and input gradients reach all code.
fn assert_all_seen(seen: &[HashSet<String>; 2]) {
    let kernels = |slices| TILES_N.map(|tile_n| format!("{tile_n} with {slices}"));
    let mut wanted = ["0", "16", "16 several", "64"].map(kernels).concat();
    let others = ["16 again", "16 several again", "64 again"];
    let others = others.into_iter().chain(["0 and shared", "16 and shared", "64 and shared"]);
    wanted.extend(others.map(String::from));
    let grads = ["16 after", "64 after", "128 after"];
    let grads = grads.into_iter().chain(["16 beside 16", "64 beside 16", "64 beside 64"]);
    let grads = grads.chain(["128 beside 0"]).map(String::from).collect::<Vec<_>>();
    let mut s = [16, 64, 128].map(|rank| format!("S of {rank} beside")).to_vec();
    s.push("224 with 0".into());
    let wanted = [[wanted.clone(), s].concat(), [wanted, grads].concat()];
    for (seen, wanted) in seen.iter().zip(wanted) {
        let missing: Vec<_> = wanted.iter().filter(|&what| !seen.contains(what)).collect();
        assert_eq!(missing, Vec::<&String>::new());
    }
}
