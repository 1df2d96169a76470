//! Tensors on a GPU, memory borrowed from the caller, and what a CUDA device refuses.

use crate::common::random::{reals, rng};
use crate::common::{DeviceElement, Inputs, Sizes, assert_same_bits};
use crate::cuda::cuda;
use half::{bf16, f16};
use lora_kernels::cudarc::driver::{CudaSlice, DevicePtr};
use lora_kernels::ops::{self, BaseForward, BaseInputGrad, Forward, GradientsMut, Path};
use lora_kernels::ops::{Projection, Weights};
use lora_kernels::{
    Accumulation, DType, Device, Error, Problem, Result, Tensor, TensorView, TensorViewMut,
    Workspace, WorkspaceSize,
};

const SIZES: Sizes = Sizes::new(33, 40, 24, 8);

#[test]
#[ignore = "needs a CUDA GPU"]
fn tensors_hold_what_they_were_given() -> Result<()> {
    fn round_trip<E: DeviceElement>() -> Result<()> {
        let device = cuda();
        let values: Vec<E> = reals(&mut rng(1), 6 * 35, 1.0);
        let tensor = Tensor::from_slice(&device, &values, [2, 3, 35])?;
        assert_eq!((tensor.dtype(), tensor.bytes()), (E::DTYPE, 6 * 35 * size_of::<E>()));
        assert_same_bits("tensor", &tensor.to_vec::<E>()?, &values);

        let mut copy = Tensor::zeros(&device, [2, 3, 35], E::DTYPE)?;
        assert_same_bits("zeros", &copy.to_vec::<E>()?, &[E::zeroed(); 6 * 35]);
        copy.copy_from(&tensor)?;
        assert_same_bits("copy", &copy.to_vec::<E>()?, &values);
        let clone = tensor.try_clone()?;
        copy.copy_from_slice(&[E::from_f64(1.0); 6 * 35])?;
        assert_eq!(copy.to_f32_vec()?, [1.0; 6 * 35]);
        assert_same_bits("clone", &clone.to_vec::<E>()?, &values);

        let empty = Tensor::zeros(&device, [0], E::DTYPE)?;
        assert_eq!(empty.to_vec::<E>()?.len(), 0);
        empty.try_clone()?;
        Ok(())
    }
    round_trip::<f32>()?;
    round_trip::<f16>()?;
    round_trip::<bf16>()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn out_of_memory_is_an_error_and_no_more() -> Result<()> {
    let device = cuda();
    let error = Tensor::zeros(&device, [1 << 43], DType::Bf16).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { bytes: 1 << 44 });
    let tensor = Tensor::from_slice(&device, &[1f32, 2.0], [2])?;
    assert_eq!(tensor.to_vec::<f32>()?, [1.0, 2.0]);
    device.synchronize()
}

/// The base layer on tensors of the crate, to compare others with.
struct Owned {
    device: Device,
    inputs: Inputs<bf16>,
    base: BaseForward,
    x: Tensor,
    w0: Tensor,
    h: Vec<bf16>,
}

