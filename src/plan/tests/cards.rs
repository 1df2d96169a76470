//! Plans for Ampere, Ada and consumer Blackwell: every launch has an instance and fits the card.

use super::card_shapes::CARDS;
use crate::dtype::DType;
use crate::manifest::sm80::linear::TILES;
use crate::plan::Needs;
use crate::plan::sm80::decode::{Instance, Launch};
use crate::plan::sm80::{GradSplit, LinearSchedule, LinearTile, ProjSplit};
use crate::plan::sm80::{
    backward_needs, copies_w0, copy_ctas, copy_needs, forward_needs, merge_blocks, padded,
    project_blocks, rank_tile, round_blocks,
};
use crate::plan::testing::{problems, shapes, single_problems};
use crate::plan::{DeviceProfile, Plan, Strategy, projection_elements};
use crate::plan::{backward, base_forward, base_input_grad, forward};
use crate::problem::{MAX_RANK, Problem};
use kernels::Cta;
use std::collections::{BTreeSet, HashMap};

#[allow(dead_code)] // What only build.rs needs.
#[path = "../../../kernels/manifest/kernels.rs"]
mod kernels;
#[allow(dead_code, unused_imports)] // As above.
#[path = "../../../kernels/manifest/shared.rs"]
mod shared;

/// Static shared memory beside dynamic, at most.
const STATIC_BYTES: usize = 64;

/// Of compute capability 8.6, 8.9 and 12.x. 8.0 has more.
const THREADS_PER_SM: usize = 1536;

