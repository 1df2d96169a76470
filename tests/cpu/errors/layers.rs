//! What layers and adapters refuse on the CPU device: the variant, and the argument and shapes it
//! names.

use lora_kernels::{Accumulation, Adapter, AdapterConfig, DType, Device, Error, LayerGradients};
use lora_kernels::{LoraLinear, MAX_PROJECTIONS, Result, Saved, Scaling, Tensor};

const T: usize = 4;
const K: usize = 6;
const D: usize = 5;
const R: usize = 2;

fn filled(shape: &[usize], dtype: DType) -> Tensor {
    super::filled(0.5, shape, dtype)
}

/// W0 and an adapter of the same d, k and element type.
fn fitting([d, k, r]: [usize; 3], dtype: DType) -> (Tensor, Adapter) {
    let (a, b) = (filled(&[r, k], dtype), filled(&[d, r], dtype));
    (filled(&[d, k], dtype), Adapter::from_tensors(a, b, 1.0, Scaling::Standard).unwrap())
}

fn three() -> Vec<(Tensor, Adapter)> {
    [[5, 6, 2], [7, 6, 1], [5, 6, 3]].map(|sizes| fitting(sizes, DType::Bf16)).into()
}

#[test]
fn adapters_and_single_layers() {
    let cpu = Device::cpu();
    let bf16 = |shape: &[usize]| filled(shape, DType::Bf16);
    let from = |a, b, alpha| Adapter::from_tensors(a, b, alpha, Scaling::Standard).map(drop);
    let configured =
        |config: AdapterConfig| Adapter::new(&cpu, [D, K], DType::Bf16, &config).map(drop);
    let default = AdapterConfig::default;
    let own = |w0| (w0, fitting([D, K, R], DType::Bf16).1);
    let layer = |w0| {
        let (w0, adapter) = own(w0);
        LoraLinear::new(w0, adapter)
    };
    let good = || layer(bf16(&[D, K])).unwrap();
    let forward = |x| good().forward(&x).map(drop);
    let backward = |s: Tensor, da: Tensor| {
        let (x, dh) = (bf16(&[T, K]), bf16(&[T, D]));
        let mut grads = LayerGradients { a: da, b: vec![filled(&[D, R], DType::F32)] };
        let (saved, set) = (Saved { x: x.view(), s, dropout: None }, Accumulation::Overwrite);
        good().backward_params(&[&dh], &saved, &mut grads, set)
    };
    let f32_gradient = || filled(&[R, K], DType::F32);

    let cases: Vec<(Result<()>, &str)> = vec![
        (from(bf16(&[1, R, K]), bf16(&[D, R]), 1.0), "a has shape [1, 2, 6], expected [r, k]"),
        (from(bf16(&[R, K]), bf16(&[D, 3]), 1.0), "b has shape [5, 3], expected [d, r]"),
        (
            from(bf16(&[R, K]), filled(&[D, R], DType::F16), 1.0),
            "b holds f16, expected the element type of a",
        ),
        (from(bf16(&[R, K]), bf16(&[D, R]), f32::NAN), "alpha must be a finite number, got NaN"),
        (from(bf16(&[R, K]), bf16(&[D, R]), f32::INFINITY), "alpha must be a finite number"),
        (from(bf16(&[0, K]), bf16(&[D, 0]), 1.0), "rank 0 is outside 1..=256"),
        (from(bf16(&[257, K]), bf16(&[D, 257]), 1.0), "rank 257 is outside 1..=256"),
        (from(bf16(&[R, 0]), bf16(&[D, R]), 1.0), "expected at least one column"),
        (from(bf16(&[R, K]), bf16(&[0, R]), 1.0), "expected at least one row and one column"),
        (configured(AdapterConfig::new(0)), "rank 0"),
        (configured(AdapterConfig::new(257)), "rank 257"),
        (configured(default().with_alpha(f32::NAN)), "alpha must be"),
        (configured(default().with_init_std(f32::NAN)), "init_std must be"),
        (layer(bf16(&[K, D])).map(drop), "w0 has shape [6, 5], expected [5, 6]"),
        (layer(filled(&[D, K], DType::F32)).map(drop), "w0 holds f32, expected"),
        (forward(bf16(&[T, K + 1])), "x has shape [4, 7], expected [..., 6]"),
        (forward(filled(&[T, K], DType::F32)), "x holds f32"),
        (backward(bf16(&[T, R + 1]), f32_gradient()), "s has shape [4, 3], expected 4 rows of 2"),
        // Both gradients are of the element type of dA.
        (backward(bf16(&[T, R]), bf16(&[R, K])), "db holds f32, expected bf16"),
        (backward(bf16(&[T, R]), filled(&[R, K], DType::F16)), "gradients holds f16, expected f32"),
    ];
    for (result, words) in cases {
        let message = result.expect_err(words).to_string();
        assert!(message.contains(words), "{message}, expected: {words}");
    }
}

