//! Every schedule that can be chosen, walked as the kernel walks it; and the plain search.

use super::schedule::{CLUSTER_M, GROUP, Projection, Schedule};
use super::search::{all_forward, all_input_grad, forward, input_grad};
use crate::plan::cost::CostModel;
use crate::plan::sizes::Sizes;
use crate::plan::testing::{bench_problems, pick, rng, shapes, size};
use crate::problem::MAX_PROJECTIONS;

const COST: &CostModel = &CostModel::H100_SXM;

/// The tile of a cluster: its row and column, the slice it computes, and whether it waits for
/// others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    row: usize,
    col: usize,
    slice: Option<usize>,
    waits: bool,
    /// Steps along k, from the first on. Behind the last of all comes step 0.
    first: usize,
    steps: usize,
    /// It adds a partial tile of the cluster before; it writes one for the next cluster.
    reduces_partial: bool,
    writes_partial: bool,
}

/// The kernel's `Tiles`, of every cluster.
fn tiles(schedule: &Schedule, sizes: &Sizes) -> Vec<Vec<Tile>> {
    let (rows, cols) = (sizes.m.div_ceil(CLUSTER_M), sizes.tile_cols(schedule.tile_n));
    let (slice_cols, slice_clusters) = match schedule.projection {
        Projection::Separate | Projection::Dedicated { .. } => (0, 0),
        Projection::Fused { slice_cols, slice_clusters, .. } => (slice_cols, slice_clusters),
    };
    let slices = schedule.slices(sizes.rank());
    let all_slices = rows * slice_cols;
    let (first, steps) = (0, sizes.steps());
    let made = Tile {
        row: 0,
        col: 0,
        slice: None,
        waits: false,
        first,
        steps,
        reduces_partial: false,
        writes_partial: false,
    };
    let slice_tile = |i: usize| {
        let (row, col) = (i / slice_cols, i % slice_cols);
        let slice = Some(if slices == 1 { 0 } else { col });
        Tile { row, col, slice, waits: slices > 1, ..made }
    };
    let tile = |rest: usize| {
        let rest_cols = cols - slice_cols;
        let group0 = rest / (GROUP * rest_cols) * GROUP;
        let group_rows = GROUP.min(rows - group0);
        let in_group = rest - group0 * rest_cols;
        let (row, col) = (group0 + in_group % group_rows, slice_cols + in_group / group_rows);
        Tile { row, col, waits: slice_cols > 0, ..made }
    };
    let (clusters, full_tiles) = (schedule.clusters, schedule.full_tiles);
    let shared = (rows * cols - full_tiles) * steps;
    let (span, longer) = (shared / clusters, shared % clusters);
    let of_cluster = |cluster: usize| {
        let of_wave = |(wave, i): (usize, usize)| {
            let before = all_slices.min(wave * slice_clusters + cluster.min(slice_clusters));
            match cluster < slice_clusters && before < all_slices {
                true => slice_tile(before),
                false => tile(i - before),
            }
        };
        let mut tiles: Vec<Tile> =
            (cluster..full_tiles).step_by(clusters).enumerate().map(of_wave).collect();
        let index = clusters - 1 - cluster;
        let begin = index * span + index.min(longer);
        let end = begin + span + usize::from(index < longer);
        let mut at = begin;
        while at < end {
            let before = at % steps;
            let mut tile = tile(full_tiles - all_slices + at / steps);
            tile.writes_partial = before > 0;
            tile.reduces_partial = at + steps - before > end;
            if tile.writes_partial {
                // The cluster that adds the partial tile multiplies with S.
                (tile.steps, tile.waits) = (steps - before, false);
            } else if tile.reduces_partial {
                (tile.steps, tile.first) = (end - at, steps - (end - at));
            } else {
                tile.first = (at - begin) % steps;
            }
            at += tile.steps;
            tiles.push(tile);
        }
        tiles
    };
    (0..clusters).map(of_cluster).collect()
}

