//! Plans agree with the schedules and the workspace of their launches.

use crate::dtype::DType;
use crate::manifest::sm80::decode::MAX_TOKENS;
use crate::plan::cost::CostModel;
use crate::plan::sm80::decode::{self, Limits};
use crate::plan::sm80::{forward_tiles, input_grad_tile, GradSplit};
use crate::plan::sm90a::linear;
use crate::plan::sm90a::linear::Projection;
use crate::plan::testing::{problems, single_problems};
use crate::plan::Path;
use crate::plan::{backward, base_forward, base_input_grad, forward};
use crate::plan::{Alone, BackwardWorkspace, DeviceProfile, Plan, Sizes, Strategy};
use crate::problem::{Problem, MAX_SIZE};
use std::collections::HashSet;

const COST: &CostModel = &CostModel::H100_SXM;

fn single(problem: &Problem) -> [usize; 4] {
    let &[(d, r)] = problem.projections() else { panic!("several projections") };
    [problem.t(), problem.k(), d, r]
}

#[test]
fn scratch_holds_ds_and_the_partial_sums_of_a_layer() {
    for problem in single_problems() {
        let [t, k, d, r] = single(&problem);
        let workspace = BackwardWorkspace::new(&problem, 0);
        let context = format!("{problem}: {workspace:?}");
        let (offset, elements) = (workspace.partials_offset(), workspace.elements());
        assert!(t * r * 2 <= 4 * offset, "dS runs into the sums: {context}");
        assert_eq!(4 * offset % 128, 0, "{context}");
        for n in [k, d] {
            let split = GradSplit::new(t, r, n);
            assert_eq!(split.partials(), split.splits * r * n, "{context}");
            assert!(offset + split.partials() <= elements, "{context}");
        }
        let schedule = linear::input_grad(&Sizes::of_layer([t, k, d, r]), 66, COST);
        let with_partials = BackwardWorkspace::new(&problem, schedule.partials()).elements();
        assert_eq!(with_partials, elements.max(offset + schedule.partials()), "{context}");
        // And no more, but for a line.
        let most = GradSplit::new(t, r, k).partials().max(GradSplit::new(t, r, d).partials());
        assert!(elements <= t * r * 2 / 4 + 32 + most + t.div_ceil(128), "{context}");
    }
}

#[test]
fn scratch_holds_s_or_ds_and_the_partial_sums_of_projections() {
    let generic = DeviceProfile::h100_sxm().without_hopper();
    for problem in problems() {
        let (t, k, rank) = (problem.t(), problem.k(), problem.rank());
        let workspace = BackwardWorkspace::new(&problem, 0);
        let (offset, elements) = (workspace.partials_offset(), workspace.elements());
        let context = format!("{problem}: {workspace:?}");
        assert!(t * rank * 2 <= 4 * offset, "dS runs into the sums: {context}");
        assert_eq!(4 * offset % 128, 0, "{context}");
        let mut all = vec![GradSplit::new(t, rank, k)];
        all.extend(problem.parts().map(|part| GradSplit::new(t, part.r, part.d)));
        for split in all {
            assert!(offset + split.partials() <= elements, "{context}");
            assert!(split.splits <= 65_535, "the limit of grid.y: {context}");
        }
        let forward = forward(&problem, Some(&generic));
        let backward = backward(&problem, Some(&generic));
        assert!(t * rank * 2 <= 4 * forward.scratch, "{context}");
        let few = t <= MAX_TOKENS;
        let few = [few, few && problem.projections().len() == 1];
        for (plan, few) in [&forward, &backward].into_iter().zip(few) {
            let path = if few { Path::MmaDecode } else { Path::Mma };
            assert_eq!((plan.path(), plan.flags > 0), (path, few), "{context}");
        }
        match backward.strategy {
            Strategy::MmaDecode([Some(schedule), None, None, None]) => {
                let end = offset + schedule.partials();
                assert_eq!(backward.scratch, elements.max(end), "{context}");
            }
            _ => assert_eq!(backward.scratch, elements, "{context}"),
        }
    }
}

