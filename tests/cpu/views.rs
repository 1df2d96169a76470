//! Views with rows that lie apart, on the CPU device: the same bits as of dense ones, and gaps that
//! are left alone. The GPU tests run the same buffers as `Placement::Strided`.

use crate::common::random::{reals, rng};
use crate::common::{Buffers, DeviceElement, Inputs, Place, Placement, Sizes, assert_same_bits};
use crate::oracle::on_cpu;
use crate::parts::columns;
use half::{bf16, f16};
use lora_kernels::ops::{self, Backward, BaseForward, Forward, GradientsMut, Projection, Weights};
use lora_kernels::{Accumulation, DType, Device, Error, LoraLinear, Problem, Result, Scaling};
use lora_kernels::{Adapter, Tensor, TensorView, TensorViewMut, Workspace, WorkspaceSize};

const SIZES: [Sizes; 6] = [
    Sizes::new(1, 1, 1, 1),
    Sizes::new(6, 7, 9, 3),
    Sizes::new(33, 40, 24, 8),
    Sizes::group(6, 7, &[(9, 3), (4, 2)]),
    Sizes::group(33, 40, &[(24, 8), (8, 8), (8, 8)]),
    Sizes::group(5, 6, &[(3, 1), (17, 256), (2, 3), (9, 200)]),
];

#[test]
fn strided_views_give_the_bits_of_dense_ones() {
    fn holds<E: DeviceElement>() {
        for (sizes, placement) in SIZES.into_iter().flat_map(|s| Placement::ALL.map(|p| (s, p))) {
            let inputs = Inputs::<E>::reals(sizes, 1);
            let mut buffers = Buffers::new(&Place { device: Device::cpu(), placement }, &inputs);
            buffers.enqueue().expect("every operation");
            let context = format!("{sizes}, {}, {placement:?}", E::DTYPE);
            buffers.outputs().assert_same_bits(&on_cpu(&inputs), &context);
        }
    }
    holds::<f32>();
    holds::<f16>();
    holds::<bf16>();
}

/// q, k and v beside each other, as an attention takes them: a pass for each, into its columns of
/// one matrix. tests/gpu/group.rs has one pass for all.
#[test]
fn outputs_beside_each_other() -> Result<()> {
    let (cpu, sizes) = (Device::cpu(), Sizes::group(33, 40, &[(24, 8), (8, 8), (8, 16)]));
    let inputs = Inputs::<bf16>::reals(sizes, 2);
    let want = on_cpu(&inputs);
    let (t, width) = (33, 24 + 8 + 8);
    let mut all = vec![bf16::NAN; t * width];
    let (mut start, mut ends) = (0, Vec::new());
    for i in 0..3 {
        let one = inputs.alone(i);
        let ([_, k, d, r], of) = (one.sizes.single(), &one.of[0]);
        let forward = Forward::new(&cpu, &one.problem())?;
        let w0 = TensorView::from_host(&of.w0, [d, k])?;
        let projections = [Projection::new(w0, TensorView::from_host(&of.b, [d, r])?, of.scale)];
        let weights = Weights::new(TensorView::from_host(&one.a, [r, k])?, &projections);
        let h = TensorViewMut::from_host(&mut all, [t, width])?.columns(start..start + d)?;
        assert_eq!((h.row_stride(), h.is_dense()), (width, false));
        let mut workspace = Workspace::new(&cpu, forward.workspace())?;
        let x = TensorView::from_host(&one.x, [t, k])?;
        forward.run(&weights, x, &mut [h], None, &mut workspace)?;
        ends.push((start, d));
        start += d;
    }
    for (i, (start, d)) in ends.into_iter().enumerate() {
        assert_same_bits(&format!("h[{i}]"), &columns(&all, width, start, d), &want.h[i]);
    }
    Ok(())
}

