//! Every error that the operations and tensors can meet on the CPU device: its variant, the argument
//! and shapes it names, and that the outputs are left alone. tests/layer_errors.rs has the
//! errors of layers.

use half::{bf16, f16};
use lora_kernels::ops::{self, BaseForward, BaseInputGrad, GradientsMut, Projection, Weights};
use lora_kernels::{
    Accumulation, Adapter, DType, Device, Error, LayerGradients, LoraLinear, MAX_PROJECTIONS,
    Problem, Result, Shape, Tensor, TensorView, TensorViewMut, Workspace, WorkspaceSize,
};

const T: usize = 4;
const K: usize = 6;
/// d and r: of a single layer, and of a group.
const ONE: &[(usize, usize)] = &[(5, 2)];
const THREE: &[(usize, usize)] = &[(5, 2), (7, 1), (5, 3)];

/// What outputs hold before a call, and must hold after one that fails.
const UNTOUCHED: f32 = 7.5;

fn filled(value: f32, shape: &[usize], dtype: DType) -> Tensor {
    let shape = Shape::new(shape).unwrap();
    Tensor::from_f32(&Device::cpu(), &vec![value; shape.elements()], shape, dtype).unwrap()
}

/// The arguments of all operations, each a tensor that a test may replace by a wrong one.
struct Arguments {
    /// What the operations are made for.
    problem: Problem,
    x: Tensor,
    a: Tensor,
    w0: Vec<Tensor>,
    b: Vec<Tensor>,
    scale: Vec<f32>,
    dh: Vec<Tensor>,
    s: Tensor,
    h: Vec<Tensor>,
    dx: Tensor,
    da: Tensor,
    db: Vec<Tensor>,
    /// The merged weight of the first projection.
    out: Tensor,
    /// f32 masters of B of the first projection.
    master: Tensor,
    rounded: Tensor,
    workspace: Workspace,
}

impl Arguments {
    fn good(of: &[(usize, usize)]) -> Self {
        let input = |shape: [usize; 2]| filled(0.5, &shape, DType::Bf16);
        let output = |shape: [usize; 2], dtype| filled(UNTOUCHED, &shape, dtype);
        let problem = Problem::new(T, K, of, DType::Bf16).unwrap();
        let (rank, (d, r)) = (problem.rank(), of[0]);
        let each = |tensor: &dyn Fn(usize, usize) -> Tensor| {
            of.iter().map(|&(d, r)| tensor(d, r)).collect::<Vec<_>>()
        };
        Arguments {
            problem,
            x: input([T, K]),
            a: input([rank, K]),
            w0: each(&|d, _| input([d, K])),
            b: each(&|d, r| input([d, r])),
            scale: vec![1.0; of.len()],
            dh: each(&|d, _| input([T, d])),
            // An output of forward, an input of backward.
            s: output([T, rank], DType::Bf16),
            h: each(&|d, _| output([T, d], DType::Bf16)),
            dx: output([T, K], DType::Bf16),
            da: output([rank, K], DType::F32),
            db: each(&|d, r| output([d, r], DType::F32)),
            out: output([d, K], DType::Bf16),
            master: filled(0.5, &[d, r], DType::F32),
            rounded: output([d, r], DType::Bf16),
            workspace: Workspace::new(&Device::cpu(), WorkspaceSize::default()).unwrap(),
        }
    }

