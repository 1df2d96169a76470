//! Every kernel: its file, what it is instantiated for, and what a CTA of it needs.
//!
//! From this table codegen.rs writes the entry points, at the foot of each kernel file as
//! `instances/ARCH/FILE.cuh`, and in Rust a field of `sm80::Kernels` or `sm90a::Kernels` for each
//! kernel. To add a tile, add its number to constants.rs.

use super::shared::{sm80, sm90a};

/// A kernel and its instances.
pub struct Kernel {
    /// Its file is kernels/ARCH/FILE.cu.
    pub arch: &'static str,
    pub file: &'static str,
    /// Entry points are called NAME_AXISvalue_ELEMENT, with all axes.
    pub name: String,
    /// What instances differ in, and the values of each.
    pub axes: &'static [&'static str],
    pub instances: Vec<Vec<usize>>,
    /// The struct of params.rs it takes, and the name of that in C++, where it may have functions.
    pub params: String,
    pub cpp_params: String,
    /// What an entry point calls with its parameters `p`, given the element type {E} and each axis.
    pub body: &'static str,
    /// What a CTA needs, by the values of the axes.
    pub cta: fn(&[usize]) -> Cta,
}

pub struct Cta {
    pub threads: [usize; 2],
    /// CTAs that must fit on an SM, by their registers, if that is not left to the compiler.
    pub per_sm: Option<usize>,
    /// CTAs of a cluster.
    pub cluster: usize,
    /// Dynamic shared memory, at most.
    pub shared_bytes: usize,
}

impl Cta {
    /// With `stages` buffers for m×k and n×k elements of 16 bits.
    fn of_tiles(threads: usize, stages: usize, [m, n, k]: [usize; 3]) -> Self {
        let shared_bytes = stages * (m + n) * k * 2;
        Cta { threads: [threads, 1], per_sm: None, cluster: 1, shared_bytes }
    }

    /// With an SM to itself, and so many bytes behind its pipeline.
    fn of_sm(cluster: usize, behind: usize) -> Self {
        use sm90a::ptx::{PIPELINE_BYTES, SHARED_ALIGNMENT, THREE_WARPGROUPS};
        let shared_bytes = PIPELINE_BYTES + behind + SHARED_ALIGNMENT;
        Cta { threads: [THREE_WARPGROUPS, 1], per_sm: Some(1), cluster, shared_bytes }
    }
}

/// All combinations of the values of two axes.
fn product(first: &[usize], second: &[usize]) -> Vec<Vec<usize>> {
    first.iter().flat_map(|&a| second.iter().map(move |&b| vec![a, b])).collect()
}

/// A kernel that takes dropout behind the parameters of the one without, in this file.
fn with_dropout(file: &'static str, kernel: Kernel) -> Kernel {
    let of = |params: &str| format!("WithDropout<{params}>");
    let (params, cpp_params) = (of(&kernel.params), of(&kernel.cpp_params));
    Kernel { file, params, cpp_params, ..kernel }
}

/// One axis.
fn each(values: &[usize]) -> Vec<Vec<usize>> {
    values.iter().map(|&value| vec![value]).collect()
}

pub fn kernels() -> Vec<Kernel> {
    let mut kernels = of_sm80();
    kernels.extend(of_linear("linear", "linear_dropout", false));
    kernels.extend(of_linear("linear_group", "linear_group_dropout", true));
    kernels.extend(of_sm90a());
    kernels
}