/// An instance by its kernel's name and its axes, and a grid of it.
type Grid = ((&'static str, Vec<usize>), [usize; 2]);

/// What an operation may launch.
#[derive(Default)]
struct Launches {
    grids: Vec<Grid>,
    /// f32 elements of copies behind S or dS.
    copies: usize,
    /// f32 elements behind these, and flags, of each launch that needs any.
    workspaces: Vec<[usize; 2]>,
}

impl Launches {
    fn add(&mut self, name: &'static str, axes: &[usize], grid: [usize; 2]) {
        self.grids.push(((name, axes.to_vec()), grid));
    }

    /// With its output and without.
    fn decode(&mut self, name: &'static str, launch: &Launch) {
        let Instance { t, rows, splits, loads } = launch.instance;
        self.workspaces.push([launch.partials(), launch.flags()]);
        let without_out = (launch.da_tiles > 0).then(|| launch.without_out());
        for launch in [Some(*launch), without_out].into_iter().flatten() {
            self.add(name, &[t, rows, splits, loads], [launch.grid(), 1]);
        }
    }

    /// With `more` CTAs that compute projections and gradients.
    fn linear(
        &mut self,
        name: &'static str,
        [tile, unaligned]: [Option<LinearTile>; 2],
        output: [usize; 2],
        more: usize,
    ) {
        for (tile, shifts) in [(tile, 0), (unaligned, 1)] {
            let Some(tile) = tile else { continue };
            self.add(name, &[tile.m, tile.n, shifts], [tile.ctas(output) + more, 1]);
        }
    }

    fn project(&mut self, name: &'static str, t: usize, r: usize) {
        self.add(name, &[rank_tile(r)], [project_blocks(t, r, false), 1]);
    }

    /// The launch that copies matrices of these sizes, if one of them needs a copy, and the copies.
    fn align(&mut self, sizes: &[[usize; 2]]) {
        let copied = sizes.iter().copied().filter(|&size| copy_needs(size) != Needs::default());
        self.copies = copied.clone().map(|size| copy_needs(size).partials).sum();
        let ctas = copied.map(copy_ctas).sum();
        if ctas > 0 {
            self.add("align", &[], [ctas, 1]);
        }
    }

    /// H of every layer, with S if that is wanted. Its tiles serve rows that decode.cu does not.
    fn of_forward(&mut self, problem: &Problem, plan: &Plan, of: LinearSchedule, wants_s: bool) {
        let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
        match &plan.strategy {
            Strategy::MmaDecode(launches) => {
                launches.iter().flatten().for_each(|of| self.decode("decode_forward", of));
            }
            strategy => assert_eq!(*strategy, Strategy::Mma(of)),
        }
        let mut more = 0;
        if wants_s && of.short {
            more = layers.iter().map(|&(_, r)| ProjSplit::new([t, k, r]).ctas()).sum();
        }
        let copies_w0 = copies_w0(t, &plan.strategy);
        let w0 = layers.iter().filter(|_| copies_w0).map(|&(d, _)| [d, k]);
        let is_decode = matches!(plan.strategy, Strategy::MmaDecode(_));
        let x = (wants_s || !is_decode).then_some([t, k]);
        let a = wants_s.then_some([problem.rank(), k]);
        self.align(&w0.chain(x).chain(a).collect::<Vec<_>>());
        if wants_s && matches!(plan.strategy, Strategy::Mma(_)) {
            let Needs { partials, flags } = forward_needs(problem, of.short);
            self.workspaces.push([partials, flags]);
        }
        for (i, &(d, _)) in layers.iter().enumerate() {
            self.linear("linear_forward", [of.tiles[i], of.unaligned[i]], [t, d], more);
            more = 0;
        }
    }

    /// dX, likewise, with the gradients if they are wanted.
    fn of_input_grad(&mut self, problem: &Problem, plan: &Plan, of: LinearSchedule, wants: bool) {
        let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
        match &plan.strategy {
            Strategy::MmaDecode([Some(of), ..]) => self.decode("decode_input_grad", of),
            strategy => assert_eq!(*strategy, Strategy::Mma(of)),
        }
        // Few tokens copy W0 only for views that their launch does not serve.
        let is_decode = matches!(plan.strategy, Strategy::MmaDecode(_));
        let may_copy_w0 = is_decode || copies_w0(t, &plan.strategy);
        let w0 = layers.iter().filter(|_| may_copy_w0).map(|&(d, _)| [d, k]);
        let dh = layers.iter().map(|&(d, _)| [t, d]);
        let x_and_a = [[t, k], [problem.rank(), k]].into_iter().filter(|_| wants);
        self.align(&w0.chain(dh).chain(x_and_a).collect::<Vec<_>>());
        let mut more = 0;
        if wants {
            let each = layers.iter().map(|&(d, r)| {
                let ds = if of.short { ProjSplit::new([t, d, r]).ctas() } else { 0 };
                ds + GradSplit::new(t, r, d).ctas()
            });
            more = each.sum::<usize>() + GradSplit::new(t, problem.rank(), k).ctas();
            let Needs { partials, flags } = backward_needs(problem, of.short);
            self.workspaces.push([partials, flags]);
        }
        self.linear("linear_input_grad", [of.tiles[0], of.unaligned[0]], [t, k], more);
    }
}

/// Every operation's plan, and what it may launch.
fn operations(problem: &Problem, card: &DeviceProfile) -> Vec<(&'static str, Plan, Launches)> {
    let (t, k, layers) = (problem.t(), problem.k(), problem.projections());
    let of_copies = padded(problem);
    let [of_h, of_dx] = [LinearSchedule::forward, LinearSchedule::input_grad]
        .map(|of| of([t, of_copies.k()], of_copies.projections(), card));
    let mut all = Vec::new();
    let mut add = |name, plan: Plan, of: &dyn Fn(&mut Launches, &Plan)| {
        let mut launches = Launches::default();
        of(&mut launches, &plan);
        all.push((name, plan, launches));
    };
    add("forward", forward(problem, Some(card)), &|launches, plan| {
        launches.project("project_s", t, problem.rank());
        launches.of_forward(problem, plan, of_h, true);
    });
    add("backward", backward(problem, Some(card)), &|launches, plan| {
        launches.of_input_grad(problem, plan, of_dx, true);
        layers.iter().for_each(|&(_, r)| launches.project("project_ds", t, r));
    });
    if let [(d, r)] = *layers {
        add("base forward", base_forward(problem, Some(card)), &|launches, plan| {
            launches.of_forward(problem, plan, of_h, false);
        });
        add("base input grad", base_input_grad(problem, Some(card)), &|launches, plan| {
            launches.of_input_grad(problem, plan, of_dx, false);
        });
        let strategy = Strategy::Mma(LinearSchedule::NONE);
        let nothing = Plan { strategy, scratch: 0, flags: 0, copies: false };
        add("merge and round", nothing, &|launches, _| {
            launches.add("merge", &[], [merge_blocks([d, k]), 1]);
            launches.add("round", &[], [round_blocks([r * k, d * r].into_iter(), card.sms()), 1]);
        });
    }
    all
}

/// What each instance of kernels/sm80 needs.
fn instances() -> HashMap<(&'static str, Vec<usize>), Cta> {
    let all = kernels::kernels().into_iter().filter(|kernel| kernel.arch == "sm80");
    let each = all.flat_map(|kernel| {
        let name: &'static str = kernel.name.leak();
        let cta = kernel.cta;
        kernel.instances.into_iter().map(move |axes| ((name, axes.clone()), cta(&axes)))
    });
    each.collect()
}

/// Every launch has an instance, and fits the card's shared memory and a grid.
fn assert_fits(problem: &Problem, card: &DeviceProfile, there: &HashMap<(&str, Vec<usize>), Cta>) {
    for (operation, plan, Launches { grids, copies, workspaces }) in operations(problem, card) {
        let context = || format!("{operation} of {problem} on {}: {plan:?}", card.name());
        for (instance, [x, y]) in grids {
            let cta = there.get(&instance).unwrap_or_else(|| panic!("{instance:?} {}", context()));
            let shared_bytes = cta.shared_bytes + STATIC_BYTES;
            assert!(shared_bytes <= card.shared_bytes(), "{instance:?} {}", context());
            assert!((1..=i32::MAX as usize).contains(&x), "{instance:?} {x} {}", context());
            assert!((1..=65_535).contains(&y), "{instance:?} {y} {}", context());
            let [threads_x, threads_y] = cta.threads;
            let threads = threads_x * threads_y * cta.per_sm.unwrap_or(1);
            assert!(threads <= THREADS_PER_SM, "{instance:?}");
            // Clusters are Hopper's.
            assert_eq!(cta.cluster, 1, "{instance:?}");
        }
        // What launches need is there, and no more.
        let most = |i: usize| workspaces.iter().map(|of| of[i]).fold(0, usize::max);
        let s = match operation {
            "forward" | "backward" => projection_elements(problem),
            _ => 0,
        };
        assert!(operation != "forward" || problem.t() * problem.rank() * 2 <= 4 * s);
        assert_eq!((plan.scratch, plan.flags), (s + copies + most(0), most(1)), "{}", context());
        assert_eq!(plan.copies, copies > 0, "{}", context());
    }
}

#[test]
fn plans_fit_every_card() {
    let there = instances();
    let all: Vec<_> = single_problems().chain(problems()).collect();
    for card in DeviceProfile::presets() {
        for problem in &all {
            // As it is, and of fewer tokens.
            assert_fits(problem, &card, &there);
            let t = 1 + problem.t() % 16_384;
            let few = Problem::new(t, problem.k(), problem.projections(), DType::F16).unwrap();
            assert_fits(&few, &card, &there);
        }
    }
}

#[test]
fn plans_of_every_rank_fit_every_card() {
    let there = instances();
    for card in DeviceProfile::presets() {
        for r in 1..=MAX_RANK {
            for t in [1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 1000, 1024, 4096, 16_384] {
                for [k, d] in [[4096, 1024], [1024, 14_336], [517, 203]] {
                    let problem = Problem::single(t, k, d, r, DType::Bf16).unwrap();
                    assert_fits(&problem, &card, &there);
                }
            }
        }
    }
}

/// In the order of kernels/sm80/linear.cuh, each CTA of the grid has a tile of its own, inside the
/// output.
#[test]
fn tiles_cover_every_output_once() {
    for card in DeviceProfile::presets() {
        for [t, k, d, r] in shapes().step_by(8) {
            let [of_h, of_dx] = [LinearSchedule::forward, LinearSchedule::input_grad]
                .map(|of| of([t, k], &[(d, r)], &card).tiles[0].expect("there is an output"));
            for (tile, [m, n]) in [(of_h, [t, d]), (of_dx, [t, k])] {
                let ctas = tile.ctas([m, n]);
                if ctas > 20_000 {
                    continue;
                }
                let [tiles_m, tiles_n] = [m.div_ceil(tile.m), n.div_ceil(tile.n)];
                let group = 2048 / tile.m;
                let corner = |cta: usize| {
                    let (of, at) = (cta / (group * tiles_n), cta % (group * tiles_n));
                    let rows = group.min(tiles_m - of * group);
                    [(of * group + at % rows) * tile.m, at / rows * tile.n]
                };
                let corners: BTreeSet<_> = (0..ctas).map(corner).collect();
                let inside = |&[i, j]: &[usize; 2]| i < m && j < n;
                let context = format!("{m}×{n} on {}: {tile}", card.name());
                assert!(corners.iter().all(inside), "{context}");
                assert_eq!(corners.len(), tiles_m * tiles_n, "{context}");
            }
        }
    }
}

/// The instances that serve every pass of a layer of T, k, d and r.
fn serving([t, k, d, r]: [usize; 4], card: &DeviceProfile) -> BTreeSet<(&'static str, Vec<usize>)> {
    let problem = Problem::single(t, k, d, r, DType::Bf16).unwrap();
    let all = operations(&problem, card).into_iter();
    let all = all.filter(|(_, plan, _)| {
        !matches!(plan.strategy, Strategy::Mma(LinearSchedule { tiles: [None, ..], .. }))
    });
    let instances = all.flat_map(|(_, plan, launches)| {
        let few = matches!(plan.strategy, Strategy::MmaDecode(_));
        let grids = launches.grids.into_iter().map(|(instance, _)| instance);
        // Where decode.cu serves a pass, linear.cu serves operands of rows that are not aligned.
        grids.filter(move |(name, _)| name.starts_with("decode") == few)
    });
    instances.collect()
}

/// What tests/gpu/cards.rs runs reaches every instance that serves a layer on any of the cards.
#[test]
fn every_instance_is_compared_with_the_reference() {
    let tokens = [1, 8, 9, 16, 17, 32, 33, 64, 65, 100, 200, 500, 1000, 2048, 4096, 8192, 16_384];
    let sizes = [512, 1024, 4096, 5120, 8192, 14_336, 203];
    for card in DeviceProfile::presets() {
        let compared: BTreeSet<_> =
            CARDS.iter().flat_map(|&[t, d, k, r]| serving([t, k, d, r], &card)).collect();
        for t in tokens {
            for (k, d) in sizes.into_iter().flat_map(|k| sizes.map(|d| (k, d))) {
                for r in [9, 16, 64] {
                    for instance in serving([t, k, d, r], &card) {
                        let context = format!("T={t} k={k} d={d} r={r} on {}", card.name());
                        assert!(compared.contains(&instance), "{instance:?} of {context}");
                    }
                }
            }
        }
    }
}

/// Where tensor cores are slow, the FMAs of all waves, empty parts of tiles included, are nearly
/// all of the time.
#[test]
fn slow_tensor_cores_do_few_fmas() {
    for card in [DeviceProfile::rtx_3090(), DeviceProfile::rtx_4090(), DeviceProfile::rtx_5090()] {
        for [t, _, d, _] in shapes() {
            let fmas = |tile: LinearTile| tile.ctas([t, d]).div_ceil(card.sms()) * tile.m * tile.n;
            let chosen = LinearSchedule::forward([t, 4096], &[(d, 16)], &card);
            let chosen = chosen.tiles[0].expect("there is an output");
            // Long batches of a layer have the widest tiles, or none has.
            let is_widest = |[m, n]: &[usize; 2]| [*m, *n] == TILES[0];
            let widest = is_widest(&[chosen.m, chosen.n]);
            let all = TILES.iter().filter(|tile| t <= 2048 || is_widest(tile) == widest);
            let least = all.map(|&[m, n]| fmas(LinearTile { m, n })).min().expect("tiles");
            let chosen = fmas(chosen);
            assert!(chosen * 4 <= least * 5, "T={t} d={d} on {}", card.name());
        }
    }
}

/// To fill shared memory, at 64 bytes a clock, does not take longer than a step.
#[test]
fn filling_shared_memory_bounds_no_tile() {
    for card in DeviceProfile::presets() {
        for [m, n] in TILES {
            let bytes = (m + n) * 64 * 2;
            let [step, _] = LinearTile { m, n }.tile_clocks(&card);
            assert!((bytes / 64) as f64 <= step, "{m}×{n} on {}", card.name());
        }
    }
}

/// CTAs that share a tile of dX are one wave: a second wave costs what sharing saves.
#[test]
fn splits_of_an_input_grad_fit_one_wave() {
    let there = instances();
    for card in DeviceProfile::presets() {
        let mut several = 0;
        for [t, k, d, r] in shapes() {
            let [k, d, r] = [k, d, r].map(|size| size.next_multiple_of(8));
            let problem = Problem::single(1 + t % 32, k, d, r, DType::Bf16).unwrap();
            let Strategy::MmaDecode([Some(launch), ..]) = backward(&problem, Some(&card)).strategy
            else {
                panic!("{problem} is of many tokens");
            };
            let Instance { t, rows, splits, loads } = launch.instance;
            let cta = &there[&("decode_input_grad", vec![t, rows, splits, loads])];
            let fit = (card.shared_bytes() + 1024) / (cta.shared_bytes + 1024);
            let fit = fit.min(cta.per_sm.unwrap_or(1)) * card.sms();
            assert!(splits == 1 || launch.row_tiles * splits <= fit, "{problem}: {launch:?}");
            several += usize::from(splits > 1);
        }
        assert!(several > 0, "{}", card.name());
    }
}