#[test]
fn plans_agree_with_what_the_launches_use() {
    let h100 = DeviceProfile::h100_sxm();
    let generic = h100.clone().without_hopper();
    let small = |launch| Strategy::Small([Some(launch), None, None, None]);
    for problem in single_problems() {
        let [t, k, d, r] = single(&problem);
        let s = (t * r * 2).div_ceil(128) * 32;
        let ds = BackwardWorkspace::new(&problem, 0).elements();
        let limits = Limits { sms: 132, shared_bytes: 227 << 10 };
        let tiles_h = forward_tiles([t, k], &[(d, r)], 132);
        let tiles_dx = [Some(input_grad_tile([t, k], &[(d, r)], 132)), None, None, None];
        let mma = |schedule: Option<decode::Schedule>, tiles, scratch| match schedule {
            None => Plan { strategy: Strategy::Mma(tiles), scratch, flags: 0 },
            Some(schedule) => Plan {
                strategy: Strategy::MmaDecode([Some(schedule), None, None, None]),
                scratch: scratch + schedule.partials(),
                flags: schedule.flags(),
            },
        };
        let mma_forward = mma(decode::Schedule::forward([t, d, k, r], limits), tiles_h, s);
        let mma_backward = {
            let schedule = decode::Schedule::input_grad([t, k, d, r], limits);
            let partials = schedule.map_or(0, |schedule| schedule.partials());
            let scratch = BackwardWorkspace::new(&problem, partials).elements();
            Plan { scratch, ..mma(schedule, tiles_dx, 0) }
        };
        assert_eq!(backward(&problem, Some(&generic)), mma_backward);
        assert_eq!(forward(&problem, Some(&generic)), mma_forward);
        let base = decode::Schedule::forward([t, d, k, 0], limits);
        assert_eq!(base_forward(&problem, Some(&generic)), mma(base, tiles_h, 0));
        let base = decode::Schedule::input_grad([t, k, d, 0], limits);
        assert_eq!(base_input_grad(&problem, Some(&generic)), mma(base, tiles_dx, 0));
        let aligned = k % 8 == 0 && d % 8 == 0 && r % 8 == 0;
        let [of_h, of_dx] = [[t, d, k, r], [t, k, d, r]].map(Sizes::of_layer);

        let wanted = match Alone::input_grad([t, k, d, r], 66, COST) {
            _ if !aligned => mma_backward,
            Some(launch) => Plan { strategy: small(launch), scratch: ds, flags: launch.flags(t) },
            None => {
                let schedule = linear::input_grad(&of_dx, 66, COST);
                let scratch = BackwardWorkspace::new(&problem, schedule.partials()).elements();
                let flags = schedule.flags(t).max(1 + t.div_ceil(128));
                Plan { strategy: Strategy::Large(schedule), scratch, flags }
            }
        };
        assert_eq!(backward(&problem, Some(&h100)), wanted);
        let wanted = match Alone::forward([t, d, k, r], 66, COST) {
            _ if !aligned => mma_forward,
            Some(launch) => Plan { strategy: small(launch), scratch: s, flags: launch.flags(t) },
            None => {
                let schedule = linear::forward(&of_h, 66, COST);
                let (scratch, flags) = (s + schedule.partials(), schedule.flags(t));
                Plan { strategy: Strategy::Large(schedule), scratch, flags }
            }
        };
        assert_eq!(forward(&problem, Some(&h100)), wanted);
        for plan in [forward, backward, base_forward, base_input_grad] {
            let reference = Plan { strategy: Strategy::Reference, scratch: 0, flags: 0 };
            assert_eq!(plan(&problem, None), reference);
        }
    }
}

