//! Small batches of kernels/sm90a/decode.cu that compute-sanitizer runs on.

use super::gpu_shapes::HOPPER_DECODE;
use crate::manifest::sm90a::decode::{INPUT_GRAD_TILES_T, TILES_T, TURNS_ROWS};
use crate::plan::cost::CostModel;
use crate::plan::sm90a::decode::Schedule;
use crate::plan::sm90a::grads;
use crate::plan::sm90a::small::Alone;
use std::collections::HashSet;

const COST: &CostModel = &CostModel::H100_SXM;

/// How a product reads its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reads {
    Rows,
    Columns,
}

/// The shapes that compute-sanitizer runs on reach every kernel and every role of its CTAs. More
/// than 64 tokens only with several rounds.
#[test]
fn everything_is_sanitized() {
    let (mut ways, mut kinds) = (HashSet::new(), HashSet::new());
    for &([t, d, k, r], sms) in HOPPER_DECODE {
        let forward = (Reads::Rows, Alone::forward([t, d, k, r], sms / 2, COST), d);
        let input_grad = (Reads::Columns, Alone::input_grad([t, k, d, r], sms / 2, COST), k);
        for (reads, alone, n) in [forward, input_grad] {
            let Some(Alone::Decode(schedule)) = alone else {
                assert!(reads == Reads::Columns && t > 32, "{:?} has another kernel", [t, d, k, r]);
                continue;
            };
            let Schedule { tile_t, shared_bytes, split, rows, rounds, clusters, proj, .. } =
                schedule;
            ways.insert((reads, tile_t, split, rows > TURNS_ROWS, shared_bytes));
            let of_all = [
                ("several rounds", rounds > 1),
                ("several clusters for columns of S", proj.ranks > 1),
                ("several clusters for tokens of S", proj.clusters > proj.ranks),
                ("steps along r for both CTAs", split && r > 64),
                ("a CTA without rows", !split && rounds == 1 && n.div_ceil(rows) < 2 * clusters),
            ];
            let [_, ranks] = grads::box_beside(t, r);
            let items = (k.div_ceil(64) + d.div_ceil(64)) * r.div_ceil(ranks);
            let of_input_grad = [
                ("one dA or dB of 16 ranks for a CTA", ranks == 16 && items <= 2 * clusters),
                ("several of 16 ranks", ranks == 16 && items > 2 * clusters),
                ("several of 32 ranks", ranks == 32 && items > 2 * clusters),
                ("a part of a box", n % 64 > 0),
            ];
            let of_input_grad =
                of_input_grad.map(|(kind, is)| (kind, is && reads == Reads::Columns));
            let is = of_all.into_iter().chain(of_input_grad).filter(|(_, is)| *is);
            kinds.extend(is.map(|(kind, _)| (reads, kind)));
        }
    }
    let of = |reads| ways.iter().filter(|way| way.0 == reads).count();
    assert_eq!(of(Reads::Rows), (TILES_T.len() - 1) * 4 + 1, "{ways:?}");
    // 64 tokens, where tiles of kernels/sm90a/short.cu are too many: no halves, and no split.
    assert_eq!(of(Reads::Columns), INPUT_GRAD_TILES_T.len() * 4 - 3, "{ways:?}");
    assert_eq!(kinds.len(), 2 * 5 + 4, "{kinds:?}");
}
