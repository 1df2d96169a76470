//! Random tensors, and comparisons.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

pub fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 0.5, shape, &Device::Cpu).unwrap()
}

/// A loss whose gradient differs from element to element.
pub fn loss(h: &Tensor) -> Result<Tensor> {
    let h = h.to_dtype(DType::F32)?;
    h.sqr()?.mean_all()? + h.sin()?.sum_all()?
}

/// ‖a − b‖ / ‖b‖.
pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (a.to_dtype(DType::F32).unwrap(), b.to_dtype(DType::F32).unwrap());
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let size = norm(&b);
    assert!(size > 0.0, "nothing to compare with");
    norm(&(a - b).unwrap()) / size
}

#[track_caller]
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f32) {
    let difference = difference(a, b);
    assert!(difference <= tolerance, "{what}: relative difference {difference:e}");
}

/// ‖a − b‖ / ‖b‖ of all gradients together.
pub fn distance(a: &GradStore, b: &GradStore, vars: &[(String, Var)]) -> Result<f32> {
    let all = |grads: &GradStore| {
        let grads = vars.iter().map(|(_, var)| grads.get(var).expect("a gradient").flatten_all());
        Tensor::cat(&grads.collect::<Result<Vec<_>>>()?, 0)
    };
    Ok(difference(&all(a)?, &all(b)?))
}
