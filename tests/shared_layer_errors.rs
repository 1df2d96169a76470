//! What the layer of projections that share their input refuses on the CPU device: the variant, and
//! the argument and shapes it names.

use lora_kernels::{Accumulation, Adapter, DType, Device, Error, InputGradient, Result, Scaling};
use lora_kernels::{Shape, SharedGradients, SharedLoraLinear, Tensor, MAX_PROJECTIONS};

fn filled(shape: &[usize], dtype: DType) -> Tensor {
    let shape = Shape::new(shape).unwrap();
    Tensor::from_f32(&Device::cpu(), &vec![0.5; shape.elements()], shape, dtype).unwrap()
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
fn weights_that_make_no_layer() {
    let refused = |projections: Vec<(Tensor, Adapter)>, words: &str| {
        let error = SharedLoraLinear::new(projections).expect_err(words);
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
    assert!(SharedLoraLinear::new(three()).is_ok());
}

/// The arguments of the calls, of which each case replaces one.
struct Arguments {
    x: Tensor,
    dh: Vec<Tensor>,
    s: Tensor,
    gradients: SharedGradients,
}

impl Arguments {
    fn good(layer: &SharedLoraLinear) -> Self {
        Arguments {
            x: filled(&[4, 6], DType::Bf16),
            dh: [5, 7, 5].map(|d| filled(&[4, d], DType::Bf16)).into(),
            s: filled(&[4, 6], DType::Bf16),
            gradients: layer.zero_gradients().unwrap(),
        }
    }
}

#[test]
fn arguments_that_do_not_fit() -> Result<()> {
    let layer = SharedLoraLinear::new(three())?;
    let good = || Arguments::good(&layer);
    let backward = |arguments: &mut Arguments| {
        let Arguments { x, dh, s, gradients } = arguments;
        let (dh, set): (Vec<_>, _) = (dh.iter().collect(), Accumulation::Overwrite);
        layer.backward(&dh, x, s, gradients, set, InputGradient::Compute).map(drop)
    };
    backward(&mut good())?;

    type Replace = fn(&mut Arguments);
    let cases: [(Replace, &str); 11] = [
        (|x| x.x = filled(&[4, 7], DType::Bf16), "x has shape [4, 7], expected [..., 6]"),
        (|x| x.x = filled(&[4, 6], DType::F16), "projections[0].w0 holds bf16, expected f16, as x"),
        (|x| drop(x.dh.pop()), "dh is a list of 2, expected 3, one for every projection"),
        (|x| x.dh.swap(1, 2), "dh[1] has shape [4, 5], expected 4 rows of 7"),
        (|x| x.dh[2] = filled(&[4, 5], DType::F32), "dh[2] holds f32, expected bf16, as x"),
        (|x| x.s = filled(&[4, 2], DType::Bf16), "s has shape [4, 2], expected 4 rows of 6"),
        (|x| x.s = filled(&[4, 6], DType::F32), "s holds f32, expected bf16, as x"),
        (
            |x| x.gradients.a = filled(&[5, 6], DType::F32),
            "da has shape [5, 6], expected 6 rows of 6",
        ),
        (|x| x.gradients.a = filled(&[6, 6], DType::Bf16), "da holds bf16, expected f32"),
        (
            |x| x.gradients.b.push(filled(&[5, 3], DType::F32)),
            "db is a list of 4, expected 3, one for every projection",
        ),
        (
            |x| x.gradients.b[1] = filled(&[1, 7], DType::F32),
            "db[1] has shape [1, 7], expected 7 rows of 1",
        ),
    ];
    for (replace, words) in cases {
        let mut arguments = good();
        replace(&mut arguments);
        assert_eq!(backward(&mut arguments).expect_err(words).to_string(), words);
    }
    for (replace, words) in &cases[..2] {
        let mut arguments = good();
        replace(&mut arguments);
        let x = &arguments.x;
        assert_eq!(layer.forward(x).expect_err(words).to_string(), *words);
        assert_eq!(layer.infer(x).expect_err(words).to_string(), *words);
    }
    let words = "x has shape [4, 7], expected [..., 6]";
    assert_eq!(
        layer.forward_frozen(&filled(&[4, 7], DType::Bf16)).expect_err(words).to_string(),
        words
    );
    Ok(())
}

#[test]
fn calls_that_merging_forbids() -> Result<()> {
    let mut layer = SharedLoraLinear::new(three())?;
    let w0 = |layer: &SharedLoraLinear| layer.projections()[1].w0().to_f32_vec();
    assert_eq!(layer.unmerge().unwrap_err(), Error::Merged { merged: false });
    assert!(!layer.is_merged());
    assert_eq!(w0(&layer)?, [0.5; 7 * 6]);

    layer.merge()?;
    assert!(layer.is_merged());
    // α = 1 and r = 1, A and B of 0.5.
    assert_eq!(w0(&layer)?, [0.75; 7 * 6]);
    let Arguments { x, dh, s, mut gradients } = Arguments::good(&layer);
    let (dh, set): (Vec<_>, _) = (dh.iter().collect(), Accumulation::Overwrite);
    let refused = [
        layer.forward(&x).map(drop),
        layer.infer(&x).map(drop),
        layer.backward(&dh, &x, &s, &mut gradients, set, InputGradient::Skip).map(drop),
        layer.merged().map(drop),
        layer.merge(),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err(), Error::Merged { merged: true });
    }
    assert_eq!(w0(&layer)?, [0.75; 7 * 6]);
    layer.forward_frozen(&x)?;

    layer.unmerge()?;
    assert!(!layer.is_merged());
    assert_eq!(w0(&layer)?, [0.5; 7 * 6]);
    layer.forward(&x)?;
    Ok(())
}

/// An A with fewer rows than the projections need is an error where they are looked for.
#[test]
fn an_a_that_was_replaced() -> Result<()> {
    let mut layer = SharedLoraLinear::new(three())?;
    *layer.tensors_mut().0 = filled(&[4, 6], DType::Bf16);
    let words = "a has shape [4, 6], expected [6, 6]";
    let x = filled(&[4, 6], DType::Bf16);
    assert_eq!(layer.infer(&x).expect_err(words).to_string(), words);
    let words = "tensor has shape [4, 6], expected one with rows 3..6";
    assert_eq!(layer.adapters().expect_err(words).to_string(), words);
    assert_eq!(layer.merged().expect_err(words).to_string(), words);
    Ok(())
}