/// Without an adapter no CTA computes S, waits on a flag or writes a partial tile.
/// kernels/sm90a/decode.cu has no such input gradient.
#[test]
fn base_ops_need_no_adapter_and_no_workspace() {
    let h100 = DeviceProfile::h100_sxm();
    let mut paths = HashSet::new();
    for problem in single_problems() {
        let [t, k, d, _] = single(&problem);
        let aligned = k % 8 == 0 && d % 8 == 0;
        let plans = [base_forward, base_input_grad].map(|plan| plan(&problem, Some(&h100)));
        for (is_forward, plan) in [true, false].into_iter().zip(plans) {
            let context = format!("{problem}: {plan:?}");
            assert_eq!((plan.scratch, plan.flags), (0, 0), "{context}");
            let mma = matches!(plan.path(), Path::Mma | Path::MmaDecode);
            assert_eq!(mma, !aligned, "{context}");
            paths.insert((is_forward, plan.path()));
            match plan.strategy {
                Strategy::Reference | Strategy::Mma(_) => {}
                Strategy::MmaDecode([Some(schedule), None, None, None]) => {
                    assert_eq!((schedule.partials(), schedule.flags()), (0, 0), "{context}");
                }
                Strategy::Large(schedule) => {
                    assert_eq!(schedule.projection, Projection::Separate, "{context}");
                    assert!(!schedule.stream_k && schedule.grad_clusters == 0, "{context}");
                    assert_eq!((schedule.flags(t), schedule.partials()), (0, 0), "{context}");
                }
                Strategy::Small([Some(Alone::Decode(schedule)), None, None, None]) => {
                    assert_eq!(schedule.proj.clusters, 0, "{context}");
                }
                Strategy::Small([Some(Alone::Short(schedule)), None, None, None]) => {
                    assert_eq!((schedule.proj_clusters, schedule.flags(t)), (0, 0), "{context}");
                }
                Strategy::MmaDecode(_) | Strategy::Small(_) => panic!("{context}"),
            }
        }
    }
    assert_eq!(paths.len(), 5 + 5, "{paths:?}");
}

#[test]
fn a_projection_that_is_not_aligned_takes_all_to_the_generic_path() {
    let h100 = DeviceProfile::h100_sxm();
    let paths = |t, layers: &[(usize, usize)]| {
        let problem = Problem::new(t, 64, layers, DType::Bf16).unwrap();
        [forward, backward].map(|plan| plan(&problem, Some(&h100)).path())
    };
    assert_eq!(paths(129, &[(40, 8), (24, 16)]), [Path::Hopper; 2]);
    assert_eq!(paths(128, &[(40, 8), (24, 16)]), [Path::HopperShort, Path::Hopper]);
    assert_eq!(paths(128, &[(40, 8), (28_672, 16)]), [Path::HopperDecode, Path::Hopper]);
    assert_eq!(paths(64, &[(40, 8), (24, 16)]), [Path::HopperDecode, Path::Hopper]);
    assert_eq!(paths(129, &[(40, 8), (20, 16)]), [Path::Mma; 2]);
    assert_eq!(paths(129, &[(40, 8), (24, 4)]), [Path::Mma; 2]);
    let most = MAX_SIZE / 8 * 8;
    assert_eq!(paths(129, &[(most, 8); 2]), [Path::Mma; 2]);
    assert_eq!(paths(64, &[(20, 16)]), [Path::MmaDecode; 2]);
    assert_eq!(paths(65, &[(20, 16)]), [Path::Mma; 2]);
    assert_eq!(paths(64, &[(40, 8), (20, 16)]), [Path::MmaDecode, Path::Mma]);
}

#[test]
fn the_cpu_needs_no_workspace() {
    for problem in problems() {
        for plan in [forward(&problem, None), backward(&problem, None)] {
            assert_eq!((plan.path(), plan.scratch, plan.flags), (Path::Reference, 0, 0));
        }
    }
}
