//! Every operation alone against candle's own operations, in f32, and 16 bits against f32.

use crate::common::{assert_close, assert_same_gradients, loss, random, var};
use crate::plain;
use candle_core::{D, DType, Device, Error, Result, Tensor, Var};
use lora_kernels_candle::nn::{
    Attention, IGNORE_INDEX, linear_cross_entropy, rms_norm, rope, rope_frequencies, swiglu,
};

const HALVES: [(DType, f32); 2] = [(DType::BF16, 1.5e-2), (DType::F16, 2e-3)];

/// Compares the results and gradients of an operation and of plain candle in f32, and of the
/// operation in 16 bits. `view` makes the arguments of variables: views, say.
fn compare<const N: usize>(
    dims: [&[usize]; N],
    view: impl Fn(&Tensor) -> Result<Tensor>,
    op: impl Fn(&[Tensor; N]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor; N]) -> Result<Tensor>,
) -> Result<()> {
    let vars = dims.map(var);
    let args = |dtype: DType| -> Result<[Tensor; N]> {
        let args = vars.iter().map(|var| view(&var.to_dtype(dtype)?));
        Ok(args.collect::<Result<Vec<_>>>()?.try_into().expect("N arguments"))
    };
    let named: Vec<_> = vars.iter().map(|var| ("argument", var)).collect();
    let expected = plain(&args(DType::F32)?)?;
    let gradients = loss(&expected)?.backward()?;
    let got = op(&args(DType::F32)?)?;
    assert_close("result", &got, &expected, 1e-6);
    assert_same_gradients(&loss(&got)?.backward()?, &gradients, &named);
    if vars[0].elem_count() < 100 {
        // A gradient that cancels to almost nothing has no digits in 16 bits.
        return Ok(());
    }
    for (dtype, tolerance) in HALVES {
        let got = op(&args(dtype)?)?;
        assert_eq!(got.dtype(), dtype);
        assert_close("result", &got, &expected, tolerance);
        let got = loss(&got)?.backward()?;
        for (i, (_, var)) in named.iter().enumerate() {
            let (got, expected) = (got.get(var).unwrap(), gradients.get(var).unwrap());
            assert_close(&format!("{dtype:?} {i}"), got, expected, tolerance);
        }
    }
    Ok(())
}

fn as_is(x: &Tensor) -> Result<Tensor> {
    Ok(x.clone())
}

/// A view that is not contiguous.
fn strided(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()?.transpose(0, 1)
}

#[test]
fn rms_norms() -> Result<()> {
    for (dims, view) in [
        (&[7, 33][..], as_is as fn(&Tensor) -> Result<Tensor>),
        (&[2, 5, 20], strided),
        (&[1, 1, 5], as_is),
    ] {
        let weight = (random(&dims[dims.len() - 1..]) + 1.0)?;
        let op = |x: &[Tensor; 1]| rms_norm(&x[0], &weight.to_dtype(x[0].dtype())?, 1e-3);
        compare([dims], view, op, |x| plain::rms_norm(&x[0], &weight, 1e-3))?;
    }
    Ok(())
}

#[test]
fn ropes() -> Result<()> {
    // Tables may be longer than T.
    let [cos, sin] = plain::tables(9, 6, 100.0)?;
    for (dims, view) in [
        (&[2, 3, 7, 6][..], as_is as fn(&Tensor) -> Result<Tensor>),
        (&[2, 3, 9, 6], strided),
        (&[1, 1, 1, 6], as_is),
    ] {
        let op = |x: &[Tensor; 1]| {
            let dtype = x[0].dtype();
            rope(&x[0], &cos.to_dtype(dtype)?, &sin.to_dtype(dtype)?)
        };
        compare([dims], view, op, |x| candle_nn::rotary_emb::rope_slow(&x[0], &cos, &sin))?;
    }
    Ok(())
}

#[test]
fn attentions() -> Result<()> {
    let sizes = [(2, 7, 4, 2, 6), (1, 4, 1, 1, 6), (3, 5, 3, 3, 10), (2, 9, 6, 1, 4)];
    for (b, t, heads, kv_heads, n) in sizes {
        let (q, kv) = ([b, t, heads * n], [b, t, kv_heads * n]);
        let [cos, sin] = plain::tables(t, n, 50.0)?;
        let rotated = Attention::new(n).with_rope(rope_frequencies(n, 50.0));
        let scaled = Attention::new(n).with_scale(0.7);
        for view in [as_is, strided] {
            let scale = (n as f64).powf(-0.5);
            compare(
                [&q, &kv, &kv],
                view,
                |[q, k, v]| rotated.forward(q, k, v),
                |[q, k, v]| {
                    let rope = |x: &Tensor| {
                        candle_nn::rotary_emb::rope_slow(&plain::split(x, n)?, &cos, &sin)
                    };
                    let v = plain::split(v, n)?;
                    plain::join(&plain::attention(&rope(q)?, &rope(k)?, &v, scale)?)
                },
            )?;
            compare(
                [&q, &kv, &kv],
                view,
                |[q, k, v]| scaled.forward(q, k, v),
                |args| {
                    let [q, k, v] = args.each_ref().map(|x| plain::split(x, n));
                    plain::join(&plain::attention(&q?, &k?, &v?, 0.7)?)
                },
            )?;
        }
    }
    Ok(())
}

