//! Calls, checked: what the operations take from their callers and hand to a backend.

use crate::device::Device;
use crate::dropout::{Dropout, Source};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{MAX_PROJECTIONS, Problem};
use crate::shape::Shape;
use crate::tensor::{TensorView, TensorViewMut};

/// The weights of one projection, borrowed: the frozen weight, and its adapter without A.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Projection<'a> {
    /// The frozen weight W0, [d, k].
    pub w0: TensorView<'a>,
    /// The up-projection B, [d, r].
    pub b: TensorView<'a>,
    /// s: α/r, α/√r or any other finite factor of the update.
    pub scale: f32,
}

impl<'a> Projection<'a> {
    /// W0 [d, k], B [d, r] and s.
    pub fn new(w0: TensorView<'a>, b: TensorView<'a>, scale: f32) -> Self {
        Projection { w0, b, scale }
    }
}

/// The weights of 1 to [`MAX_PROJECTIONS`] adapted projections of the same x, borrowed: a single
/// layer, or q, k and v of an attention, or gate and up of a gated MLP.
///
/// Each has a d, an r and a scale of its own. With R the sum of the ranks, A is [R, k]: the
/// down-projections stacked in the order of `projections`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Weights<'a> {
    /// The down-projections of all, [R, k].
    pub a: TensorView<'a>,
    /// W0, B and s of each.
    pub projections: &'a [Projection<'a>],
    /// Dropout of the adapters' input: the same in a forward pass and its backward pass.
    pub dropout: Option<Dropout<'a>>,
}

impl<'a> Weights<'a> {
    /// A [R, k] of all projections, and W0, B and s of each.
    pub fn new(a: TensorView<'a>, projections: &'a [Projection<'a>]) -> Self {
        Weights { a, projections, dropout: None }
    }

    /// The same with dropout, for an operation whose problem
    /// [has it](crate::Problem::with_dropout).
    #[must_use]
    pub fn with_dropout(self, dropout: Dropout<'a>) -> Self {
        Weights { dropout: Some(dropout), ..self }
    }
}

/// Whether a gradient replaces the contents of its buffer, or is added to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accumulation {
    /// `grad = new`.
    Overwrite,
    /// `grad = grad + new`: in f32 the same bits as an overwrite followed by an f32 addition, in
    /// 16 bits their f32 sum, rounded.
    Add,
}

/// Where a backward pass writes the gradients of the adapters.
#[derive(Debug)]
pub struct GradientsMut<'a, 'b> {
    /// dA of all projections, [R, k].
    pub da: TensorViewMut<'b>,
    /// dB of every projection, [d, r].
    pub db: &'b mut [TensorViewMut<'a>],
    /// Whether they replace the buffers' contents, or are added to them.
    pub accumulation: Accumulation,
}

/// A forward pass: S = [s₀ · X A₀ᵀ, s₁ · X A₁ᵀ, ...] and Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ.
pub(crate) struct ForwardCall<'c, 'h> {
    pub(crate) problem: &'c Problem,
    pub(crate) weights: &'c Weights<'c>,
    pub(crate) names: &'static [Names; MAX_PROJECTIONS],
    pub(crate) x: TensorView<'c>,
    pub(crate) h: &'c mut [TensorViewMut<'h>],
    pub(crate) s: Option<TensorViewMut<'c>>,
}

/// A backward pass: dSᵢ = sᵢ · dHᵢ Bᵢ, dX = Σᵢ dHᵢ W0ᵢ + dS A unless it is `None`, dA = dSᵀ X and
/// dBᵢ = dHᵢᵀ Sᵢ.
pub(crate) struct BackwardCall<'c, 'g, 'b> {
    pub(crate) problem: &'c Problem,
    pub(crate) weights: &'c Weights<'c>,
    pub(crate) names: &'static [Names; MAX_PROJECTIONS],
    pub(crate) dh: &'c [TensorView<'c>],
    pub(crate) x: TensorView<'c>,
    pub(crate) s: TensorView<'c>,
    pub(crate) dx: Option<TensorViewMut<'c>>,
    pub(crate) out: GradientsMut<'g, 'b>,
}