#[test]
fn weights_that_make_no_layer() {
    let refused = |projections: Vec<(Tensor, Adapter)>, words: &str| {
        let error = LoraLinear::group(projections).expect_err(words);
        assert_eq!(error.to_string(), words);
    };
    refused(vec![], "projections is a list of 0, expected 1 to 4");
    let five = (0..MAX_PROJECTIONS + 1).map(|_| fitting([5, 6, 2], DType::Bf16)).collect();
    refused(five, "projections is a list of 5, expected 1 to 4");

    let replaced = |i: usize, with: (Tensor, Adapter)| {
        let mut projections = three();
        projections[i] = with;
        projections
    };
    let own = |w0: Tensor, sizes| (w0, fitting(sizes, DType::Bf16).1);
    let bf16 = |shape: &[usize]| filled(shape, DType::Bf16);
    refused(
        replaced(1, own(bf16(&[7, 5]), [7, 6, 1])),
        "projections[1].w0 has shape [7, 5], expected [7, 6], as the adapter",
    );
    refused(
        replaced(2, own(bf16(&[4, 6]), [5, 6, 3])),
        "projections[2].w0 has shape [4, 6], expected [5, 6], as the adapter",
    );
    refused(
        replaced(1, fitting([7, 9, 1], DType::Bf16)),
        "projections[1].w0 has shape [7, 9], expected [7, 6], as projections[0]",
    );
    refused(
        replaced(0, own(filled(&[5, 6], DType::F32), [5, 6, 2])),
        "projections[0].w0 holds f32, expected the element type of the adapter",
    );
    refused(
        replaced(2, fitting([5, 6, 3], DType::F16)),
        "projections[2].w0 holds f16, expected the element type of projections[0]",
    );
    assert!(LoraLinear::group(three()).is_ok());
}

/// The arguments of the calls, of which each case replaces one.
struct Arguments {
    x: Tensor,
    dh: Vec<Tensor>,
    s: Option<Tensor>,
    gradients: LayerGradients,
}

impl Arguments {
    fn good(layer: &LoraLinear) -> Self {
        Arguments {
            x: filled(&[4, 6], DType::Bf16),
            dh: [5, 7, 5].map(|d| filled(&[4, d], DType::Bf16)).into(),
            s: Some(filled(&[4, 6], DType::Bf16)),
            gradients: layer.zero_gradients().unwrap(),
        }
    }

    /// With dX, or without.
    fn backward(&mut self, layer: &LoraLinear, with_dx: bool) -> Result<()> {
        let (dh, set): (Vec<_>, _) = (self.dh.iter().collect(), Accumulation::Overwrite);
        let s = self.s.take().expect("one call");
        let (saved, gradients) =
            (Saved { x: self.x.view(), s, dropout: None }, &mut self.gradients);
        match with_dx {
            true => layer.backward(&dh, &saved, gradients, set).map(drop),
            false => layer.backward_params(&dh, &saved, gradients, set),
        }
    }
}