/// One [`Attention`] serves batches of any size and type in any order.
#[test]
fn attention_keeps_no_stale_tables() -> Result<()> {
    let new = || Attention::new(4).with_rope(rope_frequencies(4, 10.0));
    let one = new();
    for (b, t, dtype) in [
        (1, 3, DType::F32),
        (4, 3, DType::F32),
        (2, 3, DType::F32),
        (2, 30, DType::F32),
        (2, 5, DType::BF16),
        (2, 5, DType::F32),
    ] {
        let x = random(&[b, t, 8]).to_dtype(dtype)?;
        assert_close("H", &one.forward(&x, &x, &x)?, &new().forward(&x, &x, &x)?, 0.0);
    }
    Ok(())
}

#[test]
fn swiglus() -> Result<()> {
    let plain = |[gate, up]: &[Tensor; 2]| gate.silu()? * up;
    let op = |[gate, up]: &[Tensor; 2]| swiglu(gate, up);
    compare([&[7, 33], &[7, 33]], as_is, op, plain)?;
    compare([&[2, 5, 20], &[2, 5, 20]], strided, op, plain)?;
    // Far from 0, where σ is 0 or 1.
    let far = |[gate, up]: &[Tensor; 2]| Ok::<_, Error>([(gate * 20.0)?, (up * 0.1)?]);
    compare([&[7, 33], &[7, 33]], as_is, |args| op(&far(args)?), |args| plain(&far(args)?))
}

/// The mean over labels that count, by candle's operations.
fn cross_entropy(x: &Tensor, weight: &Tensor, labels: &[i64]) -> Result<Tensor> {
    let rows = (0..labels.len()).filter(|&i| labels[i] != IGNORE_INDEX);
    let rows: Vec<_> = rows.map(|i| i as u32).collect();
    let labels: Vec<_> = rows.iter().map(|&i| labels[i as usize]).collect();
    let (n, count) = (x.dim(D::Minus1)?, rows.len());
    let x = x.reshape(((), n))?.index_select(&Tensor::from_vec(rows, count, x.device())?, 0)?;
    let labels = Tensor::from_vec(labels, count, x.device())?;
    candle_nn::loss::cross_entropy(&x.matmul(&weight.t()?)?, &labels)
}

#[test]
fn cross_entropies() -> Result<()> {
    let weight = random(&[37, 20]);
    let labels = [0, 36, 5, IGNORE_INDEX, 5, 7, IGNORE_INDEX, 1, 2, 3];
    for view in [as_is, strided] {
        for labels_dtype in [DType::U32, DType::I64] {
            let own = Tensor::new(&labels, &Device::Cpu)?.reshape((2, 5))?;
            let own = own.to_dtype(labels_dtype)?;
            let op = |x: &[Tensor; 1]| {
                linear_cross_entropy(&x[0], &weight.to_dtype(x[0].dtype())?, &own)
            };
            let x = var(&[2, 5, 20]);
            let (got, expected) = (op(&[view(&x)?])?, cross_entropy(&view(&x)?, &weight, &labels)?);
            assert_close("loss", &got, &expected, 1e-6);
            // The gradient scales with that of the loss.
            let got = (got * 3.0)?.backward()?;
            let expected = (expected * 3.0)?.backward()?;
            assert_same_gradients(&got, &expected, &[("x", &x)]);
            let ignored = got.get(&x).unwrap().flatten_to(1)?.narrow(0, 3, 1)?;
            assert_eq!(ignored.abs()?.max_all()?.to_scalar::<f32>()?, 0.0);
            for (dtype, tolerance) in HALVES {
                let half = op(&[x.to_dtype(dtype)?])?;
                assert_eq!(half.dtype(), DType::F32);
                let grads = (half * 3.0)?.backward()?;
                assert_close("dx", grads.get(&x).unwrap(), expected.get(&x).unwrap(), tolerance);
            }
        }
    }
    Ok(())
}

/// Logits whose exponentials overflow, and a loss without a gradient.
#[test]
fn cross_entropies_of_large_logits() -> Result<()> {
    let (x, weight) = (Var::from_tensor(&(random(&[9, 4]) * 400.0)?)?, random(&[37, 4]));
    let labels = [3, 1, 4, 1, 5, 9, 2, 6, 5];
    let own = Tensor::new(&labels, &Device::Cpu)?;
    let got = linear_cross_entropy(&x, &weight, &own)?;
    let expected = cross_entropy(&x, &weight, &labels)?;
    assert_close("loss", &got, &expected, 1e-6);
    assert_same_gradients(&got.backward()?, &expected.backward()?, &[("x", &x)]);
    let detached = linear_cross_entropy(&x.as_detached_tensor(), &weight, &own)?;
    assert_close("loss", &detached, &got, 0.0);
    Ok(())
}

#[test]
fn a_loss_of_no_label_is_nan() -> Result<()> {
    let labels = Tensor::full(IGNORE_INDEX, (2, 3), &Device::Cpu)?;
    let loss = linear_cross_entropy(&random(&[2, 3, 4]), &random(&[5, 4]), &labels)?;
    assert!(loss.to_scalar::<f32>()?.is_nan());
    Ok(())
}

/// Arguments that are not part of the graph get no gradient, and the others theirs.
#[test]
fn only_what_is_tracked_gets_a_gradient() -> Result<()> {
    let (q, kv) = (var(&[1, 5, 8]), random(&[1, 5, 4]));
    let attention = Attention::new(4);
    let gradients = loss(&attention.forward(&q, &kv, &kv)?)?.backward()?;
    assert!(gradients.get(&q).is_some() && gradients.get(&kv).is_none());
    let up = random(&[1, 5, 8]);
    let gradients = loss(&swiglu(&q, &up)?)?.backward()?;
    assert!(gradients.get(&q).is_some() && gradients.get(&up).is_none());
    Ok(())
}
