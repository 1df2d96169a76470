//! Every schedule that can be chosen, walked as the kernel walks it; and the plain search.

use super::model::Model;
use super::schedule::{Projection, Schedule, GROUP, PAIR_M};
use super::search::{beside_us, forward_slices, input_grad_slices, projectors, streamers};
use super::search::{forward, input_grad, separate_or_fused};
use crate::manifest::sm90a::linear::{FORWARD_TILES_N, TILES_N};
use crate::plan::hopper_grads;
use crate::plan::sizes::Sizes;
use crate::plan::testing::{bench_problems, shapes, Rng};
use crate::problem::MAX_PROJECTIONS;

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
    /// It adds a partial tile of the next cluster; it writes one for the cluster before.
    finishes: bool,
    leaves: bool,
}

/// The kernel's `Tiles`, of every cluster.
fn tiles(schedule: &Schedule, sizes: &Sizes) -> Vec<Vec<Tile>> {
    let (rows, cols) = (sizes.m.div_ceil(PAIR_M), sizes.tile_cols(schedule.tile_n));
    let (slice_cols, makers) = match schedule.projection {
        Projection::Before | Projection::Beside { .. } => (0, 0),
        Projection::Within { slice_cols, makers, .. } => (slice_cols, makers),
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
        finishes: false,
        leaves: false,
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
    let (pairs, whole) = (schedule.pairs, schedule.whole);
    let shared = (rows * cols - whole) * steps;
    let (span, longer) = (shared / pairs, shared % pairs);
    let of_pair = |pair: usize| {
        let of_wave = |(wave, i): (usize, usize)| {
            let before = all_slices.min(wave * makers + pair.min(makers));
            match pair < makers && before < all_slices {
                true => slice_tile(before),
                false => tile(i - before),
            }
        };
        let mut tiles: Vec<Tile> = (pair..whole).step_by(pairs).enumerate().map(of_wave).collect();
        let begin = pair * span + pair.min(longer);
        let end = begin + span + usize::from(pair < longer);
        let mut at = begin;
        while at < end {
            let before = at % steps;
            let mut tile = tile(whole - all_slices + at / steps);
            tile.leaves = before > 0;
            tile.finishes = at + steps - before > end;
            if tile.leaves {
                // The cluster that adds the partial tile multiplies with S.
                (tile.steps, tile.waits) = (steps - before, false);
            } else if tile.finishes {
                (tile.steps, tile.first) = (end - at, steps - (end - at));
            } else {
                tile.first = (at - begin) % steps;
            }
            at += tile.steps;
            tiles.push(tile);
        }
        tiles
    };
    (0..pairs).map(of_pair).collect()
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
    sizes.flat_map(|sizes| [1, 2, 3, 10, 66].map(|pairs| (sizes, pairs)))
}

/// All candidates of the forward, in order.
fn forward_candidates(sizes: &Sizes, pairs: usize) -> Vec<(f64, Schedule)> {
    let model = |tile_n, pairs| Model::new(sizes, tile_n, pairs);
    let mut all = Vec::new();
    for tile_n in TILES_N {
        let candidates = separate_or_fused(&model(tile_n, pairs), forward_slices(sizes.rank()))
            .map(|c| (c.us, c.schedule))
            .collect::<Vec<_>>();
        all.extend(candidates);
    }
    for projectors in projectors(pairs) {
        all.extend(FORWARD_TILES_N.map(|tile_n| {
            let c = model(tile_n, pairs - projectors).beside(projectors);
            (c.us, c.schedule)
        }));
    }
    all
}

/// All candidates of the input gradient, in order.
fn input_grad_candidates(sizes: &Sizes, pairs: usize) -> Vec<(f64, Schedule)> {
    let slices = input_grad_slices(sizes.rank());
    let mut all = Vec::new();
    for streamers in [0].into_iter().chain(streamers(pairs)) {
        for tile_n in TILES_N {
            let model = Model::new(sizes, tile_n, pairs - streamers);
            for c in separate_or_fused(&model, slices) {
                let us = match streamers {
                    0 => c.us + hopper_grads::alone_us(sizes),
                    // Kernels without slices have grad CTAs for the ranks that allow none.
                    _ if (c.schedule.slice() == 0) != slices.is_empty() => continue,
                    _ => {
                        let grads = hopper_grads::Items::new(sizes).on(streamers);
                        beside_us(&model, c.us, grads.us(c.s_us))
                    }
                };
                all.push((us, Schedule { streamers, ..c.schedule }));
            }
        }
    }
    all
}

/// The first of the fastest.
fn fastest(candidates: Vec<(f64, Schedule)>) -> Schedule {
    candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("a candidate").1
}

/// All candidates of both.
fn schedules(sizes: &Sizes, pairs: usize) -> impl Iterator<Item = Schedule> {
    let mut all = forward_candidates(sizes, pairs);
    all.extend(input_grad_candidates(sizes, pairs));
    all.into_iter().map(|(_, schedule)| schedule)
}

/// Branch and bound finds what the plain search finds.
#[test]
fn the_first_of_the_fastest_is_found() {
    let check = |t, k, layers: &[(usize, usize)], pairs| {
        let of_h = Sizes::of_forward(t, k, layers.iter().copied());
        let of_dx = Sizes::of_input_grad(t, k, layers.iter().copied());
        let context = || format!("T={t} k={k} {layers:?} on {pairs}");
        let wanted = fastest(forward_candidates(&of_h, pairs));
        assert_eq!(forward(&of_h, pairs), wanted, "{}", context());
        let wanted = fastest(input_grad_candidates(&of_dx, pairs));
        assert_eq!(input_grad(&of_dx, pairs), wanted, "{}", context());
    };
    let all_pairs = [1, 2, 3, 5, 8, 10, 16, 33, 57, 60, 65, 66, 72];
    for problem in bench_problems() {
        let check = |pairs| check(problem.t(), problem.k(), problem.projections(), pairs);
        all_pairs.into_iter().for_each(check);
    }
    let mut rng = Rng(3);
    for i in 0..24_000 {
        let (most_t, most_r) = (rng.pick(&[1 << 21, 32_768, 4096]), rng.pick(&[256, 64, 16]));
        let mut size = |most| rng.size(most).next_multiple_of(8);
        let (t, k) = (size(most_t), size(30_000));
        let layers: Vec<_> = (0..=i % 4).map(|_| (size(30_000), size(most_r))).collect();
        let pairs = if i % 2 == 0 { 66 } else { rng.pick(&all_pairs) };
        check(t, k, &layers, pairs);
    }
}

#[test]
fn every_step_once_and_every_slice_published_once() {
    for (sizes, pairs) in cases() {
        for schedule in schedules(&sizes, pairs) {
            let context = format!("{sizes:?} on {pairs}: {schedule:?}");
            let mut tiles = tiles(&schedule, &sizes).concat();
            let within = matches!(schedule.projection, Projection::Within { .. });
            let rows = sizes.m.div_ceil(PAIR_M);
            let wanted = if within { schedule.slices(sizes.rank()) } else { 0 };
            let told = tiles.iter().filter(|tile| tile.col < wanted);
            assert!(told.clone().all(|tile| tile.slice == Some(tile.col)), "{context}");
            assert_eq!(told.count(), rows * wanted, "{context}");
            let (cols, steps) = (sizes.tile_cols(schedule.tile_n), sizes.steps());
            assert_eq!(schedule.shares, schedule.whole < rows * cols, "{context}");
            // One cluster computes a tile, or two: the first steps and the last. A tile with a
            // slice has one.
            tiles.sort_unstable_by_key(|tile| (tile.row, tile.col, tile.first));
            let mut tiles = tiles.into_iter();
            for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                let tile = tiles.next().expect(&context);
                assert_eq!((tile.row, tile.col), (row, col), "{context}");
                let is_whole = tile.steps == steps && !tile.leaves && !tile.finishes;
                if !is_whole {
                    let rest = tiles.next().expect(&context);
                    assert_eq!((rest.row, rest.col), (row, col), "{context}");
                    assert!(tile.leaves && rest.finishes, "{context}");
                    assert_eq!((tile.first, rest.first), (0, tile.steps), "{context}");
                    assert!(tile.steps > 0 && rest.steps > 0, "{context}");
                    assert_eq!(tile.steps + rest.steps, steps, "{context}");
                }
                assert!(is_whole || tile.slice.is_none(), "{context}");
            }
            assert_eq!(tiles.next(), None, "{context}");
            assert!(schedule.pairs >= 1, "{context}");
            assert!(schedule.blocks() <= 2 * pairs, "{context}");
            assert_eq!(schedule.flags(sizes.m) > 0, schedule.waits());
            assert!(within <= schedule.waits());
        }
    }
}

