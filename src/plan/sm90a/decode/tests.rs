//! Every schedule, walked as the kernel walks it.

use super::schedule::*;
use crate::manifest::sm90a::decode::{
    HALF_PROJ_TOKENS, INPUT_GRAD_TILES_T, MAX_SHARED_BYTES, MAX_STAGES, MOST_ROWS, TILES_T,
    TURNS_ROWS,
};
use crate::manifest::sm90a::ptx::SHARED_ALIGNMENT;
use crate::plan::cost::CostModel;
use crate::plan::sm90a::grads;
use crate::plan::testing::shapes;
use std::collections::HashSet;

const COST: &CostModel = &CostModel::H100_SXM;

/// In the letters of the forward.
struct Case {
    reads: Reads,
    sizes: [usize; 4],
    clusters: usize,
    schedule: Schedule,
    context: String,
}

fn cases() -> impl Iterator<Item = Case> {
    let sizes = shapes().flat_map(|[t, k, d, r]| {
        let t = (t - 1) % MOST_TOKENS + 1;
        let with = move |r| [1, 2, 8, 66].map(|clusters| ([t, d, k, r], clusters));
        with(r).into_iter().chain(with(0))
    });
    sizes.flat_map(|(sizes, clusters)| {
        let forward = (Reads::Rows, Some(Schedule::forward(sizes, clusters, COST)));
        let input_grad = Schedule::input_grad(sizes, clusters, COST);
        let both = [forward, (Reads::Columns, input_grad)].into_iter();
        both.filter_map(move |(reads, schedule)| {
            let (schedule, [t, d, k, r]) = (schedule?, sizes);
            let context = format!("{reads:?}, T={t} d={d} k={k} r={r} on {clusters}: {schedule:?}");
            Some(Case { reads, sizes, clusters, schedule, context })
        })
    })
}

/// The rows of the kernel's `Work`, of every CTA that computes H.
#[test]
fn every_row_of_w0_is_in_one_share() {
    for Case { reads, sizes: [_, d, ..], schedule, context, .. } in cases() {
        let Schedule { split, rows, rounds, clusters: of_h, .. } = schedule;
        let stream_k = if split { of_h } else { 2 * of_h };
        let all = (0..rounds).flat_map(|round| (0..stream_k).map(move |i| round * stream_k + i));
        let mut starts: Vec<usize> = all.map(|share| share * rows).collect();
        starts.dedup();
        assert_eq!(starts.len(), stream_k * rounds, "{context}");
        assert!(starts.iter().enumerate().all(|(i, &start)| start == i * rows), "{context}");
        assert!(starts.len() * rows >= d, "rows left over: {context}");
        // No cluster without a row.
        assert!((of_h - 1) * rows * (stream_k / of_h) < d, "{context}");
        assert!(rows % reads.unit() == 0 && rows <= MOST_ROWS, "{context}");
        // The cluster reduce has a buffer for one round, and without it the first warpgroup of a
        // CTA has 64 rows.
        assert!(if split { rounds == 1 } else { rows > TURNS_ROWS }, "{context}");
    }
}

/// The kernel's `Work`, of every cluster that computes S.
#[test]
fn every_element_of_s_is_computed_once() {
    for Case { reads, sizes: [t, _, _, r], schedule, context, .. } in cases() {
        let Schedule { tile_t, proj, .. } = schedule;
        let starts: HashSet<[usize; 2]> = (0..proj.clusters)
            .map(|cluster| [cluster / proj.ranks * proj.tokens, cluster % proj.ranks * proj.rows])
            .collect();
        assert_eq!(starts.len(), proj.clusters, "{context}");
        assert!(starts.iter().all(|&[token, col]| token < t && col < r), "{context}");
        let stream_k = t.div_ceil(proj.tokens) * r.div_ceil(proj.rows);
        assert_eq!(proj.clusters, stream_k, "{context}");
        assert!(proj.tokens <= proj.tile_t && proj.rows <= TURNS_ROWS, "{context}");
        assert!(proj.rows > 0 && proj.rows % 8 == 0, "{context}");
        // Tiles the kernel is instantiated for.
        let sliced = proj.tile_t == HALF_PROJ_TOKENS && tile_t == 64;
        assert!(proj.tile_t == tile_t || sliced, "{context}");
        if reads == Reads::Rows {
            continue;
        }
        // Without H, the order of the sums of an element stays.
        let alone = schedule.without_out([t, r]);
        assert_eq!((alone.clusters, alone.proj.clusters > 0), (0, r > 0), "{context}");
        assert_eq!((alone.tile_t, alone.proj.rows), (tile_t, proj.rows), "{context}");
        assert_eq!(alone.proj.tokens, proj.tokens, "{context}");
    }
}