/// Shapes small enough to walk all their tiles: of one layer, and of up to four, for the forward
/// and the input gradient.
fn cases() -> impl Iterator<Item = (Sizes, usize)> {
    let small = shapes().filter(|&[t, _, d, _]| t.div_ceil(256) * d.div_ceil(128) < 4000);
    let sizes = small.step_by(7).enumerate().flat_map(|(i, [m, k, n, r])| {
        let layers = i % MAX_PROJECTIONS + 1;
        let several = |size: usize| {
            let of = |layer| if layer < layers { size / (layer + 1) + 1 } else { 0 };
            [0, 1, 2, 3].map(of)
        };
        let one = Sizes::of_layer([m, n, k, r]);
        let forward = Sizes { n: several(n), r: several(r), ..one };
        [one, forward, Sizes { k: several(k), r: several(r), ..one }]
    });
    sizes.flat_map(|sizes| [1, 2, 3, 10, 66].map(|clusters| (sizes, clusters)))
}

/// The first of the fastest.
fn fastest(candidates: Vec<(f64, Schedule)>) -> Schedule {
    candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("a candidate").1
}

/// All candidates of both.
fn schedules(sizes: &Sizes, clusters: usize) -> impl Iterator<Item = Schedule> {
    let mut all = all_forward(sizes, clusters, COST);
    all.extend(all_input_grad(sizes, clusters, COST));
    all.into_iter().map(|(_, schedule)| schedule)
}

/// Branch and bound finds what the plain search finds.
#[test]
fn the_first_of_the_fastest_is_found() {
    let check_on = |cost: &CostModel, t, k, layers: &[(usize, usize)], clusters| {
        let of_h = Sizes::of_forward(t, k, layers.iter().copied());
        let of_dx = Sizes::of_input_grad(t, k, layers.iter().copied());
        let context = || format!("T={t} k={k} {layers:?} on {clusters}");
        let wanted = fastest(all_forward(&of_h, clusters, cost));
        assert_eq!(forward(&of_h, clusters, cost), wanted, "{}", context());
        let wanted = fastest(all_input_grad(&of_dx, clusters, cost));
        assert_eq!(input_grad(&of_dx, clusters, cost), wanted, "{}", context());
    };
    let check = |t, k, layers: &[(usize, usize)], clusters| {
        check_on(COST, t, k, layers, clusters);
        check_on(&CostModel::H200, t, k, layers, clusters);
    };
    let all_pairs = [1, 2, 3, 5, 8, 10, 16, 33, 57, 60, 65, 66, 72];
    for problem in bench_problems() {
        let check = |clusters| check(problem.t(), problem.k(), problem.projections(), clusters);
        all_pairs.into_iter().for_each(check);
    }
    let rng = &mut rng(3);
    for i in 0..12_000 {
        let (most_t, most_r) = (pick(rng, &[1 << 21, 32_768, 4096]), pick(rng, &[256, 64, 16]));
        let mut size = |most| size(rng, most).next_multiple_of(8);
        let (t, k) = (size(most_t), size(30_000));
        let layers: Vec<_> = (0..=i % 4).map(|_| (size(30_000), size(most_r))).collect();
        let clusters = if i % 2 == 0 { 66 } else { pick(rng, &all_pairs) };
        check(t, k, &layers, clusters);
    }
}

