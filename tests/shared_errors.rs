//! What the operations on projections that share their input refuse on the CPU device: the variant,
//! the argument and shapes it names, and that the outputs are left alone.

use lora_kernels::ops::{self, Projection, SharedBackwardOutputs, SharedWeights};
use lora_kernels::{
    Accumulation, DType, Device, Error, Result, Shape, SharedProblem, Tensor, Workspace,
    MAX_PROJECTIONS,
};

const T: usize = 4;
const K: usize = 6;
/// d and r of each.
const SIZES: [[usize; 2]; 3] = [[5, 2], [7, 1], [5, 3]];
const R: usize = 6;

/// What outputs hold before a call, and must hold after one that fails.
const UNTOUCHED: f32 = 7.5;

fn filled(value: f32, shape: &[usize], dtype: DType) -> Tensor {
    let shape = Shape::new(shape).unwrap();
    Tensor::from_f32(&Device::cpu(), &vec![value; shape.elements()], shape, dtype).unwrap()
}

/// The arguments of both passes, each of which a test may replace by a wrong one.
struct Arguments {
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
    workspace: Workspace,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Forward,
    Backward,
}
use Operation::{Backward, Forward};

const BOTH: &[Operation] = &[Forward, Backward];

impl Arguments {
    fn good() -> Self {
        let input = |shape: [usize; 2]| filled(0.5, &shape, DType::Bf16);
        let output = |shape: [usize; 2], dtype| filled(UNTOUCHED, &shape, dtype);
        Arguments {
            x: input([T, K]),
            a: input([R, K]),
            w0: SIZES.map(|[d, _]| input([d, K])).into(),
            b: SIZES.map(|[d, r]| input([d, r])).into(),
            scale: vec![1.0; 3],
            dh: SIZES.map(|[d, _]| input([T, d])).into(),
            // An output of forward, an input of backward.
            s: output([T, R], DType::Bf16),
            h: SIZES.map(|[d, _]| output([T, d], DType::Bf16)).into(),
            dx: output([T, K], DType::Bf16),
            da: output([R, K], DType::F32),
            db: SIZES.map(|[d, r]| output([d, r], DType::F32)).into(),
            workspace: Workspace::new(&Device::cpu(), &[]).unwrap(),
        }
    }

    fn run(&mut self, operation: Operation) -> Result<()> {
        let cpu = &Device::cpu();
        let of = self.w0.iter().zip(&self.b).zip(&self.scale);
        let projections: Vec<_> =
            of.map(|((w0, b), &scale)| Projection { w0: w0.view(), b: b.view(), scale }).collect();
        let weights = SharedWeights { a: self.a.view(), projections: &projections };
        let (x, workspace) = (self.x.view(), &mut self.workspace);
        match operation {
            Forward => {
                let mut h: Vec<_> = self.h.iter_mut().map(Tensor::view_mut).collect();
                ops::forward_shared(cpu, &weights, x, &mut h, self.s.view_mut(), workspace)
            }
            Backward => {
                let dh: Vec<_> = self.dh.iter().map(Tensor::view).collect();
                let mut db: Vec<_> = self.db.iter_mut().map(Tensor::view_mut).collect();
                let out = SharedBackwardOutputs {
                    dx: Some(self.dx.view_mut()),
                    da: self.da.view_mut(),
                    db: &mut db,
                    accumulation: Accumulation::Overwrite,
                };
                ops::backward_shared(cpu, &weights, &dh, x, self.s.view(), out, workspace)
            }
        }
    }

    fn assert_outputs_untouched(&self, case: &str) {
        let single = [&self.s, &self.dx, &self.da];
        for output in single.into_iter().chain(&self.h).chain(&self.db) {
            let values = output.to_f32_vec().unwrap();
            assert!(values.iter().all(|&v| v == UNTOUCHED), "{case}: an output was written");
        }
    }
}