    fn run(&mut self, operation: Operation) -> Result<()> {
        let (cpu, problem) = (&Device::cpu(), &self.problem);
        let of = self.w0.iter().zip(&self.b).zip(&self.scale);
        let projections: Vec<_> =
            of.map(|((w0, b), &scale)| Projection::new(w0.view(), b.view(), scale)).collect();
        let weights = Weights::new(self.a.view(), &projections);
        let (x, workspace) = (self.x.view(), &mut self.workspace);
        match operation {
            Forward => {
                let mut h: Vec<_> = self.h.iter_mut().map(Tensor::view_mut).collect();
                let forward = ops::Forward::new(cpu, problem)?;
                forward.run(&weights, x, &mut h, self.s.view_mut(), workspace)
            }
            Backward | Params => {
                let dh: Vec<_> = self.dh.iter().map(Tensor::view).collect();
                let mut db: Vec<_> = self.db.iter_mut().map(Tensor::view_mut).collect();
                let accumulation = Accumulation::Overwrite;
                let out = GradientsMut { da: self.da.view_mut(), db: &mut db, accumulation };
                let (backward, s) = (ops::Backward::new(cpu, problem)?, self.s.view());
                match operation {
                    Params => backward.run_params(&weights, &dh, x, s, out, workspace),
                    _ => backward.run(&weights, &dh, x, s, self.dx.view_mut(), out, workspace),
                }
            }
            Base | BaseBackward => {
                let (w0, (d, _)) = (projections[0].w0, problem.projections()[0]);
                match operation {
                    Base => BaseForward::new(cpu, T, [d, K], DType::Bf16)?.run(
                        w0,
                        x,
                        self.h[0].view_mut(),
                    ),
                    _ => BaseInputGrad::new(cpu, T, [d, K], DType::Bf16)?.run(
                        w0,
                        self.dh[0].view(),
                        self.dx.view_mut(),
                    ),
                }
            }
            Merge | MergeInPlace => {
                let (&Projection { w0, b, scale, .. }, a) = (&projections[0], weights.a);
                match operation {
                    Merge => ops::merge(cpu, w0, a, b, scale, self.out.view_mut()),
                    _ => ops::merge_in_place(cpu, self.out.view_mut(), a, b, scale),
                }
            }
            Round => ops::round(cpu, &[self.master.view()], &mut [self.rounded.view_mut()]),
        }
    }