fn of_sm80() -> Vec<Kernel> {
    use sm80::{align, decode, linear, merge, project, round, tile::RANK_TILES};
    let kernel = |file, name: &str, params: &'static str, body, cta| Kernel {
        arch: "sm80",
        file,
        name: name.to_string(),
        axes: &[],
        instances: vec![vec![]],
        params: params.to_string(),
        cpp_params: params.to_string(),
        body,
        cta,
    };
    let by_rank = |kernel: Kernel| Kernel { axes: &["r"], instances: each(&RANK_TILES), ..kernel };
    let linear_in = |name, body, tiles: &[[usize; 2]], unaligned: &[[usize; 2]]| {
        let cta: fn(&[usize]) -> Cta = |axes| Cta {
            threads: [linear::THREADS, 1],
            per_sm: Some(if axes[0] == 64 && axes[2] == 0 { 2 } else { 1 }),
            cluster: 1,
            shared_bytes: linear::STAGES_BYTES,
        };
        let by_shifts = [(tiles, 0), (unaligned, 1)].into_iter();
        let instances = by_shifts
            .flat_map(|(tiles, shifts)| tiles.iter().map(move |&[m, n]| vec![m, n, shifts]))
            .collect();
        let kernel = kernel("linear", name, "LinearParams", body, cta);
        Kernel { axes: &["m", "n", "shifts"], instances, ..kernel }
    };
    let linear = |name, body| linear_in(name, body, &linear::TILES, &linear::UNALIGNED_TILES);
    let project = |name, body, of_cta: fn(&[usize]) -> Cta| {
        by_rank(kernel("project", name, "ProjectParams", body, of_cta))
    };
    let whole_cta: fn(&[usize]) -> Cta = |axes| {
        use project::{STAGES, THREADS, TILE_K, TILE_M};
        Cta::of_tiles(THREADS, STAGES, [TILE_M, axes[0], TILE_K])
    };
    let dropout_cta: fn(&[usize]) -> Cta = |axes| {
        use project::{DROPOUT_CTAS_PER_SM, DROPOUT_STAGES, DROPOUT_TILE_M, DROPOUT_WARPS};
        if axes[0] > RANK_TILES[0] {
            use project::{STAGES, THREADS, TILE_K, TILE_M};
            return Cta::of_tiles(THREADS, STAGES, [TILE_M, axes[0], TILE_K]);
        }
        let (threads, tile_k) = (DROPOUT_WARPS * 32, DROPOUT_WARPS * 32);
        let cta = Cta::of_tiles(threads, DROPOUT_STAGES, [DROPOUT_TILE_M, axes[0], tile_k]);
        Cta { per_sm: Some(DROPOUT_CTAS_PER_SM), ..cta }
    };
    let decode = |name, body, instances: &[[usize; 4]]| {
        use decode::{BY_SHIFTING_LANES, BY_STAGES, LANES_SHARED_BYTES, SHARED_BYTES, THREADS};
        let of_cta: fn(&[usize]) -> Cta = |axes| {
            let &[_, rows, _, loads] = axes else { unreachable!("four axes") };
            let shared_bytes = match loads {
                BY_STAGES => SHARED_BYTES,
                _ => LANES_SHARED_BYTES,
            };
            let per_sm = if rows == 32 && loads == BY_SHIFTING_LANES { 1 } else { 2 };
            Cta { threads: [THREADS, 1], per_sm: Some(per_sm), cluster: 1, shared_bytes }
        };
        let instances = instances.iter().map(|instance| instance.to_vec()).collect();
        let axes = &["t", "rows", "splits", "loads"];
        Kernel { axes, instances, ..kernel("decode", name, "DecodeParams", body, of_cta) }
    };
    vec![
        kernel("align", "align", "AlignParams", "align_rows(p);", |_| {
            let threads = [align::THREADS, 1];
            Cta { threads, per_sm: None, cluster: 1, shared_bytes: 0 }
        }),
        decode(
            "decode_forward",
            "decode<{E}, Major::K, {t}, {rows}, {splits}, {loads}>(p);",
            &decode::FORWARD,
        ),
        decode(
            "decode_input_grad",
            "decode<{E}, Major::MN, {t}, {rows}, {splits}, {loads}>(p);",
            &decode::INPUT_GRAD,
        ),
        linear("linear_forward", "linear<{E}, {m}, {n}, {shifts}, Major::K>(p);"),
        linear("linear_input_grad", "linear<{E}, {m}, {n}, {shifts}, Major::MN>(p);"),
        with_dropout(
            "linear_dropout",
            linear_in(
                "linear_input_grad_dropout",
                "linear<{E}, {m}, {n}, {shifts}, Major::MN>(p.pass, p.dropout);",
                &linear::DROPOUT_TILES,
                &linear::UNALIGNED_DROPOUT_TILES,
            ),
        ),
        project("project_s", "project<{E}, {r}, Major::K>(p);", whole_cta),
        with_dropout(
            "project",
            project(
                "project_s_dropout",
                "project<{E}, {r}, Major::K>(p.pass, p.dropout);",
                dropout_cta,
            ),
        ),
        project("project_ds", "project<{E}, {r}, Major::MN>(p);", whole_cta),
        kernel("merge", "merge", "MergeParams", "merge<{E}>(p);", |_| {
            use merge::{STAGES, STEP_R, THREADS, TILE_D, TILE_K};
            Cta::of_tiles(THREADS, STAGES, [TILE_D, TILE_K, STEP_R])
        }),
        kernel("round", "round", "RoundParams", "round<{E}>(p);", |_| {
            let threads = [round::THREADS, 1];
            Cta { threads, per_sm: None, cluster: 1, shared_bytes: 0 }
        }),
    ]
}

