//! Tiles of kernels/sm80/linear.cu that compute-sanitizer runs on.

use crate::manifest::sm80::linear::{STAGES_BYTES, TILES};
use crate::plan::sm80::{LinearSchedule, LinearTile};
use crate::plan::DeviceProfile;
use std::collections::HashSet;

fn h200(sms: usize) -> DeviceProfile {
    DeviceProfile::h200().with_sm_limit(sms)
}

/// The shapes that compute-sanitizer runs on reach every tile of both passes, with aligned rows and
/// without, in more steps than twice the stages of a pipeline.
#[test]
fn everything_is_sanitized() {
    let shapes: [([usize; 4], usize); 10] = include!("../../../tests/common/mma_shapes.in");
    let mut seen = HashSet::new();
    for ([t, d, k, r], sms) in shapes {
        let [of_h, of_dx] = [LinearSchedule::forward, LinearSchedule::input_grad]
            .map(|of| of([t, k], &[(d, r)], &h200(sms)).tiles[0].expect("there is an output"));
        let aligned = [d, k, r].iter().all(|size| size % 8 == 0);
        for (pass, tile, inner) in [("H", of_h, k), ("dX", of_dx, d)] {
            let LinearTile { m, n } = tile;
            // Twice the stages, whose columns are the same for every step.
            let columns = 2 * STAGES_BYTES / ((m + n) * 2);
            assert!(inner > columns, "{pass} at {d}, {k}: {tile}");
            seen.insert((pass, aligned, m, n));
        }
    }
    assert_eq!(seen.len(), 2 * 2 * TILES.len(), "{seen:?}");
}