    fn assert_outputs_untouched(&self, case: &str) {
        let outputs = [&self.s, &self.dx, &self.da, &self.out, &self.rounded];
        for output in outputs.into_iter().chain(&self.h).chain(&self.db) {
            let values = output.to_f32_vec().unwrap();
            assert!(values.iter().all(|&v| v == UNTOUCHED), "{case}: an output was written");
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Forward,
    Base,
    Backward,
    Params,
    BaseBackward,
    Merge,
    MergeInPlace,
    Round,
}
use Operation::{Backward, Base, BaseBackward, Forward, Merge, MergeInPlace, Params, Round};

const ALL: &[Operation] =
    &[Forward, Base, Backward, Params, BaseBackward, Merge, MergeInPlace, Round];
/// The operations that take several projections.
const PASSES: &[Operation] = &[Forward, Backward, Params];
const BACKWARDS: &[Operation] = &[Backward, Params];
const ON_W0: &[Operation] = &[Forward, Base, Backward, Params, BaseBackward];
const ON_X: &[Operation] = &[Forward, Base, Backward, Params];
const ON_H: &[Operation] = &[Forward, Base];
const ON_DH: &[Operation] = &[Backward, Params, BaseBackward];
const ON_DX: &[Operation] = &[Backward, BaseBackward];
const MERGES: &[Operation] = &[Merge, MergeInPlace];

type Select = fn(&mut Arguments) -> &mut Tensor;
/// Which operations are to refuse which argument, if it is like what, in which words.
type Case<Wrong> = (&'static [Operation], Select, Wrong, &'static str);

#[test]
fn good_arguments_are_accepted() {
    for &operation in ALL {
        Arguments::good(ONE).run(operation).unwrap_or_else(|e| panic!("{operation:?}: {e}"));
    }
    for &operation in PASSES {
        Arguments::good(THREE).run(operation).unwrap_or_else(|e| panic!("{operation:?}: {e}"));
    }
}

/// Replaces something and checks what the operations say about it, in these words.
fn refused(
    of: &[(usize, usize)],
    operations: &[Operation],
    replace: impl Fn(&mut Arguments),
    expected: impl Fn(&Error) -> bool,
    words: &str,
) {
    for &operation in operations {
        let mut arguments = Arguments::good(of);
        replace(&mut arguments);
        let case = format!("{operation:?}, expecting {words}");
        let error = arguments.run(operation).expect_err(&case);
        assert!(expected(&error), "{case}: {error:?}");
        assert_eq!(error.to_string(), words, "{case}");
        arguments.assert_outputs_untouched(&case);
    }
}

/// What `words` say is wrong with the argument that they begin with.
fn argument_of(words: &str) -> &str {
    words.split(' ').next().unwrap()
}

fn shapes_are_refused(of: &[(usize, usize)], cases: &[Case<&'static [usize]>]) {
    for &(operations, select, wrong, words) in cases {
        let replace = |arguments: &mut Arguments| {
            let argument = select(arguments);
            *argument = filled(UNTOUCHED, wrong, argument.dtype());
        };
        let is_shape = |error: &Error| {
            matches!(error, Error::Shape { argument, got, .. }
                if *argument == argument_of(words) && got.dims() == wrong)
        };
        refused(of, operations, replace, is_shape, words);
    }
}

fn types_are_refused(of: &[(usize, usize)], cases: &[Case<DType>]) {
    for &(operations, select, wrong, words) in cases {
        let replace = |arguments: &mut Arguments| {
            let argument = select(arguments);
            *argument = filled(UNTOUCHED, argument.shape().dims(), wrong);
        };
        let is_dtype = |error: &Error| {
            matches!(error, Error::DType { argument, got, .. }
                if *argument == argument_of(words) && *got == wrong)
        };
        refused(of, operations, replace, is_dtype, words);
    }
}

#[test]
fn shapes_of_a_single_layer() {
    let cases: &[Case<&[usize]>] = &[
        // The problem decides the sizes of a pass; for a merge, W0 d and k, and A r.
        (ON_X, |x| &mut x.x, &[T, K + 1], "x has shape [4, 7], expected 4 rows of 6"),
        (ON_X, |x| &mut x.x, &[T + 1, K], "x has shape [5, 6], expected 4 rows of 6"),
        (ON_X, |x| &mut x.x, &[0, K], "x has shape [0, 6], expected 4 rows of 6"),
        (ON_W0, |x| &mut x.w0[0], &[5, K + 1], "w0 has shape [5, 7], expected [5, 6]"),
        (ON_W0, |x| &mut x.w0[0], &[5, 1, K], "w0 has shape [5, 1, 6], expected [5, 6]"),
        (ON_W0, |x| &mut x.w0[0], &[0, K], "w0 has shape [0, 6], expected [5, 6]"),
        (&[Merge], |x| &mut x.w0[0], &[5, 1, K], "w0 has shape [5, 1, 6], expected [5, 6]"),
        (PASSES, |x| &mut x.a, &[2, K - 1], "a has shape [2, 5], expected [2, 6]"),
        (PASSES, |x| &mut x.a, &[1, 2, K], "a has shape [1, 2, 6], expected [2, 6]"),
        (MERGES, |x| &mut x.a, &[2, K - 1], "a has shape [2, 5], expected [2, 6]"),
        (MERGES, |x| &mut x.a, &[1, 2, K], "a has shape [1, 2, 6], expected [2, 6]"),
        (PASSES, |x| &mut x.b[0], &[6, 2], "b has shape [6, 2], expected [5, 2]"),
        (PASSES, |x| &mut x.b[0], &[5, 3], "b has shape [5, 3], expected [5, 2]"),
        (PASSES, |x| &mut x.b[0], &[2, 5], "b has shape [2, 5], expected [5, 2]"),
        (MERGES, |x| &mut x.b[0], &[6, 2], "b has shape [6, 2], expected [5, 2]"),
        (MERGES, |x| &mut x.b[0], &[5, 3], "b has shape [5, 3], expected [5, 2]"),
        (MERGES, |x| &mut x.b[0], &[2, 5], "b has shape [2, 5], expected [5, 2]"),
        (ON_H, |x| &mut x.h[0], &[T, 6], "h has shape [4, 6], expected 4 rows of 5"),
        (ON_H, |x| &mut x.h[0], &[T - 1, 5], "h has shape [3, 5], expected 4 rows of 5"),
        (ON_H, |x| &mut x.h[0], &[5, T], "h has shape [5, 4], expected 4 rows of 5"),
        (PASSES, |x| &mut x.s, &[T, 3], "s has shape [4, 3], expected 4 rows of 2"),
        (PASSES, |x| &mut x.s, &[T + 1, 2], "s has shape [5, 2], expected 4 rows of 2"),
        (ON_DH, |x| &mut x.dh[0], &[T, 4], "dh has shape [4, 4], expected 4 rows of 5"),
        (ON_DH, |x| &mut x.dh[0], &[T + 1, 5], "dh has shape [5, 5], expected 4 rows of 5"),
        (ON_DX, |x| &mut x.dx, &[T, K + 1], "dx has shape [4, 7], expected 4 rows of 6"),
        (ON_DX, |x| &mut x.dx, &[K, T], "dx has shape [6, 4], expected 4 rows of 6"),
        (BACKWARDS, |x| &mut x.da, &[K, 2], "da has shape [6, 2], expected 2 rows of 6"),
        (BACKWARDS, |x| &mut x.db[0], &[2, 5], "db has shape [2, 5], expected 5 rows of 2"),
        (&[Merge], |x| &mut x.out, &[5, K + 1], "out has shape [5, 7], expected 5 rows of 6"),
        (&[Round], |x| &mut x.rounded, &[5, 3], "outputs has shape [5, 3], expected 5 rows of 2"),
        (&[Round], |x| &mut x.rounded, &[2, 5], "outputs has shape [2, 5], expected 5 rows of 2"),
    ];
    shapes_are_refused(ONE, cases);
}

#[test]
fn shapes_of_a_group() {
    let cases: &[Case<&[usize]>] = &[
        (
            PASSES,
            |x| &mut x.w0[1],
            &[7, K + 1],
            "projections[1].w0 has shape [7, 7], expected [7, 6]",
        ),
        (PASSES, |x| &mut x.w0[2], &[0, K], "projections[2].w0 has shape [0, 6], expected [5, 6]"),
        (PASSES, |x| &mut x.b[0], &[4, 2], "projections[0].b has shape [4, 2], expected [5, 2]"),
        (PASSES, |x| &mut x.b[2], &[5, 4], "projections[2].b has shape [5, 4], expected [5, 3]"),
        (PASSES, |x| &mut x.a, &[5, K], "a has shape [5, 6], expected [6, 6]"),
        (PASSES, |x| &mut x.a, &[6, K + 1], "a has shape [6, 7], expected [6, 6]"),
        (PASSES, |x| &mut x.s, &[T, 5], "s has shape [4, 5], expected 4 rows of 6"),
        (&[Forward], |x| &mut x.h[2], &[T, 4], "h[2] has shape [4, 4], expected 4 rows of 5"),
        (&[Forward], |x| &mut x.h[0], &[T + 1, 5], "h[0] has shape [5, 5], expected 4 rows of 5"),
        (BACKWARDS, |x| &mut x.dh[1], &[T, 5], "dh[1] has shape [4, 5], expected 4 rows of 7"),
        (BACKWARDS, |x| &mut x.db[1], &[1, 7], "db[1] has shape [1, 7], expected 7 rows of 1"),
        (BACKWARDS, |x| &mut x.da, &[K, 5], "da has shape [6, 5], expected 6 rows of 6"),
        (&[Backward], |x| &mut x.dx, &[T, 7], "dx has shape [4, 7], expected 4 rows of 6"),
    ];
    shapes_are_refused(THREE, cases);
}

#[test]
fn element_types() {
    let cases: &[Case<DType>] = &[
        (ON_X, |x| &mut x.x, DType::F32, "x holds f32, expected bf16"),
        (ON_W0, |x| &mut x.w0[0], DType::F16, "w0 holds f16, expected bf16"),
        (PASSES, |x| &mut x.a, DType::F16, "a holds f16, expected bf16"),
        (MERGES, |x| &mut x.a, DType::F16, "a holds f16, expected bf16"),
        (PASSES, |x| &mut x.b[0], DType::F32, "b holds f32, expected bf16"),
        (MERGES, |x| &mut x.b[0], DType::F32, "b holds f32, expected bf16"),
        (ON_H, |x| &mut x.h[0], DType::F32, "h holds f32, expected bf16"),
        (PASSES, |x| &mut x.s, DType::F16, "s holds f16, expected bf16"),
        (ON_DH, |x| &mut x.dh[0], DType::F16, "dh holds f16, expected bf16"),
        (ON_DX, |x| &mut x.dx, DType::F32, "dx holds f32, expected bf16"),
        (BACKWARDS, |x| &mut x.da, DType::Bf16, "da holds bf16, expected f32"),
        (BACKWARDS, |x| &mut x.db[0], DType::Bf16, "db holds bf16, expected f32"),
        (&[Merge], |x| &mut x.out, DType::F16, "out holds f16, expected bf16"),
        (&[Round], |x| &mut x.master, DType::F16, "sources holds f16, expected f32"),
        (&[Round], |x| &mut x.rounded, DType::F32, "outputs holds f32, expected bf16 or f16"),
    ];
    types_are_refused(ONE, cases);
    let cases: &[Case<DType>] = &[
        (PASSES, |x| &mut x.w0[2], DType::F16, "projections[2].w0 holds f16, expected bf16"),
        (PASSES, |x| &mut x.b[1], DType::F32, "projections[1].b holds f32, expected bf16"),
        (PASSES, |x| &mut x.a, DType::F16, "a holds f16, expected bf16"),
        (PASSES, |x| &mut x.s, DType::F32, "s holds f32, expected bf16"),
        (&[Forward], |x| &mut x.h[1], DType::F16, "h[1] holds f16, expected bf16"),
        (BACKWARDS, |x| &mut x.dh[0], DType::F32, "dh[0] holds f32, expected bf16"),
        (BACKWARDS, |x| &mut x.db[2], DType::Bf16, "db[2] holds bf16, expected f32"),
        (BACKWARDS, |x| &mut x.da, DType::Bf16, "da holds bf16, expected f32"),
    ];
    types_are_refused(THREE, cases);
}

/// dA and dB of an element type that the backward pass was not made for, or that does not exist.
#[test]
fn element_types_of_gradients() -> Result<()> {
    let backward = ops::Backward::new(&Device::cpu(), &Arguments::good(ONE).problem)?;
    let error = backward.with_gradients(DType::F16).unwrap_err();
    assert!(matches!(error, Error::DType { argument: "gradients", got: DType::F16, .. }));
    let words = "gradients holds f16, expected f32, or the element type of x";
    assert_eq!(error.to_string(), words);
    let narrow = backward.with_gradients(DType::Bf16)?;
    assert_eq!((backward.gradients(), narrow.gradients()), (DType::F32, DType::Bf16));

    let mut arguments = Arguments::good(ONE);
    let mut run = || {
        let Arguments { x, a, w0, b, dh, s, da, db, workspace, .. } = &mut arguments;
        let projections = [Projection::new(w0[0].view(), b[0].view(), 1.0)];
        let weights = Weights::new(a.view(), &projections);
        let (db, accumulation) = (&mut [db[0].view_mut()], Accumulation::Overwrite);
        let out = GradientsMut { da: da.view_mut(), db, accumulation };
        narrow.run_params(&weights, &[dh[0].view()], x.view(), s.view(), out, workspace)
    };
    assert_eq!(run().unwrap_err().to_string(), "da holds f32, expected bf16");
    arguments.assert_outputs_untouched("gradients");
    Ok(())
}

#[test]
fn numbers_of_projections() {
    let is_count = |error: &Error| matches!(error, Error::Count { .. });
    let each = "expected 3, one for every projection";
    let none = |x: &mut Arguments| x.w0.clear();
    refused(THREE, PASSES, none, is_count, &format!("projections is a list of 0, {each}"));
    let five = |x: &mut Arguments| {
        x.w0 = (0..5).map(|_| filled(0.5, &[5, K], DType::Bf16)).collect();
        x.b = (0..5).map(|_| filled(0.5, &[5, 2], DType::Bf16)).collect();
        x.scale = vec![1.0; 5];
    };
    refused(THREE, PASSES, five, is_count, &format!("projections is a list of 5, {each}"));
    let drop_h = |x: &mut Arguments| drop(x.h.pop());
    refused(THREE, &[Forward], drop_h, is_count, &format!("h is a list of 2, {each}"));
    let drop_dh = |x: &mut Arguments| x.dh.truncate(1);
    refused(THREE, BACKWARDS, drop_dh, is_count, &format!("dh is a list of 1, {each}"));
    let more_db = |x: &mut Arguments| x.db.push(filled(UNTOUCHED, &[5, 3], DType::F32));
    refused(THREE, BACKWARDS, more_db, is_count, &format!("db is a list of 4, {each}"));
}

#[test]
fn scales_and_ranks() {
    let is_scale = |error: &Error| matches!(error, Error::NotFinite { argument: "scale", .. });
    let adapted: Vec<_> = PASSES.iter().chain(MERGES).copied().collect();
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let words = format!("scale must be a finite number, got {wrong}");
        refused(ONE, &adapted, |x| x.scale[0] = wrong, is_scale, &words);
    }
    let is_scale = |error: &Error| matches!(error, Error::NotFinite { .. });
    let words = "projections[2].scale must be a finite number, got NaN";
    refused(THREE, PASSES, |x| x.scale[2] = f32::NAN, is_scale, words);

    for r in [0, 257] {
        let words = format!("rank {r} is outside 1..=256");
        let replace = |x: &mut Arguments| {
            x.a = filled(0.5, &[r, K], DType::Bf16);
            x.b[0] = filled(0.5, &[5, r], DType::Bf16);
        };
        refused(ONE, MERGES, replace, |error: &Error| *error == Error::Rank { r }, &words);
    }
}

#[test]
fn problems_have_one_to_four_projections_within_the_limits() {
    let new = |t, k, of: &[(usize, usize)]| Problem::new(t, k, of, DType::Bf16);
    let problem = new(4, 6, &[(5, 2), (7, 256)]).unwrap();
    assert_eq!((problem.projections(), problem.rank()), (&[(5, 2), (7, 256)][..], 258));
    for got in [0, MAX_PROJECTIONS + 1] {
        let error = new(4, 6, &vec![(5, 2); got]).unwrap_err();
        assert!(matches!(error, Error::Count { got: count, .. } if count == got), "{error}");
        assert_eq!(error.to_string(), format!("projections is a list of {got}, expected 1 to 4"));
    }
    for r in [0, 257] {
        assert_eq!(new(4, 6, &[(5, r)]), Err(Error::Rank { r }));
        assert_eq!(new(4, 6, &[(5, 2), (5, r)]), Err(Error::Rank { r }));
        assert_eq!(Error::Rank { r }.to_string(), format!("rank {r} is outside 1..=256"));
    }
    for (k, d, words) in [
        (0, 5, "x has shape [4, 0], expected at least one column"),
        (6, 0, "projections[1].w0 has shape [0, 6], expected at least one row and one column"),
    ] {
        let error = new(4, k, &[(5, 2), (d, 2)]).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        assert_eq!(error.to_string(), words);
    }
    let error = new(4, 6, &[(0, 2)]).unwrap_err().to_string();
    assert_eq!(error, "w0 has shape [0, 6], expected at least one row and one column");
    let error = new(4, 6, &[(5, 2), (1 << 31, 2)]).unwrap_err().to_string();
    assert_eq!(error, "projections[1].w0 of shape [2147483648, 6] is too large");
    // An empty batch is one.
    assert_eq!(new(0, 6, &[(5, 2)]).unwrap().t(), 0);
}

/// Problems and operations print their sizes.
#[test]
fn sizes_are_printed() -> Result<()> {
    let cpu = Device::cpu();
    let single = Problem::single(8192, 4096, 1024, 16, DType::Bf16)?;
    let group = Problem::new(33, 64, &[(4096, 16), (1024, 8)], DType::F16)?;
    for (problem, sizes) in [
        (single, &["T=8192", "k=4096", "d=1024", "r=16", "bf16"][..]),
        (group, &["T=33", "k=64", "(4096, 16)", "(1024, 8)", "f16"]),
    ] {
        let (forward, backward) =
            (ops::Forward::new(&cpu, &problem)?, ops::Backward::new(&cpu, &problem)?);
        let narrow = backward.with_gradients(problem.dtype())?;
        assert_eq!((forward.problem(), backward.problem()), (&problem, &problem));
        assert!(!forward.device().is_cuda() && !backward.device().is_cuda());
        let in_16_bits = format!("gradients in {}", problem.dtype());
        assert!(narrow.to_string().contains(&in_16_bits), "{narrow}");
        assert!(!backward.to_string().contains("gradients in"), "{backward}");
        let printed = [
            problem.to_string(),
            forward.to_string(),
            backward.to_string(),
            narrow.to_string(),
            format!("{forward:?}"),
            format!("{backward:?}"),
        ];
        for text in printed {
            assert!(sizes.iter().all(|size| text.contains(size)), "{text}");
        }
        for (text, words) in [
            (forward.to_string(), "forward T="),
            (backward.to_string(), "backward T="),
            (format!("{forward:?}"), " on cpu"),
            (format!("{backward:?}"), " on cpu"),
        ] {
            assert!(text.contains(words) && text.contains("reference"), "{text}");
        }
        assert_eq!(forward.path(), ops::Path::Reference);
        assert_eq!(backward.path(), ops::Path::Reference);
        assert_eq!(forward.workspace().max(narrow.workspace()).bytes(), 0, "none on the CPU");
    }
    let base = BaseForward::new(&cpu, 8192, [1024, 4096], DType::Bf16)?;
    let input_grad = BaseInputGrad::new(&cpu, 8192, [1024, 4096], DType::Bf16)?;
    for (text, name) in [
        (base.to_string(), "base forward"),
        (format!("{base:?}"), "base forward"),
        (input_grad.to_string(), "base input grad"),
        (format!("{input_grad:?}"), "base input grad"),
    ] {
        let words = [name, "T=8192", "k=4096", "d=1024", "bf16", "reference"];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    assert_eq!((base.path(), input_grad.path()), (ops::Path::Reference, ops::Path::Reference));
    assert!(!WorkspaceSize::default().to_string().is_empty());
    assert_eq!(TensorView::from_host(&[0f32; 6], [2, 3])?.to_string(), "f32 [2, 3]");
    Ok(())
}

/// The messages of errors that only a CUDA device can meet, and of texts.
#[test]
fn errors_say_what_happened() {
    let row_stride = Error::RowStride { argument: "da", got: 24 };
    let words = "da must have dense rows, but they start 24 elements apart";
    assert_eq!(row_stride.to_string(), words);
    let capture = Error::Capture { what: "no tensor can be copied to the host".into() };
    let words = "refused for the sake of a CUDA graph: no tensor can be copied to the host";
    assert_eq!(capture.to_string(), words);
    let parse = "gpu".parse::<Device>().unwrap_err();
    assert!(matches!(&parse, Error::Parse { got, .. } if got == "gpu"), "{parse:?}");
    assert_eq!(parse.to_string(), "\"gpu\" is not a device: cpu, cuda or cuda:1");
    let overlap = Error::Overlap { output: "h", other: "x" };
    assert_eq!(overlap.to_string(), "h is written, but shares memory with x");
    let workspace = Error::Workspace { part: "scratch", needed: 64, got: 3 };
    let words = "the workspace has 3 elements of scratch, but 64 are needed";
    assert_eq!(workspace.to_string(), words);
}

#[test]
fn lengths_types_and_devices_of_tensors() -> Result<()> {
    let cpu = Device::cpu();
    let shape = Shape::new(&[2, 3])?;
    let length = Error::Length { shape, got: 5 };
    assert_eq!(length.to_string(), "shape [2, 3] holds 6 elements, but 5 were given");
    assert_eq!(Tensor::from_slice(&cpu, &[0f32; 5], [2, 3]).unwrap_err(), length);
    assert_eq!(Tensor::from_f32(&cpu, &[0.0; 5], [2, 3], DType::F16).unwrap_err(), length);
    assert_eq!(TensorView::from_host(&[0f32; 5], [2, 3]).unwrap_err(), length);
    assert_eq!(TensorViewMut::from_host(&mut [0f32; 5], [2, 3]).unwrap_err(), length);

    let mut tensor = Tensor::from_slice(&cpu, &[1f32; 6], shape)?;
    assert_eq!(tensor.copy_from_slice(&[2f32; 5]).unwrap_err(), length);
    let wrong_type =
        |error: Error| matches!(error, Error::DType { argument: "tensor", got: DType::F32, .. });
    assert!(wrong_type(tensor.copy_from_slice(&[bf16::ONE; 6]).unwrap_err()));
    assert!(wrong_type(tensor.to_vec::<f16>().unwrap_err()));
    let other = Tensor::zeros(&cpu, [3, 2], DType::F32)?;
    let error = tensor.copy_from(&other).unwrap_err();
    assert_eq!(error.to_string(), "source has shape [3, 2], expected [2, 3]");
    let other = Tensor::zeros(&cpu, [2, 3], DType::F16)?;
    let error = tensor.copy_from(&other).unwrap_err();
    assert!(matches!(error, Error::DType { argument: "source", got: DType::F16, .. }));
    assert_eq!(tensor.to_vec::<f32>()?, [1.0; 6], "no failed copy wrote anything");

    // SAFETY: no address is used on the CPU, where the view is refused.
    let raw = unsafe { TensorView::from_raw(&cpu, 0x1000, [2, 3], 3, DType::F32) };
    assert!(matches!(raw.unwrap_err(), Error::Device { .. }));
    // SAFETY: as above.
    let raw = unsafe { TensorViewMut::from_raw(&cpu, 0x1000, [2, 3], 3, DType::F32) };
    assert!(matches!(raw.unwrap_err(), Error::Device { .. }));
    Ok(())
}

#[test]
fn tensors_hold_what_they_were_given() -> Result<()> {
    fn round_trip<E: lora_kernels::Element + PartialEq + std::fmt::Debug>() -> Result<()> {
        let values: Vec<E> = (0..6).map(|i| E::from_f64(f64::from(i) - 2.5)).collect();
        let cpu = Device::cpu();
        let tensor = Tensor::from_slice(&cpu, &values, [2, 3])?;
        assert_eq!((tensor.dtype(), tensor.bytes()), (E::DTYPE, 6 * size_of::<E>()));
        assert_eq!(tensor.to_vec::<E>()?, values);
        let mut copy = Tensor::zeros(&cpu, [2, 3], E::DTYPE)?;
        assert!(copy.to_vec::<E>()?.iter().all(|v| v.to_f64() == 0.0));
        copy.copy_from(&tensor)?;
        assert_eq!(copy.to_vec::<E>()?, values);
        copy.copy_from_slice(&[E::from_f64(1.0); 6])?;
        assert_eq!(tensor.try_clone()?.to_vec::<E>()?, values);
        assert_eq!(copy.to_f32_vec()?, [1.0; 6]);
        Ok(())
    }
    round_trip::<f32>()?;
    round_trip::<f16>()?;
    round_trip::<bf16>()
}

#[test]
fn too_large() {
    let problem = |t, k, d| Problem::single(t, k, d, 1, DType::Bf16).unwrap_err();
    for error in [problem(1 << 31, 1, 1), problem(1, 1 << 31, 1), problem(1, 1, 1 << 31)] {
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("2147483648"), "{error}");
    }
    let error = Tensor::zeros(&Device::cpu(), [1 << 40, 1 << 40], DType::F32).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("[1099511627776, 1099511627776]"), "{error}");
    let seven = Tensor::zeros(&Device::cpu(), [1; 7], DType::F32).unwrap_err();
    assert!(matches!(seven, Error::TooLarge { .. }), "{seven}");
}

/// On a machine without a GPU, the reason and what to do about it; never a panic.
#[test]
fn missing_devices() {
    for ordinal in [0, 999] {
        let message = match Device::cuda(ordinal) {
            Ok(device) => {
                assert_eq!(ordinal, 0, "there is no device 999");
                assert!(device.is_cuda());
                continue;
            }
            Err(Error::NoDevice { ordinal: named, count }) => {
                assert_eq!(named, ordinal);
                assert!(count <= ordinal);
                Error::NoDevice { ordinal, count }.to_string()
            }
            Err(error) => {
                let kinds = matches!(
                    error,
                    Error::NoDriver { .. }
                        | Error::KernelsNotBuilt { .. }
                        | Error::UnsupportedDevice { .. }
                        | Error::Driver { .. }
                );
                assert!(kinds, "{error:?}");
                error.to_string()
            }
        };
        assert!(message.contains("CUDA") || message.contains("capability"), "{message}");
    }
    let no_driver = Error::NoDriver { reason: "libcuda.so.1: not found".into() }.to_string();
    assert!(no_driver.contains("libcuda.so.1: not found; install"), "{no_driver}");
}

/// Layers move between threads, and are read by several at once.
#[test]
fn types_are_send_and_sync() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Device>();
    assert_send_sync::<Tensor>();
    assert_send_sync::<TensorView<'_>>();
    assert_send_sync::<TensorViewMut<'_>>();
    assert_send_sync::<Adapter>();
    assert_send_sync::<LoraLinear>();
    assert_send_sync::<lora_kernels::LayerOutput<'_>>();
    assert_send_sync::<lora_kernels::Saved<'_>>();
    assert_send_sync::<Workspace>();
    assert_send_sync::<ops::Forward>();
    assert_send_sync::<ops::Backward>();
    assert_send_sync::<BaseForward>();
    assert_send_sync::<BaseInputGrad>();
    assert_send_sync::<LayerGradients>();
    assert_send_sync::<Error>();
}