/// A product with a frozen weight: H = X W0ᵀ, or dX = dH W0.
pub(crate) struct BaseCall<'c> {
    pub(crate) problem: &'c Problem,
    pub(crate) w0: TensorView<'c>,
    /// X or dH.
    pub(crate) input: TensorView<'c>,
    /// H or dX.
    pub(crate) output: TensorViewMut<'c>,
    /// What errors call the two.
    pub(crate) names: [&'static str; 2],
}

/// W = W0 + s · B A, in place if there is no `w0`.
pub(crate) struct MergeCall<'c> {
    /// d, k and r.
    pub(crate) sizes: [usize; 3],
    pub(crate) dtype: DType,
    pub(crate) w0: Option<TensorView<'c>>,
    pub(crate) a: TensorView<'c>,
    pub(crate) b: TensorView<'c>,
    pub(crate) scale: f32,
    pub(crate) out: TensorViewMut<'c>,
    pub(crate) out_name: &'static str,
}

/// The most tensors that are rounded in one call: as many as a launch takes.
pub(crate) const MOST_ROUNDED: usize = 8;

/// Roundings of dense f32 tensors to 16 bits, all to the same element type.
pub(crate) struct RoundCall<'c, 'o> {
    pub(crate) sources: &'c [TensorView<'c>],
    pub(crate) outputs: &'c mut [TensorViewMut<'o>],
}

/// What errors call the arguments of a projection.
pub(crate) struct Names {
    pub(crate) w0: &'static str,
    pub(crate) b: &'static str,
    scale: &'static str,
    pub(crate) h: &'static str,
    pub(crate) dh: &'static str,
    pub(crate) db: &'static str,
}

macro_rules! names_of {
    ($i:literal) => {
        Names {
            w0: concat!("projections[", $i, "].w0"),
            b: concat!("projections[", $i, "].b"),
            scale: concat!("projections[", $i, "].scale"),
            h: concat!("h[", $i, "]"),
            dh: concat!("dh[", $i, "]"),
            db: concat!("db[", $i, "]"),
        }
    };
}

const ONE: Names = Names { w0: "w0", b: "b", scale: "scale", h: "h", dh: "dh", db: "db" };
static OF_ONE: [Names; MAX_PROJECTIONS] = [ONE, ONE, ONE, ONE];
static OF_SEVERAL: [Names; MAX_PROJECTIONS] =
    [names_of!(0), names_of!(1), names_of!(2), names_of!(3)];

/// What errors call the arguments of a call of so many projections.
pub(crate) fn names(projections: usize) -> &'static [Names; MAX_PROJECTIONS] {
    if projections == 1 { &OF_ONE } else { &OF_SEVERAL }
}

impl ForwardCall<'_, '_> {
    pub(crate) fn check(&self, device: &Device) -> Result<()> {
        let (t, dtype) = (self.problem.t(), self.problem.dtype());
        check_weights(device, self.problem, self.weights, self.names, &self.x)?;
        check_one_each("h", self.h.len(), self.problem)?;
        let each = self.h.iter().zip(self.problem.projections()).zip(self.names);
        for ((h, &(d, _)), names) in each {
            check_output(device, names.h, h, [t, d], dtype)?;
        }
        if let Some(s) = &self.s {
            check_output(device, "s", s, [t, self.problem.rank()], dtype)?;
            check_dense("s", s.is_dense(), s.row_stride())?;
        }
        Ok(())
    }
}

impl BackwardCall<'_, '_, '_> {
    /// `gradients` is the element type of dA and dB.
    pub(crate) fn check(&self, device: &Device, gradients: DType) -> Result<()> {
        let &Self { problem, .. } = self;
        let (t, k, rank, dtype) = (problem.t(), problem.k(), problem.rank(), problem.dtype());
        check_weights(device, problem, self.weights, self.names, &self.x)?;
        check_one_each("dh", self.dh.len(), problem)?;
        check_one_each("db", self.out.db.len(), problem)?;
        for ((dh, &(d, _)), names) in self.dh.iter().zip(problem.projections()).zip(self.names) {
            check_rows(device, names.dh, dh, [t, d], dtype)?;
        }
        check_rows(device, "s", &self.s, [t, rank], dtype)?;
        if let Some(dx) = &self.dx {
            check_output(device, "dx", dx, [t, k], dtype)?;
        }
        check_gradient(device, "da", &self.out.da, [rank, k], gradients)?;
        let mut db = self.out.db.iter().zip(problem.projections()).zip(self.names);
        db.try_for_each(|((db, &(d, r)), names)| {
            check_gradient(device, names.db, db, [d, r], gradients)
        })
    }
}