#[test]
fn arguments_that_do_not_fit() -> Result<()> {
    let layer = LoraLinear::group(three())?;
    let good = || Arguments::good(&layer);
    good().backward(&layer, true)?;
    good().backward(&layer, false)?;

    type Replace = fn(&mut Arguments);
    let of_x: [(Replace, &str, &str); 2] = [
        (
            |x| x.x = filled(&[4, 7], DType::Bf16),
            "x has shape [4, 7], expected [..., 6]",
            "x has shape [4, 7], expected 4 rows of 6",
        ),
        (
            |x| x.x = filled(&[4, 6], DType::F16),
            "x holds f16, expected bf16",
            "x holds f16, expected bf16",
        ),
    ];
    let cases: [(Replace, &str); 10] = [
        (|x| drop(x.dh.pop()), "dh is a list of 2, expected 3, one for every projection"),
        (|x| x.dh.swap(1, 2), "dh[1] has shape [4, 5], expected 4 rows of 7"),
        (|x| x.dh[2] = filled(&[4, 5], DType::F32), "dh[2] holds f32, expected bf16"),
        (|x| x.s = Some(filled(&[4, 2], DType::Bf16)), "s has shape [4, 2], expected 4 rows of 6"),
        (|x| x.s = Some(filled(&[4, 6], DType::F32)), "s holds f32, expected bf16"),
        (
            |x| x.gradients.a = filled(&[5, 6], DType::F32),
            "da has shape [5, 6], expected 6 rows of 6",
        ),
        (
            |x| x.gradients.a = filled(&[6, 6], DType::F16),
            "gradients holds f16, expected f32, or the element type of x",
        ),
        (|x| x.gradients.a = filled(&[6, 6], DType::Bf16), "db[0] holds f32, expected bf16"),
        (
            |x| x.gradients.b.push(filled(&[5, 3], DType::F32)),
            "db is a list of 4, expected 3, one for every projection",
        ),
        (
            |x| x.gradients.b[1] = filled(&[1, 7], DType::F32),
            "db[1] has shape [1, 7], expected 7 rows of 1",
        ),
    ];
    for (replace, words) in
        of_x.map(|(replace, _, words)| (replace, words)).into_iter().chain(cases)
    {
        for with_dx in [true, false] {
            let mut arguments = good();
            replace(&mut arguments);
            let error = arguments.backward(&layer, with_dx).expect_err(words);
            assert_eq!(error.to_string(), words);
        }
    }
    for (replace, words, _) in of_x {
        let mut arguments = good();
        replace(&mut arguments);
        let x = &arguments.x;
        assert_eq!(layer.forward(x).expect_err(words).to_string(), words);
        assert_eq!(layer.infer(x).expect_err(words).to_string(), words);
        assert_eq!(layer.forward_base(x).expect_err(words).to_string(), words);
    }
    Ok(())
}

#[test]
fn calls_that_merging_forbids() -> Result<()> {
    let mut layer = LoraLinear::group(three())?;
    let w0 = |layer: &LoraLinear| layer.projections()[1].w0().to_f32_vec();
    assert_eq!(layer.unmerge().unwrap_err(), Error::Merged { merged: false });
    assert!(!layer.is_merged());
    assert_eq!(w0(&layer)?, [0.5; 7 * 6]);
    assert_eq!((layer.views()?.len(), layer.tensors_mut()?.1.len()), (3, 3));

    layer.merge()?;
    assert!(layer.is_merged());
    // α = 1 and r = 1, A and B of 0.5.
    assert_eq!(w0(&layer)?, [0.75; 7 * 6]);
    let x = filled(&[4, 6], DType::Bf16);
    let mut h = [5, 7, 5].map(|d| filled(&[4, d], DType::Bf16));
    let (mut with_dx, mut without) = (Arguments::good(&layer), Arguments::good(&layer));
    let (masters_a, masters_b) =
        (filled(&[6, 6], DType::F32), [[5, 2], [7, 1], [5, 3]].map(|b| filled(&b, DType::F32)));
    let refused = [
        layer.forward(&x).map(drop),
        layer.infer(&x).map(drop),
        layer.forward_into(&Device::cpu(), x.view(), &mut h.each_mut().map(Tensor::view_mut), None),
        with_dx.backward(&layer, true),
        without.backward(&layer, false),
        layer.merged().map(drop),
        layer.views().map(drop),
        layer.tensors_mut().map(drop),
        layer.round_from(&masters_a, &masters_b.each_ref()),
        layer.merge(),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err(), Error::Merged { merged: true });
    }
    for (output, d) in h.iter().zip([5, 7, 5]) {
        assert_eq!(output.to_f32_vec()?, vec![0.5; 4 * d], "an output was written");
    }
    assert_eq!(w0(&layer)?, [0.75; 7 * 6]);
    layer.forward_base(&x)?;
    layer.adapters()?;

    layer.unmerge()?;
    assert!(!layer.is_merged());
    assert_eq!(w0(&layer)?, [0.5; 7 * 6]);
    layer.forward(&x)?;
    layer.views()?;
    layer.tensors_mut()?;
    Ok(())
}

/// An A with fewer rows than the projections need is an error where they are looked for.
#[test]
fn an_a_that_was_replaced() -> Result<()> {
    let mut layer = LoraLinear::group(three())?;
    *layer.tensors_mut()?.0 = filled(&[4, 6], DType::Bf16);
    let words = "a has shape [4, 6], expected [6, 6]";
    let x = filled(&[4, 6], DType::Bf16);
    assert_eq!(layer.infer(&x).expect_err(words).to_string(), words);
    let words = "tensor has shape [4, 6], expected one with rows 3..6";
    assert_eq!(layer.adapters().expect_err(words).to_string(), words);
    assert_eq!(layer.merged().expect_err(words).to_string(), words);
    Ok(())
}