fn owned() -> Result<Owned> {
    let [t, k, d, _] = SIZES.single();
    let (device, inputs) = (cuda(), Inputs::<bf16>::reals(SIZES, 4));
    let base = BaseForward::new(&device, t, [d, k], DType::Bf16)?;
    let x = Tensor::from_slice(&device, &inputs.x, [t, k])?;
    let w0 = Tensor::from_slice(&device, &inputs.of[0].w0, [d, k])?;
    let mut h = Tensor::zeros(&device, [t, d], DType::Bf16)?;
    base.run(w0.view(), x.view(), h.view_mut(), &mut Workspace::new(&device, base.workspace())?)?;
    let h = h.to_vec()?;
    assert!(h.iter().any(|&v| v != bf16::ZERO));
    Ok(Owned { device, inputs, base, x, w0, h })
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn borrowed_slices_and_raw_addresses() -> Result<()> {
    let Owned { device, inputs, base, h: want, .. } = owned()?;
    let [t, k, d, _] = SIZES.single();
    let stream = device.stream().expect("a CUDA device");
    let x = stream.clone_htod(&inputs.x).expect("x");
    let w0 = stream.clone_htod(&inputs.of[0].w0).expect("w0");
    let mut h = stream.clone_htod(&vec![bf16::NAN; t * d + 2]).expect("h");

    let mut part = h.slice_mut(1..1 + t * d);
    base.run(
        TensorView::from_cuda(&w0.as_view(), [d, k])?,
        TensorView::from_cuda(&x, [t, k])?,
        TensorViewMut::from_cuda(&mut part, [t, d])?,
        &mut Workspace::new(&device, base.workspace())?,
    )?;
    let got = stream.clone_dtoh(&h).expect("h");
    device.synchronize()?;
    assert_same_bits("h in a slice", &got[1..1 + t * d], &want);
    assert!(got[0].is_nan() && got[1 + t * d].is_nan());

    stream.memcpy_htod(&vec![bf16::NAN; t * d + 2], &mut h).expect("h");
    let address = |slice: &dyn DevicePtr<bf16>| slice.device_ptr(stream).0;
    // SAFETY: all three outlive the call and its work, which the copy back waits for; they do
    // not overlap.
    let (x_view, w0_view, h_view) = unsafe {
        (
            TensorView::from_raw(&device, address(&x), [t, k], k, DType::Bf16)?,
            TensorView::from_raw(&device, address(&w0), [d, k], k, DType::Bf16)?,
            TensorViewMut::from_raw(&device, address(&h) + 2, [t, d], d, DType::Bf16)?,
        )
    };
    base.run(w0_view, x_view, h_view, &mut Workspace::new(&device, base.workspace())?)?;
    let got = stream.clone_dtoh(&h).expect("h");
    device.synchronize()?;
    assert_same_bits("h at an address", &got[1..1 + t * d], &want);
    assert!(got[0].is_nan() && got[1 + t * d].is_nan());

    let short = x.slice(1..);
    let short = TensorView::from_cuda(&short, [t, k]).unwrap_err();
    assert!(matches!(short, Error::Length { got, .. } if got == t * k - 1));
    let short = TensorViewMut::from_cuda(&mut h.slice_mut(..t * d - 1), [t, d]).unwrap_err();
    assert!(matches!(short, Error::Length { got, .. } if got == t * d - 1));
    Ok(())
}

/// A tensor that was narrowed along its last dimension ends with its last row.
#[test]
#[ignore = "needs a CUDA GPU"]
fn strided_slices() -> Result<()> {
    let Owned { device, inputs, base, w0, h: want, .. } = owned()?;
    let [t, k, d, _] = SIZES.single();
    let stream = device.stream().expect("a CUDA device");
    let wide = |values: &[bf16], cols: usize, stride: usize| -> Vec<bf16> {
        let mut rows = vec![bf16::NAN; t * stride];
        for (row, values) in rows.chunks_mut(stride).zip(values.chunks(cols)) {
            row[..cols].copy_from_slice(values);
        }
        rows.truncate((t - 1) * stride + cols);
        rows
    };
    for (x_stride, h_stride) in [(k + 8, d + 16), (k + 3, d + 1), (k, d + 8)] {
        let x = stream.clone_htod(&wide(&inputs.x, k, x_stride)).expect("x");
        let mut h = stream.clone_htod(&wide(&vec![bf16::NAN; t * d], d, h_stride)).expect("h");
        let x_view = TensorView::from_cuda_strided(&x, [t, k], x_stride)?;
        let h_view = TensorViewMut::from_cuda_strided(&mut h, [t, d], h_stride)?;
        assert_eq!((x_view.row_stride(), h_view.row_stride()), (x_stride, h_stride));
        base.run(w0.view(), x_view, h_view, &mut Workspace::new(&device, base.workspace())?)?;
        let got = stream.clone_dtoh(&h).expect("h");
        device.synchronize()?;
        assert_same_bits("h with its gaps", &got, &wide(&want, d, h_stride));

        let short = x.slice(1..);
        let short = TensorView::from_cuda_strided(&short, [t, k], x_stride).unwrap_err();
        assert!(matches!(short, Error::Length { .. }), "{short}");
        let narrow = TensorView::from_cuda_strided(&x, [t, k], k - 1).unwrap_err();
        assert!(matches!(narrow, Error::Shape { .. }), "{narrow}");
    }
    Ok(())
}

/// The h of some rows of x are those rows of h, wherever x is.
#[test]
#[ignore = "needs a CUDA GPU"]
fn rows_of_views() -> Result<()> {
    let Owned { device, inputs, x, w0, h: want, .. } = owned()?;
    let [t, k, d, _] = SIZES.single();
    let stream = device.stream().expect("a CUDA device");
    let slice = stream.clone_htod(&inputs.x).expect("x");
    let address = slice.device_ptr(stream).0;
    for rows in [0..t, 3..20, t - 1..t, 5..5] {
        let base = BaseForward::new(&device, rows.len(), [d, k], DType::Bf16)?;
        // SAFETY: `slice` outlives the work, which the copy back waits for.
        let raw = unsafe { TensorView::from_raw(&device, address, [t, k], k, DType::Bf16)? };
        for view in [x.view(), TensorView::from_cuda(&slice, [t, k])?, raw] {
            let part = view.rows(rows.clone())?;
            let mut h = Tensor::zeros(&device, [rows.len(), d], DType::Bf16)?;
            base.run(
                w0.view(),
                part,
                h.view_mut(),
                &mut Workspace::new(&device, base.workspace())?,
            )?;
            let want = &want[rows.start * d..rows.end * d];
            assert_same_bits(&format!("h of {rows:?}"), &h.to_vec::<bf16>()?, want);
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn misaligned_addresses_are_refused() {
    let device = cuda();
    for (address, dtype) in [(0x1001, DType::Bf16), (0x1003, DType::F16), (0x1002, DType::F32)] {
        let misaligned = Error::Misaligned { address, dtype };
        // SAFETY: the views are refused, so that nothing can use the address.
        let view = unsafe { TensorView::from_raw(&device, address, [1, 1], 1, dtype) };
        assert_eq!(view.unwrap_err(), misaligned);
        // SAFETY: as above.
        let view = unsafe { TensorViewMut::from_raw(&device, address, [1, 1], 1, dtype) };
        assert_eq!(view.unwrap_err(), misaligned);
        assert!(misaligned.to_string().contains(&format!("{address:#x}")));
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn outputs_that_share_memory_are_refused() -> Result<()> {
    // d = k, so that h fits over x and over w0.
    let device = cuda();
    let (t, k) = (33, 40);
    let stream = device.stream().expect("a CUDA device");
    let values: Vec<bf16> = reals(&mut rng(3), 3 * t * k, 1.0);
    let memory = stream.clone_htod(&values).expect("memory");
    let start = memory.device_ptr(stream).0;
    let x_at = start + (t * k * 2) as u64;
    let w0 = Tensor::from_slice(&device, &values[..k * k], [k, k])?;
    let base = BaseForward::new(&device, t, [k, k], DType::Bf16)?;
    let run = |h_at| {
        // SAFETY: both lie within `memory`, which outlives the work: `Ok` is followed by a copy.
        let (x, h) = unsafe {
            (
                TensorView::from_raw(&device, x_at, [t, k], k, DType::Bf16)?,
                TensorViewMut::from_raw(&device, h_at, [t, k], k, DType::Bf16)?,
            )
        };
        base.run(w0.view(), x, h, &mut Workspace::new(&device, base.workspace())?)
    };
    let bytes = (t * k * 2) as u64;
    for h_at in [x_at, x_at + 2, x_at - 2, x_at + bytes - 2, x_at - bytes + 2] {
        assert_eq!(run(h_at).unwrap_err(), Error::Overlap { output: "h", other: "x" });
    }
    let unchanged = stream.clone_dtoh(&memory).expect("memory");
    assert_same_bits("memory after refusals", &unchanged, &values);

    // Side by side is no overlap.
    run(x_at - bytes)?;
    run(x_at + bytes)?;
    let after = stream.clone_dtoh(&memory).expect("memory");
    device.synchronize()?;
    let (before, rest) = after.split_at(t * k);
    assert_same_bits("h on both sides", before, &rest[t * k..]);
    assert_same_bits("x", &rest[..t * k], &values[t * k..2 * t * k]);
    Ok(())
}

/// Two outputs over each other.
#[test]
#[ignore = "needs a CUDA GPU"]
fn outputs_are_held_apart() -> Result<()> {
    let Operands { device, op, scale, w0, a, b, x, s, dh, .. } = Operands::new()?;
    let [_, k, d, r] = SIZES.single();
    let mut workspace = Workspace::new(&device, op.workspace())?;
    let stream = device.stream().expect("a CUDA device");
    let raw = stream.alloc_zeros::<f32>(r * k + d * r).expect("memory");
    let start = raw.device_ptr(stream).0;
    let at = |element: usize| start + 4 * element as u64;
    let mut backward = |da_at: usize, db_at: usize| -> Result<()> {
        // SAFETY: both lie within `raw`, which outlives the calls: every one is refused, but the
        // last, and that is waited for.
        let (da, db) = unsafe {
            (
                TensorViewMut::from_raw(&device, at(da_at), [r, k], k, DType::F32)?,
                TensorViewMut::from_raw(&device, at(db_at), [d, r], r, DType::F32)?,
            )
        };
        let out = GradientsMut { da, db: &mut [db], accumulation: Accumulation::Overwrite };
        let projections = [Projection::new(w0.view(), b.view(), scale)];
        let weights = Weights::new(a.view(), &projections);
        op.run_params(&weights, &[dh.view()], x.view(), s.view(), out, &mut workspace)
    };
    let error = backward(0, r * k - 1).unwrap_err();
    assert_eq!(error, Error::Overlap { output: "db", other: "da" });
    backward(0, r * k)?;
    device.synchronize()
}

/// The operands of a backward pass on the device.
struct Operands {
    device: Device,
    op: ops::Backward,
    scale: f32,
    w0: Tensor,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    s: Tensor,
    dh: Tensor,
    da: Tensor,
    db: Tensor,
}

impl Operands {
    fn new() -> Result<Self> {
        let [t, k, d, r] = SIZES.single();
        let (device, inputs) = (cuda(), Inputs::<bf16>::reals(SIZES, 4));
        let tensor =
            |values: &[bf16], shape: [usize; 2]| Tensor::from_slice(&device, values, shape);
        let of = &inputs.of[0];
        Ok(Operands {
            op: ops::Backward::new(&device, &inputs.problem())?,
            scale: of.scale,
            w0: tensor(&of.w0, [d, k])?,
            a: tensor(&inputs.a, [r, k])?,
            b: tensor(&of.b, [d, r])?,
            x: tensor(&inputs.x, [t, k])?,
            s: tensor(&inputs.s, [t, r])?,
            dh: tensor(&of.dh, [t, d])?,
            da: Tensor::from_slice(&device, &vec![7.5f32; r * k], [r, k])?,
            db: Tensor::from_slice(&device, &vec![7.5f32; d * r], [d, r])?,
            device,
        })
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_short_workspace_is_refused() -> Result<()> {
    let Operands { device, op, scale, w0, a, b, x, s, dh, mut da, mut db } = Operands::new()?;
    let needed = scratch_and_flags(&device, op.workspace())?.0;
    assert!(needed > 1, "this path has no scratch to be too small");
    let projections = [Projection::new(w0.view(), b.view(), scale)];
    let weights = Weights::new(a.view(), &projections);
    let mut backward = |elements: usize| -> Result<()> {
        let mut workspace = Workspace::new(&device, op.workspace())?;
        *workspace.scratch_mut() = Tensor::zeros(&device, [elements], DType::F32)?;
        let (da, db) = (da.view_mut(), &mut [db.view_mut()]);
        let out = GradientsMut { da, db, accumulation: Accumulation::Overwrite };
        op.run_params(&weights, &[dh.view()], x.view(), s.view(), out, &mut workspace)
    };
    let short = |got| Error::Workspace { part: "scratch", needed, got };
    assert_eq!(backward(needed - 1).unwrap_err(), short(needed - 1));
    assert_eq!(backward(0).unwrap_err(), short(0));
    assert!(da.to_vec::<f32>()?.iter().chain(&db.to_vec::<f32>()?).all(|&v| v == 7.5));
    Ok(())
}

/// f32 elements of scratch, and words of flags.
fn scratch_and_flags(device: &Device, size: WorkspaceSize) -> Result<(usize, usize)> {
    let scratch = Workspace::new(device, size)?.scratch_mut().shape().elements();
    Ok((scratch, size.bytes() / 4 - scratch))
}

#[test]
#[ignore = "needs a CUDA GPU with kernels that need flags"]
fn a_workspace_without_flags_is_refused() -> Result<()> {
    let device = cuda();
    let (t, k, d, r) = (2048, 4096, 4096, 16);
    let zeros = |shape: [usize; 2]| Tensor::zeros(&device, shape, DType::Bf16);
    let (x, w0, a, b) = (zeros([t, k])?, zeros([d, k])?, zeros([r, k])?, zeros([d, r])?);
    let (mut h, mut s) = (zeros([t, d])?, zeros([t, r])?);
    let forward = Forward::new(&device, &Problem::single(t, k, d, r, DType::Bf16)?)?;
    let (scratch, flags) = scratch_and_flags(&device, forward.workspace())?;
    assert!(flags > 0 || forward.path() == Path::Mma, "{forward}");
    let projections = [Projection::new(w0.view(), b.view(), 1.0)];
    let weights = Weights::new(a.view(), &projections);
    let mut workspace = Workspace::new(&device, WorkspaceSize::default())?;
    *workspace.scratch_mut() = Tensor::zeros(&device, [scratch], DType::F32)?;
    let h = &mut [h.view_mut()];
    let result = forward.run(&weights, x.view(), h, s.view_mut(), &mut workspace);
    match forward.path() {
        Path::Mma => result,
        _ => {
            let error = Error::Workspace { part: "flags", needed: flags, got: 0 };
            assert_eq!(result.unwrap_err(), error);
            Ok(())
        }
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn a_workspace_may_be_the_callers_memory() -> Result<()> {
    let device = cuda();
    let (t, k, d, r) = (2048, 4096, 4096, 16);
    let random = |seed, shape: [usize; 2]| {
        let values: Vec<bf16> = reals(&mut rng(seed), shape[0] * shape[1], 1.0);
        Tensor::from_slice(&device, &values, shape)
    };
    let (x, w0, a, b) =
        (random(1, [t, k])?, random(2, [d, k])?, random(3, [r, k])?, random(4, [d, r])?);
    let projections = [Projection::new(w0.view(), b.view(), 1.0)];
    let weights = Weights::new(a.view(), &projections);
    let forward = Forward::new(&device, &Problem::single(t, k, d, r, DType::Bf16)?)?;
    let run = |workspace: &mut Workspace| {
        let mut h = Tensor::zeros(&device, [t, d], DType::Bf16)?;
        forward.run(&weights, x.view(), &mut [h.view_mut()], None, workspace)?;
        h.to_vec::<bf16>()
    };
    let size = forward.workspace();
    let want = run(&mut Workspace::new(&device, size)?)?;

    let stream = device.stream().expect("a CUDA device");
    let bytes = |n: usize| stream.alloc_zeros::<u8>(n.max(1)).expect("memory");
    let (scratch, flags) = (bytes(size.scratch_bytes()), bytes(size.flag_bytes()));
    let address = |memory: &CudaSlice<u8>| memory.device_ptr(stream).0;
    // SAFETY: both outlive the calls and their work, which each copy to the host waits for.
    let mut lent =
        unsafe { Workspace::from_raw(&device, size, address(&scratch), address(&flags))? };
    // Twice: the flags are zeros again after a call.
    assert_same_bits("h", &run(&mut lent)?, &want);
    assert_same_bits("h", &run(&mut lent)?, &want);

    let mut own = Workspace::new(&device, size.without_scratch())?;
    assert!(size.scratch_bytes() == 0 || run(&mut own).is_err());
    // SAFETY: as above.
    unsafe { own.lend_scratch(&device, size, address(&scratch))? };
    assert_same_bits("h", &run(&mut own)?, &want);
    Ok(())
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn tensors_of_another_device_are_refused() -> Result<()> {
    let Owned { device, inputs, base, x, w0, h } = owned()?;
    let [t, k, d, _] = SIZES.single();
    let cpu = Device::cpu();
    let on_cpu = BaseForward::new(&cpu, t, [d, k], DType::Bf16)?;
    let (x_cpu, w0_cpu) = (
        Tensor::from_slice(&cpu, &inputs.x, [t, k])?,
        Tensor::from_slice(&cpu, &inputs.of[0].w0, [d, k])?,
    );
    let mut out = Tensor::from_slice(&device, &h, [t, d])?;
    let mut out_cpu = Tensor::from_slice(&cpu, &h, [t, d])?;
    let names = |result: Result<()>, name: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Device { argument, .. } if argument == name), "{error}");
        assert!(error.to_string().contains("cuda:0"), "{error}");
    };
    let none = || Workspace::new(&device, WorkspaceSize::default()).expect("a workspace");
    let none_on_cpu = || Workspace::new(&cpu, WorkspaceSize::default()).expect("a workspace");
    names(base.run(w0.view(), x_cpu.view(), out.view_mut(), &mut none()), "x");
    names(base.run(w0_cpu.view(), x.view(), out.view_mut(), &mut none()), "w0");
    names(base.run(w0.view(), x.view(), out_cpu.view_mut(), &mut none()), "h");
    names(on_cpu.run(w0_cpu.view(), x.view(), out_cpu.view_mut(), &mut none_on_cpu()), "x");
    names(on_cpu.run(w0.view(), x_cpu.view(), out_cpu.view_mut(), &mut none_on_cpu()), "w0");
    names(on_cpu.run(w0_cpu.view(), x_cpu.view(), out.view_mut(), &mut none_on_cpu()), "h");
    let (w0, x, out_view) = (w0.view(), x.view(), out.view_mut());
    names(base.run(w0, x, out_view, &mut none_on_cpu()), "workspace");
    names(out.copy_from(&out_cpu), "source");
    names(out_cpu.copy_from(&out), "source");
    assert_same_bits("out", &out.to_vec::<bf16>()?, &h);
    assert_same_bits("out on the CPU", &out_cpu.to_vec::<bf16>()?, &h);
    Ok(())
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn f32_is_for_the_cpu() -> Result<()> {
    let device = cuda();
    let matrix = || Tensor::zeros(&device, [4, 4], DType::F32);
    let (w0, a, b, mut out) = (matrix()?, matrix()?, matrix()?, matrix()?);
    fn refused<Op>(result: Result<Op>, name: &str) {
        let error = result.err().expect("f32 was taken");
        let holds =
            matches!(error, Error::DType { argument, got: DType::F32, .. } if argument == name);
        assert!(holds, "{error}");
        assert!(error.to_string().contains("bf16 or f16"), "{error}");
    }
    let problem = Problem::single(4, 4, 4, 4, DType::F32)?;
    refused(BaseForward::new(&device, 4, [4, 4], DType::F32), "w0");
    refused(BaseInputGrad::new(&device, 4, [4, 4], DType::F32), "w0");
    refused(Forward::new(&device, &problem), "x");
    refused(ops::Backward::new(&device, &problem), "x");
    let (a, b) = (a.view(), b.view());
    refused(ops::merge(&device, w0.view(), a, b, 1.0, out.view_mut()), "w0");
    refused(ops::merge_in_place(&device, out.view_mut(), a, b, 1.0), "w");
    Ok(())
}
