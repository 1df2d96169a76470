//! The arguments of all operations, and what is refused of them.

use super::filled;
use lora_kernels::WorkspaceSize;
use lora_kernels::ops::{self, BaseForward, BaseInputGrad, GradientsMut, Projection, Weights};
use lora_kernels::{Accumulation, DType, Device, Error, Problem, Result, Tensor, Workspace};

pub const T: usize = 4;
pub const K: usize = 6;
/// d and r: of a single layer, and of a group.
pub const ONE: &[(usize, usize)] = &[(5, 2)];
pub const THREE: &[(usize, usize)] = &[(5, 2), (7, 1), (5, 3)];

/// What outputs hold before a call, and must hold after one that fails.
pub const UNTOUCHED: f32 = 7.5;

/// The arguments of all operations, each a tensor that a test may replace by a wrong one.
pub struct Arguments {
    /// What the operations are made for.
    pub problem: Problem,
    pub x: Tensor,
    pub a: Tensor,
    pub w0: Vec<Tensor>,
    pub b: Vec<Tensor>,
    pub scale: Vec<f32>,
    pub dh: Vec<Tensor>,
    pub s: Tensor,
    pub h: Vec<Tensor>,
    pub dx: Tensor,
    pub da: Tensor,
    pub db: Vec<Tensor>,
    /// The merged weight of the first projection.
    pub out: Tensor,
    /// f32 masters of B of the first projection.
    pub master: Tensor,
    pub rounded: Tensor,
    pub workspace: Workspace,
}

impl Arguments {
    pub fn good(of: &[(usize, usize)]) -> Self {
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

    pub fn run(&mut self, operation: Operation) -> Result<()> {
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
                        workspace,
                    ),
                    _ => BaseInputGrad::new(cpu, T, [d, K], DType::Bf16)?.run(
                        w0,
                        self.dh[0].view(),
                        self.dx.view_mut(),
                        workspace,
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

    pub fn assert_outputs_untouched(&self, case: &str) {
        let outputs = [&self.s, &self.dx, &self.da, &self.out, &self.rounded];
        for output in outputs.into_iter().chain(&self.h).chain(&self.db) {
            let values = output.to_f32_vec().unwrap();
            assert!(values.iter().all(|&v| v == UNTOUCHED), "{case}: an output was written");
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Operation {
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

pub const ALL: &[Operation] =
    &[Forward, Base, Backward, Params, BaseBackward, Merge, MergeInPlace, Round];
/// The operations that take several projections.
pub const PASSES: &[Operation] = &[Forward, Backward, Params];
pub const BACKWARDS: &[Operation] = &[Backward, Params];
pub const ON_W0: &[Operation] = &[Forward, Base, Backward, Params, BaseBackward];
pub const ON_X: &[Operation] = &[Forward, Base, Backward, Params];
pub const ON_H: &[Operation] = &[Forward, Base];
pub const ON_DH: &[Operation] = &[Backward, Params, BaseBackward];
pub const ON_DX: &[Operation] = &[Backward, BaseBackward];
pub const MERGES: &[Operation] = &[Merge, MergeInPlace];

pub type Select = fn(&mut Arguments) -> &mut Tensor;
/// Which operations are to refuse which argument, if it is like what, in which words.
pub type Case<Wrong> = (&'static [Operation], Select, Wrong, &'static str);

/// Replaces something and checks what the operations say about it, in these words.
pub fn refused(
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

pub fn shapes_are_refused(of: &[(usize, usize)], cases: &[Case<&'static [usize]>]) {
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

pub fn types_are_refused(of: &[(usize, usize)], cases: &[Case<DType>]) {
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
