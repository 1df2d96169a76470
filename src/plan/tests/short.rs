//! Small batches of kernels/sm90a/short.cu that compute-sanitizer runs on.

use super::gpu_shapes::HOPPER_SHORT;
use crate::manifest::sm90a::short::{FORWARD_TILES_N, INPUT_GRAD_TILES_N, TILES_M};
use crate::plan::cost::CostModel;
use crate::plan::sm80::rank_tile;
use crate::plan::sm90a::grads;
use crate::plan::sm90a::short::Schedule;
use crate::plan::sm90a::small::Alone;
use std::collections::HashSet;

const COST: &CostModel = &CostModel::H100_SXM;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Linear {
    Forward,
    InputGrad,
}

/// The shapes that compute-sanitizer runs on reach every kernel and every role of its CTAs.
#[test]
fn everything_is_sanitized() {
    let (mut tiles, mut kinds) = (HashSet::new(), HashSet::new());
    let mut items_of_blocks = HashSet::new();
    for &([t, d, k, r], sms) in HOPPER_SHORT {
        let forward = (Linear::Forward, Alone::forward([t, d, k, r], sms / 2, COST), d, k);
        let input_grad = (Linear::InputGrad, Alone::input_grad([t, k, d, r], sms / 2, COST), k, d);
        for (linear, alone, n, inner) in [forward, input_grad] {
            let Some(Alone::Short(schedule)) = alone else { continue };
            let Schedule { tile_m, rows, tile_n, clusters, proj_clusters } = schedule;
            tiles.insert((linear, tile_m, tile_n));
            let rank_tile = rank_tile(r);
            let in_part = rows < tile_m && t > rows;
            let rows = t.div_ceil(rows);
            let one_by_one = rows * r.div_ceil(rank_tile) > proj_clusters;
            let of_s = [
                ("S", true),
                ("tiles of S one after another", one_by_one),
                ("several tiles of S in a row", r > rank_tile),
            ];
            let of_s = of_s.map(|(kind, is)| (rank_tile, kind, is));
            let of_out = [
                ("a CTA without rows", rows % 2 == 1),
                ("part of a tile", n % tile_n > 0),
                ("several tiles that are not full", in_part),
                ("several rows of tiles", rows > 2),
                ("no steps for the second CTA of S", inner <= 64),
                ("stages reused", inner > 16 * 64),
            ];
            if linear == Linear::InputGrad && schedule.makes_grads() {
                let [_, ranks] = grads::box_beside(t, r);
                let items = (k.div_ceil(64) + d.div_ceil(64)) * r.div_ceil(ranks);
                items_of_blocks.insert((ranks, items > 2 * clusters));
            }
            let all = of_s.into_iter().chain(of_out.map(|(kind, is)| (0, kind, is)));
            kinds.extend(all.filter(|kind| kind.2).map(|kind| (linear, tile_m, kind)));
        }
    }
    assert_eq!(tiles.len(), TILES_M.len() * (FORWARD_TILES_N.len() + INPUT_GRAD_TILES_N.len()));
    // Tiles of 64 rows are always two, and 16 ranks are one tile.
    assert_eq!(kinds.len(), 4 * (2 + 3 + 6) - 4, "{kinds:?}");
    assert_eq!(items_of_blocks.len(), 4, "one or several: {items_of_blocks:?}");
}
