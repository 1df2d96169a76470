//! The CPU reference: the paper's formulas in f64, rounded once at the end.
//!
//! It is the oracle of every other path, so it is written to be read.

mod matrix;

use crate::call::{Accumulation, BackwardCall, BaseCall, ForwardCall, MergeCall, RoundCall};
use crate::tensor::TensorViewMut;
use matrix::Matrix;

/// Sᵢ = sᵢ · X̃ Aᵢᵀ, Hᵢ = X W0ᵢᵀ + Sᵢ Bᵢᵀ, for every projection of the call. X̃ is X with dropout.
pub(crate) fn forward(call: ForwardCall<'_, '_>) {
    let ForwardCall { problem, weights, x, h, s, .. } = call;
    let x = Matrix::load(&x);
    let x_dropped = x.clone().dropped(weights.dropout.as_ref());
    let x_a = x_dropped.times(&Matrix::load(&weights.a).transpose());
    let mut s_exact = Vec::new();
    for ((part, projection), h) in problem.parts().zip(weights.projections).zip(h) {
        let s = x_a.columns(part.start, part.r).scaled(projection.scale.into());
        let s = s.saturated(problem.dtype());
        let low_rank = s.times(&Matrix::load(&projection.b).transpose());
        x.times(&Matrix::load(&projection.w0).transpose()).plus(&low_rank).store(h);
        s_exact.push(s);
    }
    if let Some(mut s) = s {
        Matrix::beside(&s_exact).store(&mut s);
    }
}

/// dSᵢ = sᵢ · dHᵢ Bᵢ, dX = Σᵢ dHᵢ W0ᵢ + dS A, dA = dSᵀ X, dBᵢ = dHᵢᵀ Sᵢ, with dropout of dS A and
/// of the X in dA.
pub(crate) fn backward(call: BackwardCall<'_, '_, '_>) {
    let BackwardCall { problem, weights, dh, x, s, dx, mut out, .. } = call;
    let accumulation = out.accumulation;
    // As on a GPU, gradients are f32 before they are added and rounded to the type of the output.
    let write = |gradient: Matrix, out: &mut TensorViewMut<'_>| match accumulation {
        Accumulation::Overwrite => gradient.write(out, |_, new| f64::from(new as f32)),
        Accumulation::Add => gradient.write(out, |old, new| f64::from(old as f32 + new as f32)),
    };
    let s = Matrix::load(&s);
    let (mut ds, mut base) = (Vec::new(), None);
    let parts = problem.parts().zip(weights.projections);
    for (((part, projection), dh), db) in parts.zip(dh).zip(out.db.iter_mut()) {
        let dh = Matrix::load(dh);
        let ds_part = dh.times(&Matrix::load(&projection.b)).scaled(projection.scale.into());
        ds.push(ds_part.saturated(problem.dtype()));
        if dx.is_some() {
            let product = dh.times(&Matrix::load(&projection.w0));
            base = Some(match base {
                Some(sum) => product.plus(&sum),
                None => product,
            });
        }
        write(dh.transpose().times(&s.columns(part.start, part.r)), db);
    }
    let ds = Matrix::beside(&ds);
    if let (Some(base), Some(mut dx)) = (base, dx) {
        let low_rank = ds.times(&Matrix::load(&weights.a)).dropped(weights.dropout.as_ref());
        base.plus(&low_rank).store(&mut dx);
    }
    let x = Matrix::load(&x).dropped(weights.dropout.as_ref());
    write(ds.transpose().times(&x), &mut out.da);
}

/// H = X W0ᵀ.
pub(crate) fn base_forward(mut call: BaseCall<'_>) {
    let w0 = Matrix::load(&call.w0).transpose();
    Matrix::load(&call.input).times(&w0).store(&mut call.output);
}

/// dX = dH W0.
pub(crate) fn base_input_grad(mut call: BaseCall<'_>) {
    Matrix::load(&call.input).times(&Matrix::load(&call.w0)).store(&mut call.output);
}

/// W0 + s · B A, with W0 given as the output or beside it.
pub(crate) fn merge(call: MergeCall<'_>) {
    let MergeCall { w0, a, b, scale, mut out, .. } = call;
    let delta = Matrix::load(&b).times(&Matrix::load(&a)).scaled(scale.into());
    match w0 {
        Some(w0) => Matrix::load(&w0).plus(&delta).store(&mut out),
        None => delta.write(&mut out, |old, delta| old + delta),
    }
}

/// Each output is its source, rounded.
pub(crate) fn round(call: RoundCall<'_, '_>) {
    for (source, output) in call.sources.iter().zip(call.outputs) {
        Matrix::load(source).store(output);
    }
}
