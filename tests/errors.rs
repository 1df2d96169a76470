//! Every error that the CPU device can meet: its variant, the argument and shapes it names, and
//! that the outputs are left alone.

use half::{bf16, f16};
use lora_kernels::ops::{self, BackwardOutputs, Weights};
use lora_kernels::{
    Accumulation, Adapter, AdapterConfig, DType, Device, Error, Gradients, InputGradient,
    LoraLinear, Problem, Result, Scaling, Shape, Tensor, TensorView, TensorViewMut, Workspace,
};

const T: usize = 4;
const K: usize = 6;
const D: usize = 5;
const R: usize = 2;

/// What outputs hold before a call, and must hold after one that fails.
const UNTOUCHED: f32 = 7.5;

fn filled(value: f32, shape: &[usize], dtype: DType) -> Tensor {
    let shape = Shape::new(shape).unwrap();
    Tensor::from_f32(&Device::cpu(), &vec![value; shape.elements()], shape, dtype).unwrap()
}

/// The arguments of all operations, each a tensor that a test may replace by a wrong one.
struct Arguments {
    x: Tensor,
    w0: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor,
    dh: Tensor,
    h: Tensor,
    dx: Tensor,
    da: Tensor,
    db: Tensor,
    out: Tensor,
    workspace: Workspace,
    scale: f32,
}

impl Arguments {
    fn good() -> Self {
        let input = |shape: [usize; 2]| filled(0.5, &shape, DType::Bf16);
        let output = |shape: [usize; 2], dtype| filled(UNTOUCHED, &shape, dtype);
        Arguments {
            x: input([T, K]),
            w0: input([D, K]),
            a: input([R, K]),
            b: input([D, R]),
            // An output of forward, an input of backward.
            s: output([T, R], DType::Bf16),
            dh: input([T, D]),
            h: output([T, D], DType::Bf16),
            dx: output([T, K], DType::Bf16),
            da: output([R, K], DType::F32),
            db: output([D, R], DType::F32),
            out: output([D, K], DType::Bf16),
            workspace: Workspace::new(&Device::cpu(), &[]).unwrap(),
            scale: 1.0,
        }
    }

    fn run(&mut self, operation: Operation) -> Result<()> {
        let cpu = &Device::cpu();
        let weights =
            Weights { w0: self.w0.view(), a: self.a.view(), b: self.b.view(), scale: self.scale };
        let x = self.x.view();
        match operation {
            Operation::Forward => {
                let (h, s) = (self.h.view_mut(), self.s.view_mut());
                ops::forward(cpu, &weights, x, h, s, &mut self.workspace)
            }
            Operation::Frozen => ops::frozen(cpu, &weights.w0, x, self.h.view_mut()),
            Operation::Backward => {
                let out = BackwardOutputs {
                    dx: Some(self.dx.view_mut()),
                    da: self.da.view_mut(),
                    db: self.db.view_mut(),
                    accumulation: Accumulation::Overwrite,
                };
                let (dh, s) = (self.dh.view(), self.s.view());
                ops::backward(cpu, &weights, dh, x, s, out, &mut self.workspace)
            }
            Operation::Merge => ops::merge(cpu, &weights, self.out.view_mut()),
            Operation::MergeInPlace => {
                let Weights { a, b, scale, .. } = &weights;
                ops::merge_in_place(cpu, self.out.view_mut(), a, b, *scale)
            }
        }
    }

