//! Random tensors, and comparisons.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::cell::RefCell;

/// Uniform numbers with a standard deviation of 0.5. candle's generator of the CPU takes no seed:
/// here every test, which has a thread of its own, gets the same numbers on every run.
pub fn random(shape: &[usize]) -> Tensor {
    thread_local!(static RNG: RefCell<Pcg64> = RefCell::new(Pcg64::seed_from_u64(0)));
    let most = 0.5 * 3f32.sqrt();
    RNG.with_borrow_mut(|rng| {
        let values = (0..shape.iter().product()).map(|_| rng.random_range(-most..most));
        Tensor::from_iter(values, &Device::Cpu).unwrap().reshape(shape).unwrap()
    })
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
