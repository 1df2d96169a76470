//! Every schedule that can be chosen, walked through as the kernel does.

use super::*;
use crate::plan::tests::shapes;
use crate::plan::{hopper_decode, hopper_short, Alone};
use std::collections::HashSet;

/// A pair of tiles: its row and column, the slice that it makes, and whether it waits for others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    row: usize,
    col: usize,
    slice: Option<usize>,
    waits: bool,
    /// The steps along k: so many from the first on, and after the last of all, step 0.
    first: usize,
    steps: usize,
    /// What others have made of the tile is added; or it is they who add.
    finishes: bool,
    leaves: bool,
}

/// The kernel's `Tiles`, of every pair of blocks.
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
                // Whoever finishes a tile takes S.
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

/// Shapes small enough to go through all their tiles: of one layer, and of up to four, as the forward and
/// the input gradient have them.
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

/// All that a model chooses from.
fn schedules(sizes: &Sizes, pairs: usize) -> impl Iterator<Item = Schedule> + '_ {
    let forward = forward_candidates(sizes, pairs);
    let input_grad = streamers(pairs).flat_map(move |n| input_grad_candidates(sizes, pairs, n));
    forward.chain(input_grad).map(|(_, schedule)| schedule)
}

#[test]
fn every_step_once_and_every_slice_told_once() {
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
            // Every tile is made by one that has all of its steps, or by two that have the first
            // and the last; who makes a slice has all.
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

/// In the kernel, only the last tile of a pair may be one to finish, and what it takes is what the
/// next pair leaves, which is no more than one tile.
#[test]
fn what_a_pair_leaves_the_one_before_finishes() {
    let mut checked = 0;
    for (sizes, pairs) in cases() {
        for schedule in schedules(&sizes, pairs) {
            let context = format!("{sizes:?} on {pairs}: {schedule:?}");
            let mut wanted = None;
            for of_pair in tiles(&schedule, &sizes) {
                let mut left = of_pair.iter().filter(|tile| tile.leaves);
                assert_eq!(left.next().map(|tile| (tile.row, tile.col)), wanted, "{context}");
                assert_eq!(left.next(), None, "{context}");
                let (last, others) = of_pair.split_last().expect("a tile for every pair");
                assert!(others.iter().all(|tile| !tile.finishes), "{context}");
                assert!(!(last.leaves && last.finishes), "{context}");
                wanted = last.finishes.then_some((last.row, last.col));
                checked += usize::from(last.finishes);
            }
            assert_eq!(wanted, None, "{context}");
        }
    }
    assert!(checked > 1000, "{checked} tiles are shared");
}

/// What was measured to be fastest on an H100.
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
    // T, k, d and r; the columns of a slice, and the pairs that make dA and dB.
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

/// What of the kernel a launch comes to: its tile with its slices, whether they are several, whether a
/// pair makes some more than once, whether tiles are shared, and how gradients are made, if at all.
fn comes_to(schedule: &Schedule, sizes: &Sizes) -> Vec<String> {
    let r = sizes.rank();
    let slice = schedule.slice();
    let again = match schedule.projection {
        Projection::Before | Projection::Beside { .. } => false,
        Projection::Within { slice_cols, makers, .. } => {
            sizes.m.div_ceil(PAIR_M) * slice_cols > makers
        }
    };
    let several = if slice > 0 && schedule.slices(r) > 1 { " several" } else { "" };
    let kernel = format!("{} with {slice}{several}", schedule.tile_n);
    let again = again.then(|| format!("{slice}{several} again"));
    let shared = schedule.shares.then(|| format!("{slice} and shared"));
    let rank_tile = hopper_grads::rank_tile(r);
    let s = (schedule.projectors() > 0).then(|| format!("S of {rank_tile} beside"));
    let grads = match schedule.streamers {
        0 => format!("{rank_tile} after"),
        _ => format!("{rank_tile} beside {slice}"),
    };
    [Some(kernel), again, shared, s, Some(grads)].into_iter().flatten().collect()
}

/// The shapes that compute-sanitizer runs on come to every kernel and every way of its blocks, of a layer
/// alone and of several that share X.
#[test]
fn everything_is_sanitized() {
    let alone: [([usize; 4], usize); 20] = include!("../../../tests/common/hopper_shapes.in");
    let mut seen = [HashSet::new(), HashSet::new()];
    for ([t, d, k, r], sms) in alone {
        let [of_h, of_dx] = [[t, d, k, r], [t, k, d, r]].map(Sizes::of_layer);
        // Few tokens go another way.
        if Alone::forward([t, d, k, r], sms / 2).is_none() {
            seen[0].extend(comes_to(&forward(&of_h, sms / 2), &of_h));
        }
        if hopper_short::Schedule::input_grad([t, k, r], sms / 2).is_none() {
            seen[1].extend(comes_to(&input_grad(&of_dx, sms / 2), &of_dx));
        }
    }
    assert_all_seen(&seen);

    type Shared = (usize, usize, &'static [(usize, usize)], usize);
    let shared: [Shared; 22] = include!("../../../tests/common/hopper_shared_shapes.in");
    let mut seen = [HashSet::new(), HashSet::new()];
    for (t, k, layers, sms) in shared {
        assert!(t > hopper_decode::MOST_TOKENS && layers.len() > 1);
        let layers = || layers.iter().copied();
        let of_h = Sizes::of_forward(t, k, layers());
        let of_dx = Sizes::of_input_grad(t, k, layers());
        seen[0].extend(comes_to(&forward(&of_h, sms / 2), &of_h));
        seen[1].extend(comes_to(&input_grad(&of_dx, sms / 2), &of_dx));
    }
    assert_all_seen(&seen);
}

/// That forwards and input gradients have come to all that there is.
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

/// What is not looked at is not faster.
#[test]
fn the_fastest_input_grad_is_found() {
    for (sizes, pairs) in cases() {
        let all = streamers(pairs).flat_map(|n| input_grad_candidates(&sizes, pairs, n));
        assert_eq!(input_grad(&sizes, pairs), fastest(all).1, "{sizes:?} on {pairs}");
    }
}

/// All pairs of blocks run at once, each through its tiles in order; where a tile makes a slice,
/// it does so before it waits for those of its row.
#[test]
fn nobody_waits_forever() {
    let is_within = |schedule: &Schedule| matches!(schedule.projection, Projection::Within { .. });
    let mut checked = 0;
    for (sizes, pairs) in cases() {
        for schedule in schedules(&sizes, pairs).filter(is_within) {
            let (tiles, wanted) = (tiles(&schedule, &sizes), schedule.slices(sizes.rank()));
            let mut made = vec![0; sizes.m.div_ceil(PAIR_M)];
            // The tile of a pair, and whether it has told its slice or left its part.
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
    assert!(checked > 1000, "{checked} schedules make S within");
}