#[test]
fn good_arguments_are_accepted() {
    for &operation in BOTH {
        Arguments::good().run(operation).unwrap_or_else(|e| panic!("{operation:?}: {e}"));
    }
}

/// Replaces something and checks what the operations say about it, in these words.
fn refused(
    operations: &[Operation],
    replace: impl Fn(&mut Arguments),
    expected: impl Fn(&Error) -> bool,
    words: &str,
) {
    for &operation in operations {
        let mut arguments = Arguments::good();
        replace(&mut arguments);
        let case = format!("{operation:?}, expecting {words}");
        let error = arguments.run(operation).expect_err(&case);
        assert!(expected(&error), "{case}: {error:?}");
        assert_eq!(error.to_string(), words, "{case}");
        arguments.assert_outputs_untouched(&case);
    }
}

type Select = fn(&mut Arguments) -> &mut Tensor;

#[test]
fn shapes() {
    // x decides T and k, each w0 a d and each b an r: the others are held against these.
    let cases: &[(&[Operation], Select, &[usize], &str)] = &[
        (
            BOTH,
            |x| &mut x.w0[1],
            &[7, K + 1],
            "projections[1].w0 has shape [7, 7], expected [7, 6]",
        ),
        (
            BOTH,
            |x| &mut x.w0[2],
            &[0, K],
            "projections[2].w0 has shape [0, 6], expected at least \
                                           one row and one column",
        ),
        (BOTH, |x| &mut x.b[0], &[4, 2], "projections[0].b has shape [4, 2], expected [5, 2]"),
        (BOTH, |x| &mut x.b[2], &[5, 4], "a has shape [6, 6], expected [7, 6]"),
        (BOTH, |x| &mut x.a, &[R - 1, K], "a has shape [5, 6], expected [6, 6]"),
        (BOTH, |x| &mut x.a, &[R, K + 1], "a has shape [6, 7], expected [6, 6]"),
        (BOTH, |x| &mut x.s, &[T, R - 1], "s has shape [4, 5], expected 4 rows of 6"),
        (&[Forward], |x| &mut x.h[2], &[T, 4], "h[2] has shape [4, 4], expected 4 rows of 5"),
        (&[Forward], |x| &mut x.h[0], &[T + 1, 5], "h[0] has shape [5, 5], expected 4 rows of 5"),
        (&[Backward], |x| &mut x.dh[1], &[T, 5], "dh[1] has shape [4, 5], expected 4 rows of 7"),
        (&[Backward], |x| &mut x.db[1], &[1, 7], "db[1] has shape [1, 7], expected 7 rows of 1"),
        (&[Backward], |x| &mut x.da, &[K, R - 1], "da has shape [6, 5], expected 6 rows of 6"),
        (&[Backward], |x| &mut x.dx, &[T, R + 1], "dx has shape [4, 7], expected 4 rows of 6"),
    ];
    for &(operations, select, wrong, words) in cases {
        let replace = |arguments: &mut Arguments| {
            let argument = select(arguments);
            *argument = filled(UNTOUCHED, wrong, argument.dtype());
        };
        refused(operations, replace, |error| matches!(error, Error::Shape { .. }), words);
    }
}

#[test]
fn element_types() {
    let cases: &[(&[Operation], Select, DType, &str)] = &[
        (BOTH, |x| &mut x.w0[2], DType::F16, "projections[2].w0 holds f16, expected bf16, as x"),
        (BOTH, |x| &mut x.b[1], DType::F32, "projections[1].b holds f32, expected bf16, as x"),
        (BOTH, |x| &mut x.a, DType::F16, "a holds f16, expected bf16, as x"),
        (BOTH, |x| &mut x.s, DType::F32, "s holds f32, expected bf16, as x"),
        (&[Forward], |x| &mut x.h[1], DType::F16, "h[1] holds f16, expected bf16, as x"),
        (&[Backward], |x| &mut x.dh[0], DType::F32, "dh[0] holds f32, expected bf16, as x"),
        (&[Backward], |x| &mut x.db[2], DType::Bf16, "db[2] holds bf16, expected f32"),
        (&[Backward], |x| &mut x.da, DType::Bf16, "da holds bf16, expected f32"),
    ];
    for &(operations, select, wrong, words) in cases {
        let replace = |arguments: &mut Arguments| {
            let argument = select(arguments);
            *argument = filled(UNTOUCHED, argument.shape().dims(), wrong);
        };
        refused(operations, replace, |error| matches!(error, Error::DType { .. }), words);
    }
}

