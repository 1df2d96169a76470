//! Arguments that operations refuse.

use super::arguments::Operation::{Backward, Forward, Merge, Round};
use super::arguments::*;
use super::filled;
use lora_kernels::ops::{self, GradientsMut, Projection, Weights};
use lora_kernels::{Accumulation, DType, Device, Error, Result};

#[test]
fn good_arguments_are_accepted() {
    for &operation in ALL {
        Arguments::good(ONE).run(operation).unwrap_or_else(|e| panic!("{operation:?}: {e}"));
    }
    for &operation in PASSES {
        Arguments::good(THREE).run(operation).unwrap_or_else(|e| panic!("{operation:?}: {e}"));
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
