//! Few tokens of kernels/sm80/decode.cu that compute-sanitizer runs on.

use super::gpu_shapes::MMA_DECODE;
use crate::manifest::sm80::decode::{FORWARD, INPUT_GRAD};
use crate::plan::DeviceProfile;
use crate::plan::sm80::decode::{Instance, Launch};
use std::collections::HashSet;

/// The shapes that compute-sanitizer runs on reach every instance.
#[test]
fn everything_is_sanitized() {
    let (mut forward, mut input_grad) = (HashSet::new(), HashSet::new());
    for &([t, d, k, r], sms) in MMA_DECODE {
        let card = DeviceProfile::h200().with_sm_limit(sms);
        for r in [r, 0] {
            let of_h = Launch::forward([t, d, k, r], &card).expect("few tokens");
            // Of a copy of dH.
            let of_dx = Launch::input_grad([t, k, d.next_multiple_of(8), r], &card);
            let of_dx = of_dx.expect("few tokens");
            for (reached, launch) in [(&mut forward, of_h), (&mut input_grad, of_dx)] {
                let Instance { t, rows, splits, loads } = launch.instance;
                reached.insert([t, rows, splits, loads]);
            }
        }
    }
    assert_eq!(forward, HashSet::from(FORWARD));
    assert_eq!(input_grad, HashSet::from(INPUT_GRAD));
}
