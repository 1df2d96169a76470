//! What a layer does besides the formulas, on the CPU reference: calls into buffers of the
//! caller's, many batch sizes, and several threads.

use crate::common::{Inputs, Sizes, assert_same_bits};
use crate::oracle::on_cpu;
use crate::parts::layer;
use half::bf16;
use lora_kernels::{Accumulation, DType, Device, Error, Result, Saved, Tensor};

const OF: &[(usize, usize)] = &[(24, 8), (9, 3), (8, 16)];

fn x_of(inputs: &Inputs<bf16>) -> Result<Tensor> {
    Tensor::from_slice(&Device::cpu(), &inputs.x, [inputs.sizes.t, inputs.sizes.k])
}

#[test]
fn forward_into_is_forward() -> Result<()> {
    let (cpu, inputs) = (Device::cpu(), Inputs::<bf16>::reals(Sizes::group(13, 40, OF), 1));
    let (layer, x) = (layer(&Device::cpu(), &inputs)?, x_of(&inputs)?);
    let want = layer.forward(&x)?;
    let zeros = |cols| Tensor::zeros(&cpu, [13, cols], DType::Bf16);
    let mut h = [zeros(24)?, zeros(9)?, zeros(8)?];
    let mut s = zeros(27)?;
    layer.forward_into(&cpu, x.view(), &mut h.each_mut().map(Tensor::view_mut), s.view_mut())?;
    for (got, want) in h.iter().zip(&want.h) {
        assert_same_bits("h", &got.to_vec::<bf16>()?, &want.to_vec::<bf16>()?);
    }
    assert_same_bits("s", &s.to_vec::<bf16>()?, &want.saved.s.to_vec::<bf16>()?);

    // Without S, and S and x put together again for the backward pass.
    let mut alone = [zeros(24)?, zeros(9)?, zeros(8)?];
    layer.forward_into(&cpu, x.view(), &mut alone.each_mut().map(Tensor::view_mut), None)?;
    for (got, want) in alone.iter().zip(&h) {
        assert_same_bits("h without s", &got.to_vec::<bf16>()?, &want.to_vec::<bf16>()?);
    }
    let dh = h.each_ref();
    let backward = |saved: &Saved<'_>| -> Result<_> {
        let mut gradients = layer.zero_gradients()?;
        let dx = layer.backward(&dh, saved, &mut gradients, Accumulation::Overwrite)?;
        Ok((dx.to_vec::<bf16>()?, gradients.a.to_vec::<f32>()?))
    };
    let (dx, da): (Vec<bf16>, Vec<f32>) = backward(&Saved { x: x.view(), s, dropout: None })?;
    let (want_dx, want_da) = backward(&want.saved)?;
    assert_same_bits("dx", &dx, &want_dx);
    assert_same_bits("da", &da, &want_da);

    let two = &mut [h[0].view_mut()];
    let error = layer.forward_into(&cpu, x.view(), two, None).unwrap_err();
    assert!(matches!(error, Error::Count { argument: "h", got: 1, .. }), "{error}");
    let mut short = [zeros(24)?, zeros(9)?, Tensor::zeros(&cpu, [12, 8], DType::Bf16)?];
    let views = &mut short.each_mut().map(Tensor::view_mut);
    let error = layer.forward_into(&cpu, x.view(), views, None).unwrap_err();
    assert_eq!(error.to_string(), "h[2] has shape [12, 8], expected 13 rows of 8");
    let wide = Tensor::zeros(&cpu, [13, 41], DType::Bf16)?;
    let error = layer.forward_into(&cpu, wide.view(), views, None).unwrap_err();
    assert_eq!(error.to_string(), "x has shape [13, 41], expected 13 rows of 40");
    Ok(())
}

/// More batch sizes than a layer keeps operations for, in an order that drops and makes them again.
#[test]
fn many_batch_sizes() -> Result<()> {
    let all = Inputs::<bf16>::reals(Sizes::group(60, 40, OF), 2);
    let layer = layer(&Device::cpu(), &all)?;
    let up_and_down = (0..60).chain((0..60).rev());
    let jumps = (0..60).map(|i| (i * 37) % 60);
    for t in up_and_down.chain(jumps).chain([5; 3]) {
        let inputs = all.first_tokens(t);
        let (want, x) = (on_cpu(&inputs), x_of(&inputs)?);
        let (out, base) = (layer.forward(&x)?, layer.forward_base(&x)?);
        assert_eq!((out.h.len(), base.len()), (OF.len(), OF.len()));
        for (i, (h, base)) in out.h.iter().zip(&base).enumerate() {
            assert_same_bits(&format!("h of T={t}"), &h.to_vec::<bf16>()?, &want.h[i]);
            assert_same_bits(&format!("base h of T={t}"), &base.to_vec::<bf16>()?, &want.base_h[i]);
        }
        assert_same_bits(&format!("s of T={t}"), &out.saved.s.to_vec::<bf16>()?, &want.s);
        let s = Tensor::from_slice(&Device::cpu(), &inputs.s, [t, 27])?;
        let dh = inputs
            .of
            .iter()
            .zip(OF)
            .map(|(of, &(d, _))| Tensor::from_slice(&Device::cpu(), &of.dh, [t, d]));
        let dh = dh.collect::<Result<Vec<_>>>()?;
        let (dh, saved): (Vec<_>, _) =
            (dh.iter().collect(), Saved { x: x.view(), s, dropout: None });
        let mut gradients = layer.zero_gradients()?;
        let dx = layer.backward(&dh, &saved, &mut gradients, Accumulation::Overwrite)?;
        assert_same_bits(&format!("dx of T={t}"), &dx.to_vec::<bf16>()?, &want.dx);
        assert_same_bits(&format!("da of T={t}"), &gradients.a.to_vec::<f32>()?, &want.da);
    }
    Ok(())
}

/// A layer is called by several threads at once, with batches of different sizes.
#[test]
fn threads_share_a_layer() -> Result<()> {
    let all = Inputs::<bf16>::reals(Sizes::group(40, 40, OF), 3);
    let (layer, want) = (layer(&Device::cpu(), &all)?, on_cpu(&all));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (all, layer, want) = (&all, &layer, &want);
            scope.spawn(move || {
                for t in (1..=40).map(|t| (t * 7 + thread * 11) % 41) {
                    let x = x_of(&all.first_tokens(t)).unwrap();
                    for (h, want) in layer.infer(&x).unwrap().iter().zip(&want.h) {
                        // The reference makes every token by itself.
                        let h = h.to_vec::<bf16>().unwrap();
                        assert_same_bits(&format!("h of T={t}"), &h, &want[..h.len()]);
                    }
                }
            });
        }
    });
    Ok(())
}