/// The two passes of linear.cuh, for one layer or for a group that shares X, and the input gradient
/// with dropout. A slice of 0 columns is none.
fn of_linear(file: &'static str, dropout_file: &'static str, group: bool) -> [Kernel; 3] {
    use sm90a::linear::{DROPOUT_TILES_N, FORWARD_TILES_N, SLICES, TILES_N};
    let kernel = |pass, params: &str, major, body, instances| Kernel {
        arch: "sm90a",
        file,
        name: format!("{file}_{pass}"),
        axes: &["slice", "n"],
        instances,
        params: params.to_string(),
        cpp_params: format!("HopperLinearParams<Major::{major}, {group}>"),
        body,
        cta: |_| Cta::of_sm(2, sm90a::linear_layout::BARRIER_BYTES),
    };
    let instances = |tiles_n: &[usize], of_slices: &[usize]| {
        let mut instances = product(&[0], tiles_n);
        instances.extend(product(&SLICES, of_slices));
        instances
    };
    let input_grad = |pass, body, instances| kernel(pass, "InputGradParams", "MN", body, instances);
    [
        kernel(
            "forward",
            "ForwardParams",
            "K",
            "hopper_linear<{E}, {n}, Major::K, {slice}>(p);",
            instances(&FORWARD_TILES_N, &TILES_N),
        ),
        input_grad(
            "input_grad",
            "hopper_linear<{E}, {n}, Major::MN, {slice}>(p);",
            instances(&TILES_N, &TILES_N),
        ),
        with_dropout(
            dropout_file,
            input_grad(
                "input_grad_dropout",
                "hopper_linear<{E}, {n}, Major::MN, {slice}>(p.pass, p.dropout);",
                instances(&DROPOUT_TILES_N, &DROPOUT_TILES_N),
            ),
        ),
    ]
}

fn of_sm90a() -> Vec<Kernel> {
    use sm90a::{decode, grads, short};
    let kernel = |file, name: &str, axes, instances, params: &'static str, body, cta| Kernel {
        arch: "sm90a",
        file,
        name: name.to_string(),
        axes,
        instances,
        params: params.to_string(),
        cpp_params: params.to_string(),
        body,
        cta,
    };
    let of_short: fn(&[usize]) -> Cta = |_| Cta::of_sm(2, short::BARRIER_BYTES);
    fn of_decode(warps: usize, half_tokens: usize, tokens: usize) -> Cta {
        Cta {
            threads: [32 * warps, 1],
            per_sm: Some(if tokens <= half_tokens { 2 } else { 1 }),
            cluster: 2,
            shared_bytes: decode::MAX_SHARED_BYTES,
        }
    }
    let grads = |name, body| {
        kernel("grads", name, &["r"], each(&grads::RANK_TILES), "HopperGradsParams", body, |_| {
            Cta::of_sm(1, 0)
        })
    };
    vec![
        grads("grads", "hopper_grads<{E}, {r}>(p);"),
        with_dropout("grads", grads("grads_dropout", "hopper_grads<{E}, {r}>(p.pass, p.dropout);")),
        kernel(
            "decode",
            "decode_forward",
            &["t"],
            each(&decode::TILES_T),
            "HopperDecodeParams",
            "hopper_decode<{E}, {t}, Major::K>(p, nullptr);",
            |axes| of_decode(decode::CONSUMER_WARPS + 1, decode::FORWARD_HALF_TOKENS, axes[0]),
        ),
        kernel(
            "decode",
            "decode_input_grad",
            &["t"],
            each(&decode::INPUT_GRAD_TILES_T),
            "HopperDecodeBackwardParams",
            "hopper_decode<{E}, {t}, Major::MN>(p.product, &p.grads);",
            |axes| {
                use decode::{CONSUMER_WARPS, GRAD_WARPS, INPUT_GRAD_HALF_TOKENS};
                of_decode(CONSUMER_WARPS + GRAD_WARPS + 1, INPUT_GRAD_HALF_TOKENS, axes[0])
            },
        ),
        kernel(
            "short",
            "short_forward",
            &["m", "n"],
            product(&short::TILES_M, &short::FORWARD_TILES_N),
            "HopperShortParams",
            "hopper_short<{E}, {m}, {n}, Major::K>(p, nullptr);",
            of_short,
        ),
        kernel(
            "short",
            "short_input_grad",
            &["m", "n"],
            product(&short::TILES_M, &short::INPUT_GRAD_TILES_N),
            "HopperShortBackwardParams",
            "hopper_short<{E}, {m}, {n}, Major::MN>\
             (p.product, p.grads.da == nullptr ? nullptr : &p.grads);",
            of_short,
        ),
    ]
}
