//! No problem panics a plan, whatever its sizes. Tests run with overflow checks.

use crate::dtype::DType;
use crate::plan::Path;
use crate::plan::sm80::LinearSchedule;
use crate::plan::testing::{pick, rng, size};
use crate::plan::{DeviceProfile, Plan, Rates, Strategy};
use crate::plan::{backward, base_forward, base_input_grad, forward};
use crate::problem::{MAX_RANK, MAX_SIZE as MOST, Problem};
use rand::RngExt;
use std::collections::HashSet;

fn profile(clusters: usize) -> DeviceProfile {
    let sms = (2 * clusters).max(2);
    DeviceProfile::new("a GPU".to_string(), (9, 0), [sms, clusters], Rates::H100_SXM)
}

/// The plans of all passes, of a single layer.
fn plans(problem: &Problem, profile: Option<&DeviceProfile>) -> Vec<Plan> {
    let mut plans = vec![forward(problem, profile), backward(problem, profile)];
    if problem.projections().len() == 1 {
        let base = [base_forward(problem, profile), base_input_grad(problem, profile)];
        let is_copies = |plan: &Plan| (plan.scratch > 0, plan.flags) == (plan.copies, 0);
        assert!(base.iter().all(is_copies), "{problem}");
        plans.extend(base);
    }
    plans
}

#[test]
fn no_problem_panics() {
    let profiles = [0, 1, 2, 3, 13, 66, 72].map(profile);
    let edges = [1, 8, 64, 1024, 1032, 30_000, 1 << 24, MOST / 8 * 8, MOST];
    let rng = &mut rng(5);
    let mut paths = HashSet::new();
    for i in 0..30_000 {
        let mut size = || match rng.random_range(0..4) {
            0 => pick(rng, &edges),
            1 => size(rng, MOST),
            _ => size(rng, MOST).next_multiple_of(8).min(MOST / 8 * 8),
        };
        let (t, k) = (size() - usize::from(i % 64 == 0), size());
        let layers: Vec<_> = (0..=i % 4).map(|_| (size(), size() % MAX_RANK + 1)).collect();
        let ranks = [8, 16, 24, 64, 72, 256];
        let aligned = layers.iter().map(|&(d, r)| (d, ranks[r % ranks.len()])).collect::<Vec<_>>();
        let dtype = pick(rng, &[DType::Bf16, DType::F16, DType::F32]);
        for layers in [layers, aligned] {
            let problem = Problem::new(t, k, &layers, dtype).unwrap();
            let profile = pick(rng, &[0, 1, 2, 3, 4, 5, 5, 5, 6]);
            for plan in plans(&problem, Some(&profiles[profile])) {
                assert!(!plan.to_string().is_empty());
                paths.insert(plan.path());
            }
        }
    }
    assert_eq!(paths.len(), 6, "{paths:?}");
}

#[test]
fn an_empty_batch_needs_nothing() {
    for layers in [&[(4096, 16)][..], &[(8, 8); 4], &[(3, 1), (5, 256)]] {
        let problem = Problem::new(0, 4096, layers, DType::Bf16).unwrap();
        for profile in [None, Some(&profile(0)), Some(&profile(66))] {
            for plan in plans(&problem, profile) {
                assert_eq!((plan.scratch, plan.flags), (0, 0));
                let wanted = match profile {
                    Some(_) => Strategy::Mma(LinearSchedule::NONE),
                    None => Strategy::Reference,
                };
                assert_eq!(plan.strategy, wanted);
            }
        }
    }
}

/// Kernels count tiles, steps and outputs in floats or `int`.
#[test]
fn counts_fit_the_hopper_kernels() {
    let h100 = DeviceProfile::h100_sxm();
    let on_hopper = |t, k, layers: &[(usize, usize)]| {
        let problem = Problem::new(t, k, layers, DType::Bf16).unwrap();
        let plans = plans(&problem, Some(&h100));
        let of_hopper =
            |plan: &Plan| !matches!(plan.path(), Path::Mma | Path::MmaShort | Path::MmaDecode);
        let first = of_hopper(&plans[0]);
        assert!(plans.iter().all(|plan| of_hopper(plan) == first));
        first
    };
    let (rows, cols) = (256, 128);
    // 2²⁴ tiles, one less, and 2²⁴ tiles of two layers.
    assert!(!on_hopper(rows << 12, cols << 12, &[(8, 8)]));
    assert!(on_hopper(rows << 12, (cols << 12) - cols, &[(8, 8)]));
    assert!(!on_hopper(rows << 12, 8, &[(cols << 12, 8)]));
    assert!(on_hopper(rows << 12, 8, &[((cols << 12) - cols, 8)]));
    assert!(!on_hopper(rows << 22, 8, &[(8, 8); 4]));
    assert!(on_hopper((rows << 22) - rows, 8, &[(8, 8); 4]));
    // The largest T of a narrow layer.
    assert!(on_hopper(MOST, 8, &[(8, 8)]));
    // Outputs of several layers, and a W0 that no memory holds.
    let most = MOST / 8 * 8;
    assert!(on_hopper(1, 8, &[(most, 8)]));
    assert!(!on_hopper(1, 8, &[(most, 8); 2]));
    assert!(!on_hopper(1, most, &[(most, 8)]));
}
