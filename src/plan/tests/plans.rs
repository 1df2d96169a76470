//! Plans agree with the schedules and the workspace of their launches.

use crate::dtype::DType;
use crate::manifest::sm80::decode::MAX_TOKENS;
use crate::plan::Needs;
use crate::plan::Path;
use crate::plan::cost::CostModel;
use crate::plan::sm80::{self, LinearSchedule, backward_needs, decode, forward_needs};
use crate::plan::sm90a::linear;
use crate::plan::sm90a::linear::Projection;
use crate::plan::testing::{problems, single_problems};
use crate::plan::{Alone, DeviceProfile, Plan, Sizes, Strategy, projection_elements};
use crate::plan::{backward, base_forward, base_input_grad, forward};
use crate::problem::{MAX_SIZE, Problem};
use std::collections::HashSet;

const COST: &CostModel = &CostModel::H100_SXM;

fn single(problem: &Problem) -> [usize; 4] {
    let &[(d, r)] = problem.projections() else { panic!("several projections") };
    [problem.t(), problem.k(), d, r]
}

#[test]
fn scratch_holds_s_or_ds_and_the_partial_sums() {
    let generic = DeviceProfile::h100_sxm().without_hopper();
    for problem in problems() {
        let (t, rank) = (problem.t(), problem.rank());
        let offset = projection_elements(&problem);
        assert!(t * rank * 2 <= 4 * offset, "dS runs into the sums: {problem}");
        assert_eq!(4 * offset % 128, 0, "{problem}");
        let ranks = problem.projections().iter().all(|&(_, r)| r.is_multiple_of(8));
        let few = t <= MAX_TOKENS && ranks;
        let few = [few, few && problem.projections().len() == 1];
        let plans = [forward(&problem, Some(&generic)), backward(&problem, Some(&generic))];
        for (is_backward, (plan, few)) in plans.iter().zip(few).enumerate() {
            let copies = match is_backward {
                0 => sm80::forward_copies(&problem, &plan.strategy),
                _ => sm80::backward_copies(&problem, &plan.strategy),
            };
            let needs = match plan.strategy {
                Strategy::MmaDecode(launches) if is_backward == 1 => {
                    sm80::decode_needs(&launches).or(backward_needs(&problem, false))
                }
                Strategy::MmaDecode(launches) => sm80::decode_needs(&launches),
                Strategy::Mma(schedule) if is_backward == 1 => {
                    backward_needs(&problem, schedule.short)
                }
                Strategy::Mma(schedule) => forward_needs(&problem, schedule.short),
                _ => panic!("{problem}: {plan}"),
            };
            assert_eq!(plan.path() == Path::MmaDecode, few, "{problem}: {plan}");
            let scratch = offset + copies.partials + needs.partials;
            assert_eq!([plan.scratch, plan.flags], [scratch, needs.flags], "{problem}: {plan}");
            assert_eq!(plan.copies, copies != Needs::default(), "{problem}: {plan}");
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
        let decode = |launch: decode::Launch| {
            let launches = [Some(launch), None, None, None];
            (Strategy::MmaDecode(launches), sm80::decode_needs(&launches))
        };
        // A pass runs on copies, as if its sizes were multiples of 8, but for the W0 of few tokens.
        let [padded_k, padded_d] = [k, d].map(|size| size.next_multiple_of(8));
        let (strategy, needs) = match decode::Launch::forward([t, d, k, r], &generic) {
            Some(launch) => decode(launch),
            None => {
                let tiles = LinearSchedule::forward([t, padded_k], &[(padded_d, r)], &generic);
                (Strategy::Mma(tiles), forward_needs(&problem, tiles.short))
            }
        };
        let copies = sm80::forward_copies(&problem, &strategy);
        let mma_forward = Plan {
            strategy,
            scratch: s + copies.partials + needs.partials,
            flags: needs.flags,
            copies: k != padded_k,
        };
        assert_eq!(forward(&problem, Some(&generic)), mma_forward);
        let sizes = [t, k, padded_d, r];
        let (strategy, needs) = match decode::Launch::input_grad(sizes, &generic) {
            Some(launch) => {
                let (strategy, needs) = decode(launch);
                (strategy, needs.or(backward_needs(&problem, false)))
            }
            None => {
                let tiles = LinearSchedule::input_grad([t, padded_k], &[(padded_d, r)], &generic);
                (Strategy::Mma(tiles), backward_needs(&problem, tiles.short))
            }
        };
        let copies = sm80::backward_copies(&problem, &strategy);
        let mma_backward = Plan {
            strategy,
            scratch: s + copies.partials + needs.partials,
            flags: needs.flags,
            copies: k != padded_k || d != padded_d,
        };
        assert_eq!(backward(&problem, Some(&generic)), mma_backward);
        // The frozen layer alone has copies too, unless tokens are few.
        let copy = |rows: usize, cols: usize| match cols % 8 {
            0 => 0,
            _ => (rows * cols.next_multiple_of(8) * 2).div_ceil(128) * 32,
        };
        let base = |strategy, scratch| Plan { strategy, scratch, flags: 0, copies: scratch > 0 };
        let (strategy, copies) = match decode::Launch::forward([t, d, k, 0], &generic) {
            Some(launch) => (decode(launch).0, 0),
            None => {
                let tiles = LinearSchedule::forward([t, padded_k], &[(d, r)], &generic);
                let shifts_w0 = t <= 128 && tiles.unaligned[0].is_some();
                let of_w0 = if shifts_w0 { 0 } else { copy(d, k) };
                (Strategy::Mma(tiles), copy(t, k) + of_w0)
            }
        };
        assert_eq!(base_forward(&problem, Some(&generic)), base(strategy, copies));
        let strategy = match decode::Launch::input_grad([t, k, padded_d, 0], &generic) {
            Some(launch) => decode(launch).0,
            None => {
                let tiles = LinearSchedule::input_grad([t, padded_k], &[(padded_d, r)], &generic);
                Strategy::Mma(tiles)
            }
        };
        let shifts_w0 = match strategy {
            Strategy::Mma(tiles) => t <= 128 && tiles.unaligned[0].is_some(),
            _ => false,
        };
        let copies = copy(t, d) + if shifts_w0 { 0 } else { copy(d, k) };
        assert_eq!(base_input_grad(&problem, Some(&generic)), base(strategy, copies));
        let hopper = |strategy, scratch, flags| Plan { strategy, scratch, flags, copies: false };
        let aligned = k % 8 == 0 && d % 8 == 0 && r % 8 == 0;
        let [of_h, of_dx] = [[t, d, k, r], [t, k, d, r]].map(Sizes::of_layer);

        let wanted = match Alone::input_grad([t, k, d, r], 66, COST) {
            _ if !aligned => mma_backward,
            Some(launch) => hopper(small(launch), s, launch.flags(t)),
            None => {
                let schedule = linear::input_grad(&of_dx, 66, COST);
                let flags = schedule.flags(t).max(1 + t.div_ceil(128));
                hopper(Strategy::Large(schedule), s + schedule.partials(), flags)
            }
        };
        // And what the kernels of every GPU need where operands are not aligned.
        let wanted = match aligned {
            true => {
                let Needs { partials, flags } = backward_needs(&problem, false);
                let (scratch, flags) = (wanted.scratch.max(s + partials), wanted.flags.max(flags));
                Plan { scratch, flags, ..wanted }
            }
            false => wanted,
        };
        assert_eq!(backward(&problem, Some(&h100)), wanted);
        let wanted = match Alone::forward([t, d, k, r], 66, COST) {
            _ if !aligned => mma_forward,
            Some(launch) => hopper(small(launch), s, launch.flags(t)),
            None => {
                let schedule = linear::forward(&of_h, 66, COST);
                let flags = schedule.flags(t);
                hopper(Strategy::Large(schedule), s + schedule.partials(), flags)
            }
        };
        assert_eq!(forward(&problem, Some(&h100)), wanted);
        for plan in [forward, backward, base_forward, base_input_grad] {
            assert_eq!(plan(&problem, None), base(Strategy::Reference, 0));
        }
    }
}

/// Without an adapter no CTA computes S, waits on a flag or writes a partial tile: the workspace is
/// for copies of unaligned sizes. kernels/sm90a/decode.cu has no such input gradient.
#[test]
fn base_ops_need_no_adapter() {
    let h100 = DeviceProfile::h100_sxm();
    let mut paths = HashSet::new();
    for problem in single_problems() {
        let [t, k, d, _] = single(&problem);
        let aligned = k % 8 == 0 && d % 8 == 0;
        let plans = [base_forward, base_input_grad].map(|plan| plan(&problem, Some(&h100)));
        for (is_forward, plan) in [true, false].into_iter().zip(plans) {
            let context = format!("{problem}: {plan:?}");
            assert_eq!((plan.scratch > 0, plan.flags), (plan.copies, 0), "{context}");
            assert!(!(aligned && plan.copies), "{context}");
            let mma = matches!(plan.path(), Path::Mma | Path::MmaShort | Path::MmaDecode);
            assert_eq!(mma, !aligned, "{context}");
            paths.insert((is_forward, plan.path()));
            match plan.strategy {
                Strategy::Reference | Strategy::Mma(_) => {}
                Strategy::MmaDecode([Some(launch), None, None, None]) => {
                    assert_eq!((launch.partials(), launch.flags()), (0, 0), "{context}");
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
    assert_eq!(paths.len(), 6 + 6, "{paths:?}");
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
    assert_eq!(paths(129, &[(40, 8), (20, 16)]), [Path::MmaShort; 2]);
    assert_eq!(paths(129, &[(40, 8), (24, 4)]), [Path::MmaShort; 2]);
    let most = MAX_SIZE / 8 * 8;
    assert_eq!(paths(129, &[(most, 8); 2]), [Path::Mma, Path::MmaShort]);
    assert_eq!(paths(32, &[(20, 16)]), [Path::MmaDecode; 2]);
    assert_eq!(paths(33, &[(20, 16)]), [Path::MmaShort; 2]);
    assert_eq!(paths(32, &[(40, 8), (20, 16)]), [Path::MmaDecode, Path::MmaShort]);
    assert_eq!(paths(32, &[(40, 8), (24, 4)]), [Path::MmaShort; 2]);
}

#[test]
fn the_cpu_needs_no_workspace() {
    for problem in problems() {
        for plan in [forward(&problem, None), backward(&problem, None)] {
            assert_eq!((plan.path(), plan.scratch, plan.flags), (Path::Reference, 0, 0));
        }
    }
}