impl BaseCall<'_> {
    /// Of one of `columns` inputs and outputs, k and d in this order or the other.
    pub(crate) fn check(&self, device: &Device, columns: [usize; 2]) -> Result<()> {
        let (t, dtype) = (self.problem.t(), self.problem.dtype());
        let (d, _) = self.problem.projections()[0];
        check_dtype(device, self.names[0], dtype)?;
        check_input(device, "w0", &self.w0, [d, self.problem.k()], dtype)?;
        check_rows(device, self.names[0], &self.input, [t, columns[0]], dtype)?;
        check_output(device, self.names[1], &self.output, [t, columns[1]], dtype)
    }
}

impl MergeCall<'_> {
    pub(crate) fn check(&self, device: &Device) -> Result<()> {
        let ([d, k, r], dtype) = (self.sizes, self.dtype);
        let given = if self.w0.is_some() { "w0" } else { self.out_name };
        check_dtype(device, given, dtype)?;
        Problem::single(1, k, d, r, dtype)?;
        if let Some(w0) = &self.w0 {
            check_input(device, "w0", w0, [d, k], dtype)?;
        }
        check_input(device, "a", &self.a, [r, k], dtype)?;
        check_input(device, "b", &self.b, [d, r], dtype)?;
        check_output(device, self.out_name, &self.out, [d, k], dtype)?;
        check_finite("scale", self.scale)
    }
}

impl RoundCall<'_, '_> {
    pub(crate) fn check(&self, device: &Device) -> Result<()> {
        let count = self.sources.len();
        if count > MOST_ROUNDED {
            let expected = format!("{MOST_ROUNDED} at most");
            return Err(Error::Count { argument: "sources", expected, got: count });
        }
        if self.outputs.len() != count {
            let (expected, got) = (format!("{count}, as sources"), self.outputs.len());
            return Err(Error::Count { argument: "outputs", expected, got });
        }
        let Some(dtype) = self.outputs.first().map(|output| output.dtype()) else { return Ok(()) };
        for (source, output) in self.sources.iter().zip(self.outputs.iter()) {
            let shape = source.shape();
            let size = [shape.rows(), shape.cols()];
            check_rows(device, "sources", source, size, DType::F32)?;
            check_dense("sources", source.is_dense(), source.row_stride())?;
            if output.dtype() == DType::F32 {
                let expected = "bf16 or f16";
                return Err(Error::DType { argument: "outputs", expected, got: DType::F32 });
            }
            check_output(device, "outputs", output, size, dtype)?;
            check_dense("outputs", output.is_dense(), output.row_stride())?;
        }
        Ok(())
    }
}

fn check_weights(
    device: &Device,
    problem: &Problem,
    weights: &Weights<'_>,
    names: &[Names],
    x: &TensorView<'_>,
) -> Result<()> {
    let (t, k, dtype) = (problem.t(), problem.k(), problem.dtype());
    check_rows(device, "x", x, [t, k], dtype)?;
    check_one_each("projections", weights.projections.len(), problem)?;
    let each = weights.projections.iter().zip(problem.projections()).zip(names);
    for ((projection, &(d, r)), names) in each {
        check_input(device, names.w0, &projection.w0, [d, k], dtype)?;
        check_input(device, names.b, &projection.b, [d, r], dtype)?;
        check_finite(names.scale, projection.scale)?;
    }
    check_input(device, "a", &weights.a, [problem.rank(), k], dtype)?;
    check_dropout(device, problem, weights.dropout.as_ref())
}

