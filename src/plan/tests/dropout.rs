//! Plans with dropout have the kernels for it.

use crate::manifest::sm80::linear::{DROPOUT_TILES, TILES, UNALIGNED_DROPOUT_TILES};
use crate::manifest::sm90a::linear::{DROPOUT_TILES_N, TILES_N};
use crate::plan::sm90a::linear::Projection;
use crate::plan::testing::problems;
use crate::plan::{DeviceProfile, Plan, Strategy, backward, forward};
use crate::problem::Problem;

#[test]
fn there_is_a_kernel_for_every_schedule() {
    let h200 = DeviceProfile::h200();
    let cards = [h200.clone(), h200.with_sm_limit(8), DeviceProfile::a100_sxm()];
    let mut hopper = 0;
    // Half of them in multiples of 8, as Hopper's kernels need.
    let aligned = |problem: &Problem| {
        let eights = |n: usize| n.next_multiple_of(8);
        let layers: Vec<_> =
            problem.projections().iter().map(|&(d, r)| (eights(d), eights(r))).collect();
        Problem::new(problem.t(), eights(problem.k()), &layers, problem.dtype()).unwrap()
    };
    for problem in problems().step_by(7).flat_map(|problem| [problem, aligned(&problem)]) {
        let dropped = problem.with_dropout(true);
        for card in &cards {
            let [of_h, of_dx] = [forward, backward].map(|plan| plan(&dropped, Some(card)));
            let whole = forward(&problem, Some(card));
            let context = format!("{problem} on {}: {of_h}; {of_dx}", card.name());
            match (of_h.strategy, of_dx.strategy) {
                (Strategy::Large(of_h), Strategy::Large(of_dx)) => {
                    hopper += 1;
                    assert_eq!(of_h.projection, Projection::Separate, "{context}");
                    assert!(TILES_N.contains(&of_h.tile_n), "{context}");
                    assert!(DROPOUT_TILES_N.contains(&of_dx.tile_n), "{context}");
                }
                (Strategy::Mma(of_h), Strategy::Mma(of_dx)) => {
                    assert!(!of_h.short && !of_dx.short, "{context}");
                    for tile in of_h.tiles.into_iter().flatten() {
                        assert!(TILES.contains(&[tile.m, tile.n]), "{context}");
                    }
                    for tile in of_dx.tiles.into_iter().flatten() {
                        assert!(DROPOUT_TILES.contains(&[tile.m, tile.n]), "{context}");
                    }
                    for tile in of_dx.unaligned.into_iter().flatten() {
                        assert!(UNALIGNED_DROPOUT_TILES.contains(&[tile.m, tile.n]), "{context}");
                    }
                }
                _ => panic!("{context}"),
            }
            // On no other path than without: not the CPU's, and Hopper's where it can.
            let is_large = |plan: &Plan| matches!(plan.strategy, Strategy::Large(_));
            let on_hopper = matches!(whole.strategy, Strategy::Large(_) | Strategy::Small(_));
            assert_eq!(is_large(&of_h), on_hopper, "{context}");
        }
    }
    assert!(hopper > 1000);
}
