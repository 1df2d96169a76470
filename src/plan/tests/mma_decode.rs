//! Few tokens of kernels/sm80/decode.cu that compute-sanitizer runs on.

use super::gpu_shapes::MMA_DECODE;
use crate::manifest::sm80::decode::{FORWARD, INPUT_GRAD, UNALIGNED};
use crate::plan::DeviceProfile;
use crate::plan::sm80::decode::{Instance, Launch, Schedule};
use std::collections::HashSet;

/// The shapes that compute-sanitizer runs on reach every instance, in layers with rows of whole
/// pieces of 16 bytes, and in others.
#[test]
fn everything_is_sanitized() {
    let (mut forward, mut input_grad) = (HashSet::new(), HashSet::new());
    for &([t, d, k, r], sms) in MMA_DECODE {
        let card = DeviceProfile::h200().with_sm_limit(sms);
        let aligned = [d, k, r].iter().all(|size| size.is_multiple_of(8));
        for r in [r, 0] {
            let of_h = Schedule::forward([t, d, k, r], &card).expect("few tokens");
            let of_dx = Schedule::input_grad([t, k, d, r], &card).expect("few tokens");
            for (reached, schedule) in [(&mut forward, of_h), (&mut input_grad, of_dx)] {
                let launch = if aligned { Some(schedule.aligned) } else { schedule.unaligned };
                reached.extend(launch.map(|Launch { instance, .. }| {
                    let Instance { t, rows, splits, loads } = instance;
                    assert_eq!(loads == UNALIGNED, !aligned);
                    [t, rows, splits, loads]
                }));
            }
        }
    }
    assert_eq!(forward, HashSet::from(FORWARD));
    assert_eq!(input_grad, HashSet::from(INPUT_GRAD));
}