    fn assert_outputs_untouched(&self, case: &str) {
        let outputs = [&self.h, &self.s, &self.dx, &self.da, &self.db, &self.out];
        for output in outputs {
            let values = output.to_f32_vec().unwrap();
            assert!(values.iter().all(|&v| v == UNTOUCHED), "{case}: an output was written");
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Forward,
    Frozen,
    Backward,
    Merge,
    MergeInPlace,
}
use Operation::{Backward, Forward, Frozen, Merge, MergeInPlace};

/// Which operations are to refuse which argument, if it is like what; its name, and words of the
/// message.
type Case<Wrong> =
    (&'static [Operation], fn(&mut Arguments) -> &mut Tensor, Wrong, &'static str, &'static str);

const ALL: &[Operation] = &[Forward, Frozen, Backward, Merge, MergeInPlace];
const ADAPTED: &[Operation] = &[Forward, Backward, Merge, MergeInPlace];

#[test]
fn good_arguments_are_accepted() {
    for &operation in ALL {
        Arguments::good().run(operation).unwrap_or_else(|e| panic!("{operation:?}: {e}"));
    }
}

/// Replaces one argument and checks what each of the operations says about it.
fn refused(
    operations: &[Operation],
    replace: impl Fn(&mut Arguments),
    expected: impl Fn(&Error) -> bool,
    words: &[&str],
) {
    for &operation in operations {
        let mut arguments = Arguments::good();
        replace(&mut arguments);
        let case = format!("{operation:?}, expecting {words:?}");
        let error = arguments.run(operation).expect_err(&case);
        assert!(expected(&error), "{case}: {error:?}");
        let message = error.to_string();
        for word in words {
            assert!(message.contains(word), "{case}: {message}");
        }
        arguments.assert_outputs_untouched(&case);
    }
}

#[test]
fn shapes() {
    let cases: &[Case<&[usize]>] = &[
        // x decides T and k, w0 d, and a r: the others are held against these.
        (&[Forward, Backward], |x| &mut x.w0, &[D, K + 1], "w0", "[5, 6]"),
        (&[Frozen], |x| &mut x.w0, &[D, K + 1], "w0", "[5, 6]"),
        (&[Forward, Frozen, Backward], |x| &mut x.w0, &[D, 1, K], "w0", "[5, 6]"),
        (&[Merge], |x| &mut x.w0, &[D, 1, K], "w0", "[5, 6]"),
        (ADAPTED, |x| &mut x.a, &[R, K - 1], "a", "[2, 6]"),
        (ADAPTED, |x| &mut x.a, &[1, R, K], "a", "[2, 6]"),
        (ADAPTED, |x| &mut x.b, &[D + 1, R], "b", "[5, 2]"),
        (ADAPTED, |x| &mut x.b, &[D, R + 1], "b", "[5, 2]"),
        (ADAPTED, |x| &mut x.b, &[R, D], "b", "[5, 2]"),
        (&[Forward, Frozen], |x| &mut x.h, &[T, D + 1], "h", "4 rows of 5"),
        (&[Forward, Frozen], |x| &mut x.h, &[T - 1, D], "h", "4 rows of 5"),
        (&[Forward, Frozen], |x| &mut x.h, &[D, T], "h", "4 rows of 5"),
        (&[Forward, Backward], |x| &mut x.s, &[T, R + 1], "s", "4 rows of 2"),
        (&[Forward, Backward], |x| &mut x.s, &[T + 1, R], "s", "4 rows of 2"),
        (&[Backward], |x| &mut x.dh, &[T, D - 1], "dh", "4 rows of 5"),
        (&[Backward], |x| &mut x.dh, &[T + 1, D], "dh", "4 rows of 5"),
        (&[Backward], |x| &mut x.dx, &[T, K + 1], "dx", "4 rows of 6"),
        (&[Backward], |x| &mut x.dx, &[K, T], "dx", "4 rows of 6"),
        (&[Backward], |x| &mut x.da, &[K, R], "da", "2 rows of 6"),
        (&[Backward], |x| &mut x.db, &[R, D], "db", "5 rows of 2"),
        (&[Merge], |x| &mut x.out, &[D, K + 1], "out", "5 rows of 6"),
        (&[Forward, Frozen, Backward], |x| &mut x.x, &[0, K], "x", "at least one row"),
        (&[Forward, Frozen, Backward], |x| &mut x.w0, &[0, K], "w0", "at least one row"),
    ];
    for &(operations, select, wrong, name, expected) in cases {
        let replace = |arguments: &mut Arguments| {
            let argument = select(arguments);
            *argument = filled(UNTOUCHED, wrong, argument.dtype());
        };
        let is_shape = |error: &Error| {
            matches!(error, Error::Shape { argument, got, .. }
                if *argument == name && got.dims() == wrong)
        };
        refused(operations, replace, is_shape, &[name, expected, &format!("{wrong:?}")]);
    }
}

#[test]
fn element_types() {
    let cases: &[Case<DType>] = &[
        (&[Forward, Frozen, Backward], |x| &mut x.w0, DType::F16, "w0", "bf16"),
        (ADAPTED, |x| &mut x.a, DType::F16, "a", "bf16"),
        (ADAPTED, |x| &mut x.b, DType::F32, "b", "bf16"),
        (&[Forward, Frozen], |x| &mut x.h, DType::F32, "h", "bf16"),
        (&[Forward, Backward], |x| &mut x.s, DType::F16, "s", "bf16"),
        (&[Backward], |x| &mut x.dh, DType::F16, "dh", "bf16"),
        (&[Backward], |x| &mut x.dx, DType::F32, "dx", "bf16"),
        (&[Backward], |x| &mut x.da, DType::Bf16, "da", "f32"),
        (&[Backward], |x| &mut x.db, DType::Bf16, "db", "f32"),
        (&[Merge], |x| &mut x.out, DType::F16, "out", "bf16"),
        (
            &[Forward, Backward],
            |x| &mut x.workspace.scratch,
            DType::Bf16,
            "workspace.scratch",
            "f32",
        ),
    ];
    for &(operations, select, wrong, name, expected) in cases {
        let replace = |arguments: &mut Arguments| {
            let argument = select(arguments);
            *argument = filled(UNTOUCHED, argument.shape().dims(), wrong);
        };
        let is_dtype = |error: &Error| {
            matches!(error, Error::DType { argument, got, .. }
                if *argument == name && *got == wrong)
        };
        refused(operations, replace, is_dtype, &[name, expected, &wrong.to_string()]);
    }
}

#[test]
fn scales_and_ranks() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let is_scale = |error: &Error| matches!(error, Error::NotFinite { argument: "scale", .. });
        refused(ADAPTED, |x| x.scale = wrong, is_scale, &["scale", "finite", &wrong.to_string()]);
    }
    for r in [0, 257] {
        let replace = |arguments: &mut Arguments| {
            arguments.a = filled(0.5, &[r, K], DType::Bf16);
            arguments.b = filled(0.5, &[D, r], DType::Bf16);
        };
        let is_rank = |error: &Error| *error == Error::Rank { r };
        refused(ADAPTED, replace, is_rank, &[&format!("rank {r}"), "1..=256"]);
    }
}

#[test]
fn adapters_and_layers() {
    let cpu = Device::cpu();
    let bf16 = |shape: &[usize]| filled(0.5, shape, DType::Bf16);
    let from = |a, b, alpha| Adapter::from_tensors(a, b, alpha, Scaling::Standard).map(drop);
    let configured =
        |config: AdapterConfig| Adapter::for_weight(&cpu, [D, K], DType::Bf16, &config).map(drop);
    let default = AdapterConfig::default;
    let adapter = |dtype| {
        let (a, b) = (filled(0.5, &[R, K], dtype), filled(0.5, &[D, R], dtype));
        Adapter::from_tensors(a, b, 1.0, Scaling::Standard).unwrap()
    };
    let layer = |w0| LoraLinear::new(w0, adapter(DType::Bf16)).map(drop);
    let forward =
        |x| LoraLinear::new(bf16(&[D, K]), adapter(DType::Bf16)).unwrap().forward(&x).map(drop);
    let backward = |s: Tensor, da: Tensor| {
        let layer = LoraLinear::new(bf16(&[D, K]), adapter(DType::Bf16)).unwrap();
        let (x, dh) = (bf16(&[T, K]), bf16(&[T, D]));
        let mut grads = Gradients { a: da, b: filled(0.5, &[D, R], DType::F32) };
        let (set, skip) = (Accumulation::Overwrite, InputGradient::Skip);
        layer.backward(&dh, &x, &s, &mut grads, set, skip).map(drop)
    };
    let f32_gradient = || filled(0.5, &[R, K], DType::F32);

    let cases: Vec<(Result<()>, &str)> = vec![
        (from(bf16(&[1, R, K]), bf16(&[D, R]), 1.0), "a has shape [1, 2, 6], expected [r, k]"),
        (from(bf16(&[R, K]), bf16(&[D, 3]), 1.0), "b has shape [5, 3], expected [d, r]"),
        (
            from(bf16(&[R, K]), filled(0.5, &[D, R], DType::F16), 1.0),
            "b holds f16, expected the element type of a",
        ),
        (from(bf16(&[R, K]), bf16(&[D, R]), f32::NAN), "alpha must be a finite number, got NaN"),
        (from(bf16(&[R, K]), bf16(&[D, R]), f32::INFINITY), "alpha must be a finite number"),
        (from(bf16(&[0, K]), bf16(&[D, 0]), 1.0), "rank 0 is outside 1..=256"),
        (from(bf16(&[257, K]), bf16(&[D, 257]), 1.0), "rank 257 is outside 1..=256"),
        (from(bf16(&[R, 0]), bf16(&[D, R]), 1.0), "expected at least one row and one column"),
        (configured(AdapterConfig { rank: 0, ..default() }), "rank 0"),
        (configured(AdapterConfig { rank: 257, ..default() }), "rank 257"),
        (configured(AdapterConfig { alpha: f32::NAN, ..default() }), "alpha must be"),
        (configured(AdapterConfig { init_std: Some(f32::NAN), ..default() }), "init_std must be"),
        (layer(bf16(&[K, D])), "w0 has shape [6, 5], expected [5, 6]"),
        (layer(filled(0.5, &[D, K], DType::F32)), "w0 holds f32, expected"),
        (forward(bf16(&[T, K + 1])), "x has shape [4, 7], expected [..., 6]"),
        (forward(filled(0.5, &[T, K], DType::F32)), "holds"),
        (backward(bf16(&[T, R + 1]), f32_gradient()), "s has shape [4, 3], expected 4 rows of 2"),
        (backward(bf16(&[T, R]), bf16(&[R, K])), "da holds bf16, expected f32"),
    ];
    for (result, words) in cases {
        let message = result.expect_err(words).to_string();
        assert!(message.contains(words), "{message}, expected: {words}");
    }
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
    let raw = unsafe { TensorView::from_raw(&cpu, 0x1000, [2, 3], DType::F32) };
    assert!(matches!(raw.unwrap_err(), Error::Device { .. }));
    // SAFETY: as above.
    let raw = unsafe { TensorViewMut::from_raw(&cpu, 0x1000, [2, 3], DType::F32) };
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
    let problem = |t, k, d| Problem::new(t, k, d, 1, DType::Bf16).unwrap_err();
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
    assert_send_sync::<lora_kernels::SharedLoraLinear>();
    assert_send_sync::<Gradients>();
    assert_send_sync::<Error>();
}