#[test]
fn every_step_once_and_every_slice_published_once() {
    for (sizes, clusters) in cases() {
        for schedule in schedules(&sizes, clusters) {
            let context = format!("{sizes:?} on {clusters}: {schedule:?}");
            let mut tiles = tiles(&schedule, &sizes).concat();
            let within = matches!(schedule.projection, Projection::Fused { .. });
            let rows = sizes.m.div_ceil(CLUSTER_M);
            let wanted = if within { schedule.slices(sizes.rank()) } else { 0 };
            let told = tiles.iter().filter(|tile| tile.col < wanted);
            assert!(told.clone().all(|tile| tile.slice == Some(tile.col)), "{context}");
            assert_eq!(told.count(), rows * wanted, "{context}");
            let (cols, steps) = (sizes.tile_cols(schedule.tile_n), sizes.steps());
            assert_eq!(schedule.stream_k, schedule.full_tiles < rows * cols, "{context}");
            // One cluster computes a tile, or two: the first steps and the last. A tile with a
            // slice has one.
            tiles.sort_unstable_by_key(|tile| (tile.row, tile.col, tile.first));
            let mut tiles = tiles.into_iter();
            for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                let tile = tiles.next().expect(&context);
                assert_eq!((tile.row, tile.col), (row, col), "{context}");
                let is_whole = tile.steps == steps && !tile.writes_partial && !tile.reduces_partial;
                if !is_whole {
                    let rest = tiles.next().expect(&context);
                    assert_eq!((rest.row, rest.col), (row, col), "{context}");
                    assert!(tile.writes_partial && rest.reduces_partial, "{context}");
                    assert_eq!((tile.first, rest.first), (0, tile.steps), "{context}");
                    assert!(tile.steps > 0 && rest.steps > 0, "{context}");
                    assert_eq!(tile.steps + rest.steps, steps, "{context}");
                }
                assert!(is_whole || tile.slice.is_none(), "{context}");
            }
            assert_eq!(tiles.next(), None, "{context}");
            assert!(schedule.clusters >= 1, "{context}");
            assert!(schedule.blocks() <= 2 * clusters, "{context}");
            assert_eq!(schedule.flags(sizes.m) > 0, schedule.waits());
            assert!(within <= schedule.waits());
        }
    }
}

/// In the kernel, only the last tile of a cluster adds a partial tile, the only one that the
/// cluster before writes. So clusters wait for those before them in the grid, or the launch is
/// cooperative.
#[test]
fn the_next_cluster_adds_every_partial_tile() {
    let mut checked = 0;
    for (sizes, clusters) in cases() {
        for schedule in schedules(&sizes, clusters) {
            let context = format!("{sizes:?} on {clusters}: {schedule:?}");
            let mut wanted = None;
            for of_cluster in tiles(&schedule, &sizes).into_iter().rev() {
                let waits = of_cluster.iter().any(|tile| tile.waits);
                assert!(!waits || schedule.is_cooperative(), "{context}");
                let mut left = of_cluster.iter().filter(|tile| tile.writes_partial);
                assert_eq!(left.next().map(|tile| (tile.row, tile.col)), wanted, "{context}");
                assert_eq!(left.next(), None, "{context}");
                let (last, others) = of_cluster.split_last().expect("a tile for every cluster");
                assert!(others.iter().all(|tile| !tile.reduces_partial), "{context}");
                assert!(!(last.writes_partial && last.reduces_partial), "{context}");
                wanted = last.reduces_partial.then_some((last.row, last.col));
                checked += usize::from(last.reduces_partial);
            }
            assert_eq!(wanted, None, "{context}");
        }
    }
    assert!(checked > 1000, "{checked} tiles are stream-K");
}