/// The columns of a view with three dimensions, and rows of columns.
#[test]
fn views_of_views() -> Result<()> {
    let cpu = Device::cpu();
    // x [2, 3, 8], of which columns 2..6 are the input, and W0 the identity.
    let values: Vec<f32> = (0..48).map(|i| i as f32).collect();
    let identity: Vec<f32> = (0..16).map(|i| f32::from(u8::from(i % 5 == 0))).collect();
    let (x, w0) =
        (TensorView::from_host(&values, [2, 3, 8])?, TensorView::from_host(&identity, [4, 4])?);
    let x = x.columns(2..6)?;
    assert_eq!((x.shape().dims(), x.row_stride(), x.is_dense()), (&[2, 3, 4][..], 8, false));
    let want: Vec<f32> = columns(&values, 8, 2, 4);
    let mut h = vec![0.0; 24];
    let base = BaseForward::new(&cpu, 6, [4, 4], DType::F32)?;
    let mut workspace = Workspace::new(&cpu, base.workspace())?;
    base.run(w0, x, TensorViewMut::from_host(&mut h, [6, 4])?, &mut workspace)?;
    assert_eq!(h, want);
    let mut h = vec![0.0; 8];
    let base = BaseForward::new(&cpu, 2, [4, 4], DType::F32)?;
    let h_view = TensorViewMut::from_host(&mut h, [2, 4])?;
    base.run(w0, x.rows(3..5)?, h_view, &mut workspace)?;
    assert_eq!(h, want[12..20]);
    // One row is dense, however far the next one would be.
    assert!(x.rows(5..6)?.is_dense());

    let mut wide = vec![7.5f32; 6 * 8];
    let h = TensorViewMut::from_host(&mut wide, [6, 8])?.rows(1..3)?.columns(3..7)?;
    base.run(w0, x.rows(3..5)?, h, &mut workspace)?;
    for (row, values) in wide.chunks(8).enumerate() {
        let written = (1..3).contains(&row);
        let want_row = if written { &want[12 + 4 * (row - 1)..][..4] } else { &[7.5; 4][..] };
        assert_eq!(
            (&values[..3], &values[3..7], &values[7..]),
            (&[7.5; 3][..], want_row, &[7.5][..])
        );
    }
    Ok(())
}

/// Columns of a matrix of other columns behind them; the matrix itself where there are none.
fn apart<'a, E: DeviceElement>(values: &'a mut [E], rows: usize, cols: usize) -> TensorViewMut<'a> {
    let wide = [rows, values.len() / rows];
    TensorViewMut::from_host(values, wide).and_then(|view| view.columns(0..cols)).unwrap()
}

#[test]
fn s_and_gradients_must_be_dense() -> Result<()> {
    let (cpu, sizes) = (Device::cpu(), Sizes::group(6, 7, &[(9, 3), (4, 2)]));
    let inputs = Inputs::<f32>::reals(sizes, 3);
    let problem = inputs.problem();
    let owned: Vec<_> = inputs.of.iter().zip(sizes.of()).collect();
    let projections: Vec<_> = owned
        .iter()
        .map(|(of, (d, r))| {
            let view = |values, shape: [usize; 2]| TensorView::from_host(values, shape).unwrap();
            let (w0, b) = (view(&of.w0[..], [*d, 7]), view(&of.b[..], [*d, *r]));
            Projection::new(w0, b, of.scale)
        })
        .collect();
    let weights = Weights::new(TensorView::from_host(&inputs.a, [5, 7])?, &projections);
    let x = TensorView::from_host(&inputs.x, [6, 7])?;
    let dh = [
        TensorView::from_host(&inputs.of[0].dh, [6, 9])?,
        TensorView::from_host(&inputs.of[1].dh, [6, 4])?,
    ];
    let workspace = &mut Workspace::new(&cpu, WorkspaceSize::default())?;

    let (mut h, mut wide) = ([vec![7.5f32; 54], vec![7.5; 24]], vec![7.5f32; 6 * 8]);
    let [q, k] = &mut h;
    let views = &mut [TensorViewMut::from_host(q, [6, 9])?, TensorViewMut::from_host(k, [6, 4])?];
    let s = apart(&mut wide, 6, 5);
    let error = Forward::new(&cpu, &problem)?.run(&weights, x, views, s, workspace);
    assert_eq!(error, Err(Error::RowStride { argument: "s", got: 8 }));
    assert!(h.iter().flatten().chain(&wide).all(|&v| v == 7.5), "an output was written");

    let backward = Backward::new(&cpu, &problem)?;
    let s = TensorView::from_host(&inputs.s, [6, 5])?;
    for (i, (argument, got)) in [("da", 8), ("db[0]", 4), ("db[1]", 3)].into_iter().enumerate() {
        // One column more of the gradient that is not dense.
        let more = |of: usize| usize::from(of == i);
        let mut da = vec![7.5f32; 5 * (7 + more(0))];
        let (mut first, mut second) =
            (vec![7.5f32; 9 * (3 + more(1))], vec![7.5; 4 * (2 + more(2))]);
        let db = &mut [apart(&mut first, 9, 3), apart(&mut second, 4, 2)];
        let out =
            GradientsMut { da: apart(&mut da, 5, 7), db, accumulation: Accumulation::Overwrite };
        let error = backward.run_params(&weights, &dh, x, s, out, workspace);
        assert_eq!(error, Err(Error::RowStride { argument, got }));
        assert!([da, first, second].iter().flatten().all(|&v| v == 7.5), "{argument} was written");
    }

    let (mut source, mut output) = (vec![1f32; 2 * 4], vec![bf16::ONE; 2 * 3]);
    let mut round = |strided: bool| {
        let (source, mut output) = match strided {
            true => {
                (TensorView::from_host(&source, [2, 4])?.columns(0..3)?, apart(&mut output, 2, 3))
            }
            false => (TensorView::from_host(&source[..4], [2, 2])?, apart(&mut output, 2, 2)),
        };
        ops::round(&cpu, &[source], &mut [output.reborrow()])
    };
    assert_eq!(round(true), Err(Error::RowStride { argument: "sources", got: 4 }));
    assert_eq!(round(false), Err(Error::RowStride { argument: "outputs", got: 3 }));
    source.fill(0.0);
    Ok(())
}

