//! Projections that share their input: their sizes and plans.

use super::hopper::Sizes;
use super::{apart, check_dims, check_rank, hopper, hopper_grads, projection_elements};
use super::{BackwardWorkspace, DeviceProfile, Plan, Problem};
use crate::{DType, Error, Result};

/// The most projections that one call takes.
pub const MAX_PROJECTIONS: usize = 4;

/// The sizes that decide how a call for projections of the same input is served, in the paper's
/// letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SharedProblem {
    /// Tokens: the product of all leading dimensions of x.
    pub t: usize,
    /// Inputs of every projection: W0 of projection i is d×k, with a d of its own.
    pub k: usize,
    /// Element type of x, A, S and every W0, B and h.
    pub dtype: DType,
    /// The first `count` are d and r of a projection, the others are zeros.
    projections: [(usize, usize); MAX_PROJECTIONS],
    count: usize,
}

/// One of the projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) d: usize,
    pub(crate) r: usize,
    /// Where its rows of A, and its columns of S, begin.
    pub(crate) start: usize,
}

impl SharedProblem {
    /// A problem within the limits of the crate. `projections` are d and r of each, in the order of
    /// their rows of A.
    ///
    /// # Errors
    /// [`Error::Count`] unless there are 1 to [`MAX_PROJECTIONS`] of them; for each, as
    /// [`Problem::new`].
    pub fn new(t: usize, k: usize, projections: &[(usize, usize)], dtype: DType) -> Result<Self> {
        /// What errors call their weights.
        const W0: [&str; MAX_PROJECTIONS] =
            ["projections[0].w0", "projections[1].w0", "projections[2].w0", "projections[3].w0"];
        let count = projections.len();
        check_count(count)?;
        projections.iter().try_for_each(|&(_, r)| check_rank(r))?;
        check_dims("x", [t, k])?;
        let mut weights = projections.iter().zip(W0);
        weights.try_for_each(|(&(d, _), w0)| check_dims(w0, [d, k]))?;
        let mut all = [(0, 0); MAX_PROJECTIONS];
        all[..count].copy_from_slice(projections);
        Ok(SharedProblem { t, k, dtype, projections: all, count })
    }

    /// d and r of every projection.
    pub fn projections(&self) -> &[(usize, usize)] {
        &self.projections[..self.count]
    }

    /// R, the sum of the ranks: the rows of A, and the columns of S.
    pub fn rank(&self) -> usize {
        self.projections().iter().map(|&(_, r)| r).sum()
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.projections().iter().scan(0, |end, &(d, r)| {
            let start = *end;
            *end += r;
            Some(Part { d, r, start })
        })
    }
}

impl From<Problem> for SharedProblem {
    fn from(Problem { t, k, d, r, dtype }: Problem) -> Self {
        let mut projections = [(0, 0); MAX_PROJECTIONS];
        projections[0] = (d, r);
        SharedProblem { t, k, dtype, projections, count: 1 }
    }
}

/// The plan of a forward pass of projections that share their input; `profile` is `None` on the
/// CPU.
pub fn forward_shared(problem: &SharedProblem, profile: Option<&DeviceProfile>) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    let scratch = projection_elements(problem);
    let Some(pairs) = pairs(problem, profile) else { return Plan::mma(scratch) };
    if let Some(plan) = apart::plan(problem, pairs, scratch) {
        return plan;
    }
    let layers = problem.projections().iter().copied();
    let schedule = hopper::forward(&Sizes::of_forward(problem.t, problem.k, layers), pairs);
    Plan::on_hopper(schedule, schedule.flags(problem.t), scratch + schedule.partials())
}

/// The plan of a backward pass of projections that share their input, with dX or without; `profile`
/// is `None` on the CPU.
pub fn backward_shared(problem: &SharedProblem, profile: Option<&DeviceProfile>) -> Plan {
    let Some(profile) = profile else { return Plan::REFERENCE };
    let Some(pairs) = pairs(problem, profile) else {
        return Plan::mma(BackwardWorkspace::new(problem, None).elements());
    };
    if let Some(plan) = apart::backward_plan(problem, pairs) {
        return plan;
    }
    let layers = problem.projections().iter().copied();
    let schedule = hopper::input_grad(&Sizes::of_input_grad(problem.t, problem.k, layers), pairs);
    let flags = schedule.flags(problem.t).max(hopper_grads::flags(problem.t));
    Plan::on_hopper(schedule, flags, BackwardWorkspace::new(problem, Some(&schedule)).elements())
}

/// The pairs of multiprocessors for [`Path::Hopper`](crate::Path::Hopper), if that is there and rows
/// start at multiples of 16 bytes, in buffers that do.
pub(super) fn pairs(problem: &SharedProblem, profile: &DeviceProfile) -> Option<usize> {
    /// What the outputs of all projections are rounded up by, at most.
    const PADDING: usize = MAX_PROJECTIONS * 256;
    let mut cols = problem.projections().iter().flat_map(|&(d, r)| [d, r]).chain([problem.k]);
    // Its kernels count the outputs of all projections by i32.
    let outputs = problem.projections().iter().map(|&(d, _)| d).sum::<usize>();
    let possible = cols.all(|cols| cols % 8 == 0) && outputs <= i32::MAX as usize - PADDING;
    (profile.hopper && possible).then_some(profile.pairs)
}