/// Winners measured on an H100.
#[test]
fn the_model_finds_the_fastest() {
    let chosen = |m, n, k, r| {
        let Schedule { tile_n, projection, .. } = forward(&Sizes::of_layer([m, n, k, r]), 66, COST);
        (tile_n, projection)
    };
    let within = |slice, slice_cols, slice_clusters| Projection::Fused {
        slice,
        slice_cols,
        slice_clusters,
        alone: false,
    };
    assert_eq!(chosen(8192, 4096, 4096, 16), (256, within(16, 2, 66)));
    assert_eq!(chosen(16384, 4096, 4096, 16), (256, within(16, 1, 66)));
    assert_eq!(chosen(16384, 4096, 4096, 64), (256, within(64, 1, 66)));
    assert_eq!(chosen(8192, 4096, 4096, 64), (256, within(16, 4, 64)));
    let beside = |proj_clusters| Projection::Dedicated { proj_clusters };
    assert_eq!(chosen(2048, 4096, 4096, 16), (256, beside(2)));
    assert_eq!(chosen(1024, 4096, 4096, 64), (256, beside(2)));
    assert_eq!(chosen(512, 4096, 4096, 16), (128, beside(2)));
    assert_eq!(chosen(1024, 14336, 4096, 64), (224, beside(2)));
    assert_eq!(chosen(512, 14336, 4096, 16), (224, beside(1)));
    assert_eq!(chosen(512, 8192, 8192, 16), (256, beside(1)));
    assert_eq!(chosen(2048, 4096, 4096, 64), (256, within(16, 4, 64)));
    assert_eq!(chosen(8192, 1024, 4096, 16), (256, within(16, 2, 66)));
    assert_eq!(chosen(8192, 1024, 4096, 64), (256, within(16, 4, 66)));
    assert_eq!(chosen(8191, 2112, 7168, 8), (176, within(16, 2, 66)));
    // T, k, d and r; the columns of a slice, and the clusters of grad CTAs.
    let chosen = |t, k, d, r| {
        let schedule = input_grad(&Sizes::of_layer([t, k, d, r]), 66, COST);
        (schedule.slice(), schedule.grad_clusters)
    };
    assert_eq!(chosen(8192, 4096, 4096, 16), (16, 2));
    assert_eq!(chosen(8192, 4096, 4096, 64), (64, 3));
    assert_eq!(chosen(2048, 4096, 4096, 16), (16, 2));
    assert_eq!(chosen(2048, 4096, 4096, 64), (16, 3));
    assert_eq!(chosen(8192, 4096, 1024, 64), (64, 8));
    assert_eq!(chosen(8192, 4096, 14336, 16), (16, 2));
    assert_eq!(chosen(8192, 8192, 8192, 64), (16, 2));
    let forward = |sizes| forward(&Sizes::of_layer(sizes), 66, COST);
    let input_grad = |sizes| input_grad(&Sizes::of_layer(sizes), 66, COST);
    assert!(!forward([2048, 4096, 4096, 16]).stream_k);
    assert!(forward([8192, 4096, 4096, 16]).stream_k);
    assert!(forward([8192, 14336, 4096, 64]).stream_k);
    assert!(input_grad([8192, 8192, 8192, 16]).stream_k);
    // tests/gpu/exact.rs counts on these.
    assert!([16, 72].iter().all(|&r| forward([4095, 2176, 4096, r]).stream_k));
    assert!(input_grad([4095, 4096, 2176, 16]).stream_k);
    assert_eq!(input_grad([8191, 2112, 7168, 8]).tile_n, 176);
    assert_eq!(input_grad([8192, 4096, 4096, 16]).tile_n, 256);
}

/// All clusters run at once, each through its tiles in order. A tile publishes its slice before it
/// waits for the others of its row.
#[test]
fn nobody_waits_forever() {
    let is_within = |schedule: &Schedule| matches!(schedule.projection, Projection::Fused { .. });
    let mut checked = 0;
    for (sizes, clusters) in cases() {
        for schedule in schedules(&sizes, clusters).filter(is_within) {
            let (tiles, wanted) = (tiles(&schedule, &sizes), schedule.slices(sizes.rank()));
            let mut made = vec![0; sizes.m.div_ceil(CLUSTER_M)];
            // The tile of a cluster, and whether it has published its slice or its partial tile.
            let mut at = vec![0; tiles.len()];
            let mut told = vec![false; tiles.len()];
            let mut left = vec![false; tiles.len()];
            let mut moved = true;
            while moved {
                moved = false;
                for cluster in 0..tiles.len() {
                    let Some(tile) = tiles[cluster].get(at[cluster]) else { continue };
                    if tile.col < wanted && !told[cluster] {
                        told[cluster] = true;
                        made[tile.row] += 1;
                        moved = true;
                    }
                    left[cluster] |= tile.writes_partial;
                    let has_slices = !tile.waits || made[tile.row] == wanted;
                    if has_slices && (!tile.reduces_partial || left[cluster - 1]) {
                        at[cluster] += 1;
                        told[cluster] = false;
                        moved = true;
                    }
                }
            }
            let context = format!("{sizes:?} on {clusters}: {schedule:?}");
            assert!(at.iter().zip(&tiles).all(|(&at, tiles)| at == tiles.len()), "{context}");
            checked += 1;
        }
    }
    assert!(checked > 1000, "{checked} schedules fuse S");
}