#[test]
fn numbers_of_projections() {
    let is_count = |error: &Error| matches!(error, Error::Count { .. });
    let none = |x: &mut Arguments| x.w0.clear();
    refused(BOTH, none, is_count, "projections is a list of 0, expected 1 to 4");
    let five = |x: &mut Arguments| {
        x.w0 = (0..5).map(|_| filled(0.5, &[5, K], DType::Bf16)).collect();
        x.b = (0..5).map(|_| filled(0.5, &[5, 2], DType::Bf16)).collect();
        x.scale = vec![1.0; 5];
    };
    refused(BOTH, five, is_count, "projections is a list of 5, expected 1 to 4");
    let each = "expected 3, one for every projection";
    let drop_h = |x: &mut Arguments| drop(x.h.pop());
    refused(&[Forward], drop_h, is_count, &format!("h is a list of 2, {each}"));
    let drop_dh = |x: &mut Arguments| x.dh.truncate(1);
    refused(&[Backward], drop_dh, is_count, &format!("dh is a list of 1, {each}"));
    let more_db = |x: &mut Arguments| x.db.push(filled(UNTOUCHED, &[5, 3], DType::F32));
    refused(&[Backward], more_db, is_count, &format!("db is a list of 4, {each}"));
}

#[test]
fn scales_and_ranks() {
    let is_scale = |error: &Error| matches!(error, Error::NotFinite { .. });
    let words = "projections[2].scale must be a finite number, got NaN";
    refused(BOTH, |x| x.scale[2] = f32::NAN, is_scale, words);
    for r in [0, 257] {
        let is_rank = |error: &Error| *error == Error::Rank { r };
        let words = format!("rank {r} is outside 1..=256");
        refused(BOTH, |x| x.b[1] = filled(0.5, &[7, r], DType::Bf16), is_rank, &words);
    }
}

#[test]
fn problems_have_one_to_four_projections_within_the_limits() {
    let new = |t, k, of: &[(usize, usize)]| SharedProblem::new(t, k, of, DType::Bf16);
    let problem = new(4, 6, &[(5, 2), (7, 256)]).unwrap();
    assert_eq!((problem.projections(), problem.rank()), (&[(5, 2), (7, 256)][..], 258));
    for got in [0, MAX_PROJECTIONS + 1] {
        let error = new(4, 6, &vec![(5, 2); got]).unwrap_err();
        assert!(matches!(error, Error::Count { got: count, .. } if count == got), "{error}");
    }
    assert_eq!(new(4, 6, &[(5, 2), (5, 0)]), Err(Error::Rank { r: 0 }));
    assert_eq!(new(4, 6, &[(5, 2), (5, 257)]), Err(Error::Rank { r: 257 }));
    for (t, k, d, name) in [(0, 6, 5, "x"), (4, 0, 5, "x"), (4, 6, 0, "projections[1].w0")] {
        let error = new(t, k, &[(5, 2), (d, 2)]).unwrap_err();
        assert!(matches!(error, Error::Shape { argument, .. } if argument == name), "{error}");
    }
    let error = new(4, 6, &[(5, 2), (1 << 31, 2)]).unwrap_err().to_string();
    assert_eq!(error, "projections[1].w0 of shape [2147483648, 6] is too large");
}