/// In the kernel, only the last tile of a cluster adds a partial tile, the only one that the next
/// cluster writes.
#[test]
fn the_cluster_before_adds_every_partial_tile() {
    let mut checked = 0;
    for (sizes, pairs) in cases() {
        for schedule in schedules(&sizes, pairs) {
            let context = format!("{sizes:?} on {pairs}: {schedule:?}");
            let mut wanted = None;
            for of_pair in tiles(&schedule, &sizes) {
                let mut left = of_pair.iter().filter(|tile| tile.leaves);
                assert_eq!(left.next().map(|tile| (tile.row, tile.col)), wanted, "{context}");
                assert_eq!(left.next(), None, "{context}");
                let (last, others) = of_pair.split_last().expect("a tile for every cluster");
                assert!(others.iter().all(|tile| !tile.finishes), "{context}");
                assert!(!(last.leaves && last.finishes), "{context}");
                wanted = last.finishes.then_some((last.row, last.col));
                checked += usize::from(last.finishes);
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
        let Schedule { tile_n, projection, .. } = forward(&Sizes::of_layer([m, n, k, r]), 66);
        (tile_n, projection)
    };
    let within = |slice, slice_cols, makers| Projection::Within { slice, slice_cols, makers };
    assert_eq!(chosen(8192, 4096, 4096, 16), (256, within(16, 2, 66)));
    assert_eq!(chosen(16384, 4096, 4096, 16), (256, within(16, 1, 66)));
    assert_eq!(chosen(16384, 4096, 4096, 64), (256, within(64, 1, 66)));
    assert_eq!(chosen(8192, 4096, 4096, 64), (256, within(16, 4, 64)));
    let beside = |projectors| Projection::Beside { projectors };
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
        let schedule = input_grad(&Sizes::of_layer([t, k, d, r]), 66);
        (schedule.slice(), schedule.streamers)
    };
    assert_eq!(chosen(8192, 4096, 4096, 16), (16, 2));
    assert_eq!(chosen(8192, 4096, 4096, 64), (64, 3));
    assert_eq!(chosen(2048, 4096, 4096, 16), (16, 2));
    assert_eq!(chosen(2048, 4096, 4096, 64), (16, 3));
    assert_eq!(chosen(8192, 4096, 1024, 64), (64, 8));
    assert_eq!(chosen(8192, 4096, 14336, 16), (16, 2));
    assert_eq!(chosen(8192, 8192, 8192, 64), (16, 2));
    let forward = |sizes| forward(&Sizes::of_layer(sizes), 66);
    let input_grad = |sizes| input_grad(&Sizes::of_layer(sizes), 66);
    assert!(!forward([2048, 4096, 4096, 16]).shares);
    assert!(forward([8192, 4096, 4096, 16]).shares);
    assert!(forward([8192, 14336, 4096, 64]).shares);
    assert!(input_grad([8192, 8192, 8192, 16]).shares);
    // tests/gpu_exact.rs counts on these.
    assert!([16, 72].iter().all(|&r| forward([4095, 2176, 4096, r]).shares));
    assert!(input_grad([4095, 4096, 2176, 16]).shares);
    assert_eq!(input_grad([8191, 2112, 7168, 8]).tile_n, 176);
    assert_eq!(input_grad([8192, 4096, 4096, 16]).tile_n, 256);
}

/// All clusters run at once, each through its tiles in order. A tile publishes its slice before it
/// waits for the others of its row.
#[test]
fn nobody_waits_forever() {
    let is_within = |schedule: &Schedule| matches!(schedule.projection, Projection::Within { .. });
    let mut checked = 0;
    for (sizes, pairs) in cases() {
        for schedule in schedules(&sizes, pairs).filter(is_within) {
            let (tiles, wanted) = (tiles(&schedule, &sizes), schedule.slices(sizes.rank()));
            let mut made = vec![0; sizes.m.div_ceil(PAIR_M)];
            // The tile of a cluster, and whether it has published its slice or its partial tile.
            let mut at = vec![0; tiles.len()];
            let mut told = vec![false; tiles.len()];
            let mut left = vec![false; tiles.len() + 1];
            let mut moved = true;
            while moved {
                moved = false;
                for pair in 0..tiles.len() {
                    let Some(tile) = tiles[pair].get(at[pair]) else { continue };
                    if tile.col < wanted && !told[pair] {
                        told[pair] = true;
                        made[tile.row] += 1;
                        moved = true;
                    }
                    left[pair] |= tile.leaves;
                    let has_slices = !tile.waits || made[tile.row] == wanted;
                    if has_slices && (!tile.finishes || left[pair + 1]) {
                        at[pair] += 1;
                        told[pair] = false;
                        moved = true;
                    }
                }
            }
            let context = format!("{sizes:?} on {pairs}: {schedule:?}");
            assert!(at.iter().zip(&tiles).all(|(&at, tiles)| at == tiles.len()), "{context}");
            checked += 1;
        }
    }
    assert!(checked > 1000, "{checked} schedules fuse S");
}
