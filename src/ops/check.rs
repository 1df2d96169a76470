//! What the operations hold their arguments against.

use crate::cuda::Place;
use crate::plan::Plan;
use crate::{DType, Device, Error, Result, Shape, TensorView, TensorViewMut, Workspace};

/// The element type of the activations decides that of everything else.
pub(crate) fn check_activations(
    device: &Device,
    argument: &'static str,
    x: &TensorView<'_>,
) -> Result<DType> {
    check_dtype(device, argument, x.dtype)?;
    check_device(device, argument, x.region.place())?;
    Ok(x.dtype)
}

pub(crate) fn check_dtype(device: &Device, argument: &'static str, dtype: DType) -> Result<()> {
    if device.is_cuda() && dtype == DType::F32 {
        let expected = "bf16 or f16 (f32 runs on the CPU device only)";
        return Err(Error::DType { argument, expected, got: dtype });
    }
    Ok(())
}

/// An input that must be a matrix of just this shape.
pub(crate) fn check_input(
    device: &Device,
    argument: &'static str,
    view: &TensorView<'_>,
    matrix: [usize; 2],
    dtype: DType,
) -> Result<()> {
    if view.shape.dims() != matrix {
        return Err(Error::Shape { argument, expected: format!("{matrix:?}"), got: view.shape });
    }
    check_rows(device, argument, view, matrix, dtype)
}

/// An input whose leading dimensions count as rows.
pub(crate) fn check_rows(
    device: &Device,
    argument: &'static str,
    view: &TensorView<'_>,
    matrix: [usize; 2],
    dtype: DType,
) -> Result<()> {
    check_matrix(argument, view.shape, matrix, view.dtype, dtype)?;
    check_device(device, argument, view.region.place())
}

pub(crate) fn check_output(
    device: &Device,
    argument: &'static str,
    view: &TensorViewMut<'_>,
    matrix: [usize; 2],
    dtype: DType,
) -> Result<()> {
    check_matrix(argument, view.shape, matrix, view.dtype, dtype)?;
    check_device(device, argument, view.region.place())
}

pub(crate) fn check_workspace(device: &Device, workspace: &Workspace, plan: &Plan) -> Result<()> {
    workspace.check(plan)?;
    check_dtype_of("workspace.scratch", workspace.scratch.dtype(), DType::F32)?;
    for tensor in [&workspace.scratch, workspace.flags()] {
        check_device(device, "workspace", tensor.view().region.place())?;
    }
    Ok(())
}

pub(crate) fn check_matrix(
    argument: &'static str,
    shape: Shape,
    [rows, cols]: [usize; 2],
    got: DType,
    dtype: DType,
) -> Result<()> {
    if (shape.rows(), shape.cols()) != (rows, cols) {
        let expected = format!("{rows} rows of {cols}");
        return Err(Error::Shape { argument, expected, got: shape });
    }
    check_dtype_of(argument, got, dtype)
}

pub(crate) fn check_dtype_of(argument: &'static str, got: DType, dtype: DType) -> Result<()> {
    if got != dtype {
        let expected = match dtype {
            DType::Bf16 => "bf16, as x",
            DType::F16 => "f16, as x",
            DType::F32 => "f32",
        };
        return Err(Error::DType { argument, expected, got });
    }
    Ok(())
}

pub(crate) fn check_device(
    device: &Device,
    argument: &'static str,
    place: Place<'_>,
) -> Result<()> {
    if place.is_usable_on(device.stream()) {
        return Ok(());
    }
    let both_cuda = device.is_cuda() && !matches!(place, Place::Host);
    let by = if both_cuda { ", by another CudaContext" } else { "" };
    let (expected, got) = (device.to_string(), format!("{place}{by}"));
    Err(Error::Device { argument, expected, got })
}

pub(crate) fn check_finite(argument: &'static str, value: f32) -> Result<()> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(Error::NotFinite { argument, value })
    }
}
