//! Tiles of kernels/sm80/linear.cu that compute-sanitizer runs on.

use crate::manifest::sm80::linear::{STAGES_BYTES, TILES};
use crate::plan::profile::DeviceProfile;
use crate::plan::sm80::{forward_tiles, input_grad_tile, LinearTile};
use std::collections::HashSet;

/// The shapes that compute-sanitizer runs on reach every tile of both passes, with aligned rows and
/// without, in more steps than twice the stages of a pipeline.
#[test]
fn everything_is_sanitized() {
    let shapes: [([usize; 4], usize); 8] = include!("../../../tests/common/mma_shapes.in");
    let mut seen = HashSet::new();
    for ([t, d, k, r], sms) in shapes {
        let card = DeviceProfile::h200().with_sm_limit(sms);
        let [of_h, ..] = forward_tiles([t, k], &[(d, r)], &card);
        let of_dx = input_grad_tile([t, k], &[(d, r)], &card);
        let aligned = [d, k, r].iter().all(|size| size % 8 == 0);
        for (pass, tile, inner) in [("H", of_h.unwrap(), k), ("dX", of_dx, d)] {
            let LinearTile { m, n } = tile;
            // Twice the stages, whose columns are the same for every step.
            let columns = 2 * STAGES_BYTES / ((m + n) * 2);
            assert!(inner > columns, "{pass} at {d}, {k}: {tile}");
            seen.insert((pass, aligned, m, n));
        }
    }
    assert_eq!(seen.len(), 2 * 2 * TILES.len(), "{seen:?}");
}
