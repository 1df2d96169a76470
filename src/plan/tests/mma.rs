//! Tiles of kernels/sm80/linear.cuh that compute-sanitizer runs on.

use super::gpu_shapes::{MMA, MMA_WHOLE_S};
use crate::manifest::sm80::linear::{STAGES_BYTES, TILES, UNALIGNED_TILES};
use crate::plan::DeviceProfile;
use crate::plan::sm80::{LinearSchedule, LinearTile, ProjSplit, whole_s};
use std::collections::HashSet;

fn h200(sms: usize) -> DeviceProfile {
    DeviceProfile::h200().with_sm_limit(sms)
}

/// The shapes that compute-sanitizer runs on reach every tile of both passes, of aligned rows and
/// of others, in more steps than twice the stages of a pipeline.
#[test]
fn everything_is_sanitized() {
    let mut seen = HashSet::new();
    for &([t, d, k, r], sms) in MMA {
        let of = [LinearSchedule::forward, LinearSchedule::input_grad];
        let [of_h, of_dx] = of.map(|of| of([t, k], &[(d, r)], &h200(sms)));
        for (pass, schedule, inner) in [("H", of_h, k), ("dX", of_dx, d)] {
            let each = [(true, schedule.tiles[0]), (false, schedule.unaligned[0])];
            for (aligned, tile) in each.into_iter().filter_map(|(of, tile)| Some((of, tile?))) {
                let LinearTile { m, n } = tile;
                // Twice the stages, whose columns are the same for every step.
                let columns = 2 * STAGES_BYTES / ((m + n) * 2);
                assert!(inner > columns, "{pass} at {d}, {k}: {tile}");
                seen.insert((pass, aligned, [m, n]));
            }
        }
    }
    let of = |aligned, tiles: &[[usize; 2]]| {
        let each = tiles.iter().flat_map(|&tile| ["H", "dX"].map(|pass| (pass, aligned, tile)));
        each.collect::<HashSet<_>>()
    };
    assert_eq!(seen, &of(true, &TILES) | &of(false, &UNALIGNED_TILES));
}

/// S is whole beside every tile of short batches, of a CTA's one tile of S or of several.
#[test]
fn whole_s_is_sanitized() {
    let mut seen = HashSet::new();
    let mut several = 0;
    for &(t, k, layers, sms) in MMA_WHOLE_S {
        let card = h200(sms);
        let schedule = LinearSchedule::forward([t, k], layers, &card);
        let ranks = layers.iter().map(|&(_, r)| r);
        let whole = whole_s(&schedule, [t, layers[0].0, k], ranks.clone(), &card);
        let (LinearTile { m, n }, ctas) =
            whole.unwrap_or_else(|| panic!("splits serve {layers:?} at {t}, {k}: {schedule}"));
        assert!(schedule.short);
        let tiles: usize = ranks.map(|r| ProjSplit::new([t, k, r]).whole().ctas()).sum();
        several += usize::from(tiles > ctas);
        seen.insert([m, n]);
    }
    assert_eq!(seen, TILES[1..].iter().copied().collect());
    assert!((1..MMA_WHOLE_S.len()).contains(&several));
}