fn check_dropout(device: &Device, problem: &Problem, dropout: Option<&Dropout<'_>>) -> Result<()> {
    if problem.dropout() != dropout.is_some() {
        let expected = match problem.dropout() {
            true => "given, as the operation was made with it",
            false => "none, as the operation was made without it",
        };
        return Err(Error::Dropout { expected, got: dropout.map(Dropout::p) });
    }
    match dropout.map(Dropout::source) {
        Some(Source::Memory(state)) => check_rows(device, "dropout", state, [1, 4], DType::F32),
        _ => Ok(()),
    }
}

/// Refuses a list that does not have one argument for every projection.
fn check_one_each(argument: &'static str, got: usize, problem: &Problem) -> Result<()> {
    let count = problem.projections().len();
    if got == count {
        return Ok(());
    }
    Err(Error::Count { argument, expected: format!("{count}, one for every projection"), got })
}

/// Refuses element types that the device does not compute in.
pub(crate) fn check_dtype(device: &Device, argument: &'static str, dtype: DType) -> Result<()> {
    if device.is_cuda() && dtype == DType::F32 {
        let expected = "bf16 or f16 (f32 runs on the CPU device only)";
        return Err(Error::DType { argument, expected, got: dtype });
    }
    Ok(())
}

/// An input that must be a matrix of just this shape.
fn check_input(
    device: &Device,
    argument: &'static str,
    view: &TensorView<'_>,
    matrix: [usize; 2],
    dtype: DType,
) -> Result<()> {
    let got = view.shape();
    if got.dims() != matrix {
        return Err(Error::Shape { argument, expected: format!("{matrix:?}"), got });
    }
    check_rows(device, argument, view, matrix, dtype)
}

/// An input whose leading dimensions count as rows.
fn check_rows(
    device: &Device,
    argument: &'static str,
    view: &TensorView<'_>,
    matrix: [usize; 2],
    dtype: DType,
) -> Result<()> {
    check_matrix(argument, view.shape(), matrix, view.dtype(), dtype)?;
    check_row_stride(argument, view.row_stride())?;
    if view.is_usable_on(device) {
        return Ok(());
    }
    let place = view.context().map(|context| context.to_string());
    Err(elsewhere(device, argument, place))
}

fn check_output(
    device: &Device,
    argument: &'static str,
    view: &TensorViewMut<'_>,
    matrix: [usize; 2],
    dtype: DType,
) -> Result<()> {
    check_matrix(argument, view.shape(), matrix, view.dtype(), dtype)?;
    check_row_stride(argument, view.row_stride())?;
    if view.is_usable_on(device) {
        return Ok(());
    }
    let place = view.context().map(|context| context.to_string());
    Err(elsewhere(device, argument, place))
}

fn check_gradient(
    device: &Device,
    argument: &'static str,
    view: &TensorViewMut<'_>,
    matrix: [usize; 2],
    dtype: DType,
) -> Result<()> {
    check_output(device, argument, view, matrix, dtype)?;
    check_dense(argument, view.is_dense(), view.row_stride())
}

fn check_matrix(
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
    if got != dtype {
        let expected = match dtype {
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::F32 => "f32",
        };
        return Err(Error::DType { argument, expected, got });
    }
    Ok(())
}

/// Kernels take the row stride as a 32-bit integer.
fn check_row_stride(argument: &'static str, row_stride: usize) -> Result<()> {
    if row_stride <= i32::MAX as usize {
        return Ok(());
    }
    Err(Error::TooLarge { what: format!("the row stride {row_stride} of {argument}") })
}

fn check_dense(argument: &'static str, is_dense: bool, row_stride: usize) -> Result<()> {
    if is_dense {
        return Ok(());
    }
    Err(Error::RowStride { argument, got: row_stride })
}

/// A tensor that the device's calls cannot use; `place` is `None` on the host.
pub(crate) fn elsewhere(device: &Device, argument: &'static str, place: Option<String>) -> Error {
    let by = if device.is_cuda() && place.is_some() { ", by another CudaContext" } else { "" };
    let place = place.unwrap_or_else(|| "the CPU".into());
    Error::Device { argument, expected: device.to_string(), got: format!("{place}{by}") }
}

pub(crate) fn check_finite(argument: &'static str, value: f32) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::NotFinite { argument, value }) }
}