#[test]
fn stages_fit_and_all_clusters_run_at_once() {
    for Case { reads, sizes: [t, _, k, r], clusters, schedule, context } in cases() {
        let Schedule { tile_t, shared_bytes, split, rows, proj, .. } = schedule;
        let tiles = if reads == Reads::Rows { &TILES_T[..] } else { &INPUT_GRAD_TILES_T };
        assert!(t <= tile_t && tiles.contains(&tile_t), "{context}");
        let of_h = Ring { tile_t, rows, split, projects: false };
        let proj_rows = proj.rows.next_multiple_of(reads.unit());
        let of_s = Ring { tile_t: proj.tile_t, rows: proj_rows, split: true, projects: true };
        for (ring, stages) in [(of_h, schedule.stages), (of_s, proj.stages)] {
            assert!((3..=MAX_STAGES).contains(&stages), "{context}");
            assert!(ring.rows > TURNS_ROWS || stages % 2 == 0, "{context}");
            let taken = BARRIER_BYTES + stages * ring.stage_bytes() + ring.epilogue_bytes();
            let end = match reads {
                Reads::Rows => shared_bytes,
                // The kernel counts from its aligned start.
                Reads::Columns => SHARED_ALIGNMENT + schedule.grads_at([t, r]),
            };
            assert!(taken <= end, "{context}");
        }
        assert!(shared_bytes <= MAX_SHARED_BYTES, "{context}");
        if reads == Reads::Columns {
            let [at, bytes] = [schedule.grads_at([t, r]), grads::bytes_beside(t, r)];
            assert!(at % 1024 == 0 && 1023 + at + bytes <= shared_bytes, "{context}");
        }
        // A step triggers PDL.
        let steps = schedule.rounds * k.div_ceil(64).div_ceil(if split { 2 } else { 1 });
        assert!(schedule.pdl_trigger_step < steps, "{context}");
        // X, or both halves of it, fit in a stage.
        let x_rows = schedule.x_rows(t);
        let boxes = t.div_ceil(x_rows);
        assert!(boxes == 1 || !schedule.split && boxes == 2 && x_rows % 8 == 0, "{context}");
        assert!(boxes * x_rows <= schedule.tile_t, "{context}");
        let beside = match shared_bytes {
            HALF_SHARED_BYTES => proj.clusters.min(HALF_PROJ_CLUSTERS),
            _ => proj.clusters,
        };
        if clusters > beside && reads == Reads::Rows {
            assert!(schedule.clusters + beside <= clusters, "{context}");
        }
        if reads == Reads::Columns
            && shared_bytes == MAX_SHARED_BYTES
            && clusters > proj.clusters + 1
        {
            assert!(schedule.clusters + proj.clusters < clusters, "two SMs stay idle: {context}");
        }
    }
}

/// The order of sums: CTAs of a cluster have halves of k, and warpgroups even and odd steps.
#[test]
fn the_order_of_sums_does_not_depend_on_t() {
    for Case { sizes: [_, d, k, r], clusters, .. } in cases().filter(|c| c.reads == Reads::Rows) {
        let orders = (1..=64).map(|t| {
            let Schedule { split, rows, .. } = Schedule::forward([t, d, k, r], clusters, COST);
            (split, rows <= TURNS_ROWS)
        });
        let orders: HashSet<_> = orders.collect();
        assert_eq!(orders.len(), 1, "d={d} k={k} r={r} on {clusters}: {orders:?}");
    }
}

/// Winners measured on an H100.
#[test]
fn layers_of_known_models_have_few_rows_per_cta() {
    let of = |d| {
        let Schedule { split, rows, rounds, clusters, .. } =
            Schedule::forward([16, d, 4096, 16], 66, COST);
        (split, rows, rounds, clusters)
    };
    assert_eq!(of(4096), (true, 64, 1, 64));
    assert_eq!(of(8192), (true, 128, 1, 64));
    assert_eq!(of(14336), (false, 112, 1, 64));
    assert_eq!(of(28672), (false, 112, 2, 64));
    assert_eq!(of(1024), (true, 32, 1, 32));
}