/// Refuses what is no number of projections.
pub(crate) fn check_count(got: usize) -> Result<()> {
    if (1..=MAX_PROJECTIONS).contains(&got) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_PROJECTIONS}");
    Err(Error::Count { argument: "projections", expected, got })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::shapes;
    use crate::plan::{self, GradSplit};
    use crate::Path;

    /// One to four projections of the sizes of neighbouring shapes.
    fn problems() -> impl Iterator<Item = SharedProblem> {
        let all: Vec<_> = shapes().collect();
        (0..all.len() - MAX_PROJECTIONS).map(move |i| {
            let sizes = &all[i..i + 1 + i % MAX_PROJECTIONS];
            let of: Vec<_> = sizes.iter().map(|&[_, _, d, r]| (d, r)).collect();
            SharedProblem::new(all[i][0], all[i][1], &of, DType::Bf16).unwrap()
        })
    }

    fn profile(hopper: bool) -> DeviceProfile {
        let (name, compute_capability) = ("a GPU".to_string(), (9, 0));
        DeviceProfile { name, compute_capability, sms: 132, pairs: 66, hopper }
    }

    #[test]
    fn parts_are_the_columns_of_s() {
        for problem in problems() {
            let mut end = 0;
            for (part, &(d, r)) in problem.parts().zip(problem.projections()) {
                assert_eq!(part, Part { d, r, start: end }, "{problem:?}");
                end += r;
            }
            assert_eq!(problem.parts().count(), problem.projections().len());
            assert_eq!(end, problem.rank(), "{problem:?}");
        }
    }

    #[test]
    fn scratch_holds_s_or_ds_and_any_partial_sums() {
        for problem in problems() {
            let (t, k, rank) = (problem.t, problem.k, problem.rank());
            let workspace = BackwardWorkspace::new(&problem, None);
            let (offset, elements) = (workspace.partials_offset(), workspace.elements());
            let context = format!("{problem:?}: {workspace:?}");
            assert!(t * rank * 2 <= 4 * offset, "dS runs into the sums: {context}");
            assert_eq!(4 * offset % 128, 0, "{context}");
            let da = GradSplit::new(t, rank, k);
            let mut all = vec![da];
            all.extend(problem.parts().map(|part| GradSplit::new(t, part.r, part.d)));
            for split in all {
                assert!(offset + split.partials() <= elements, "{context}");
                assert!(split.splits <= 65_535, "the limit of grid.y: {context}");
            }
            let forward = plan::forward_shared(&problem, Some(&profile(false)));
            let backward = plan::backward_shared(&problem, Some(&profile(false)));
            assert_eq!((forward.path, backward.path), (Path::Mma, Path::Mma));
            assert!(t * rank * 2 <= 4 * forward.scratch, "{context}");
            assert_eq!(backward.scratch, elements, "{context}");
            assert_eq!((forward.flags, backward.flags), (0, 0));
        }
    }

    #[test]
    fn a_projection_that_is_not_aligned_takes_all_to_the_generic_path() {
        let hopper = profile(true);
        let paths = |t, of: &[(usize, usize)]| {
            let problem = SharedProblem::new(t, 64, of, DType::Bf16).unwrap();
            let plans = [plan::forward_shared, plan::backward_shared];
            plans.map(|plan| plan(&problem, Some(&hopper)).path)
        };
        assert_eq!(paths(129, &[(40, 8), (24, 16)]), [Path::Hopper; 2]);
        assert_eq!(paths(128, &[(40, 8), (24, 16)]), [Path::HopperShort, Path::Hopper]);
        assert_eq!(paths(128, &[(40, 8), (28_672, 16)]), [Path::HopperDecode, Path::Hopper]);
        assert_eq!(paths(64, &[(40, 8), (24, 16)]), [Path::HopperDecode, Path::Hopper]);
        assert_eq!(paths(129, &[(40, 8), (20, 16)]), [Path::Mma; 2]);
        assert_eq!(paths(129, &[(40, 8), (24, 4)]), [Path::Mma; 2]);
        let most = (i32::MAX as usize - 1024) / 8 * 8;
        assert_eq!(paths(129, &[(most, 8); 2]), [Path::Mma; 2]);
    }

    #[test]
    fn the_cpu_needs_no_workspace() {
        for problem in problems() {
            for plan in
                [plan::forward_shared(&problem, None), plan::backward_shared(&problem, None)]
            {
                assert_eq!((plan.path, plan.scratch, plan.flags), (Path::Reference, 0, 0));
            }
        }
    }
}