/// With one token, the columns of a wider matrix are one row, which is dense.
#[test]
fn one_row_is_dense() -> Result<()> {
    let (cpu, inputs) = (Device::cpu(), Inputs::<f32>::reals(Sizes::new(1, 8, 5, 2), 4));
    let [t, k, d, r] = inputs.sizes.single();
    let (of, want) = (&inputs.of[0], on_cpu(&inputs));
    let w0 = TensorView::from_host(&of.w0, [d, k])?;
    let projections = [Projection::new(w0, TensorView::from_host(&of.b, [d, r])?, of.scale)];
    let weights = Weights::new(TensorView::from_host(&inputs.a, [r, k])?, &projections);
    let (mut h, mut s) = (vec![0f32; d], vec![7.5f32; r + 3]);
    let forward = Forward::new(&cpu, &inputs.problem())?;
    let workspace = &mut Workspace::new(&cpu, forward.workspace())?;
    let (x, h_view) =
        (TensorView::from_host(&inputs.x, [t, k])?, TensorViewMut::from_host(&mut h, [t, d])?);
    forward.run(&weights, x, &mut [h_view], apart(&mut s, 1, r), workspace)?;
    assert_same_bits("h", &h, &want.h[0]);
    assert_same_bits("s", &s[..r], &want.s);
    assert_eq!(s[r..], [7.5; 3]);
    Ok(())
}

/// A layer takes strided views of x and h where it takes views.
#[test]
fn layers_take_strided_views() -> Result<()> {
    let (cpu, mut rng) = (Device::cpu(), rng(5));
    let (t, k, d) = (6, 7, 9);
    let tensor = |values: &[bf16], shape: [usize; 2]| Tensor::from_slice(&cpu, values, shape);
    let (a, b) = (
        tensor(&reals(&mut rng, 3 * k, 1.0), [3, k])?,
        tensor(&reals(&mut rng, d * 3, 1.0), [d, 3])?,
    );
    let adapter = Adapter::from_tensors(a, b, 6.0, Scaling::Standard)?;
    let layer = LoraLinear::new(tensor(&reals(&mut rng, d * k, 1.0), [d, k])?, adapter)?;
    let wide: Vec<bf16> = reals(&mut rng, t * (k + 4), 1.0);
    let x = tensor(&columns(&wide, k + 4, 1, k), [t, k])?;
    let want = layer.infer(&x)?.remove(0).to_vec::<bf16>()?;

    let x = TensorView::from_host(&wide, [t, k + 4])?.columns(1..k + 1)?;
    let mut h = vec![bf16::ONE; t * (d + 2)];
    layer.forward_into(&cpu, x, &mut [apart(&mut h, t, d)], None)?;
    assert_same_bits("h", &columns(&h, d + 2, 0, d), &want);
    assert!(columns(&h, d + 2, d, 2).iter().all(|&v| v == bf16::ONE), "the gaps");
    let problem = Problem::single(t, k, d, 3, DType::Bf16)?;
    let forward = Forward::new(&cpu, &problem)?;
    let projections = layer.views()?;
    let mut dense = vec![bf16::ONE; t * d];
    let dense_view = TensorViewMut::from_host(&mut dense, [t, d])?;
    let mut workspace = Workspace::new(&cpu, forward.workspace())?;
    let weights = Weights::new(layer.a().view(), &projections);
    forward.run(&weights, x, &mut [dense_view], None, &mut workspace)?;
    assert_same_bits("h of the operation", &dense, &want);
    Ok(())
}
