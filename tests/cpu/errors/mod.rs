//! Every error that can be met on the CPU device: its variant, the argument and shapes it names,
//! and that the outputs are left alone.

mod arguments;
mod layers;
mod operations;
mod problems;
mod tensors;

use lora_kernels::{DType, Device, Shape, Tensor};

fn filled(value: f32, shape: &[usize], dtype: DType) -> Tensor {
    let shape = Shape::new(shape).unwrap();
    Tensor::from_f32(&Device::cpu(), &vec![value; shape.elements()], shape, dtype).unwrap()
}
