//! What is made of inputs: a layer, a projection of it, the first tokens, some columns.

use crate::common::{DeviceElement, Inputs, Sizes};
use lora_kernels::{Adapter, Device, LoraLinear, Result, Scaling, Tensor};

impl<E: DeviceElement> Inputs<E> {
    /// The inputs of one projection, as a single layer.
    pub fn alone(&self, i: usize) -> Self {
        let (Sizes { t, k, .. }, (d, r)) = (self.sizes, self.sizes.of()[i]);
        let start = self.sizes.start(i);
        Inputs {
            sizes: Sizes::new(t, k, d, r),
            x: self.x.clone(),
            a: self.a[start * k..(start + r) * k].to_vec(),
            s: columns(&self.s, self.sizes.rank(), start, r),
            of: vec![self.of[i].clone()],
            dropout: self.dropout,
        }
    }

    /// The first tokens alone.
    pub fn first_tokens(&self, t: usize) -> Self {
        let mut first = self.clone();
        first.sizes.t = t;
        first.x.truncate(t * self.sizes.k);
        first.s.truncate(t * self.sizes.rank());
        for (of, (d, _)) in first.of.iter_mut().zip(self.sizes.of()) {
            of.dh.truncate(t * d);
        }
        first
    }
}

/// So many columns from `start` on, of a matrix of `cols`.
pub fn columns<E: Copy>(values: &[E], cols: usize, start: usize, n: usize) -> Vec<E> {
    values.chunks(cols).flat_map(|row| &row[start..start + n]).copied().collect()
}

/// The layer of these inputs. α/r gives their scales.
pub fn layer<E: DeviceElement>(device: &Device, inputs: &Inputs<E>) -> Result<LoraLinear> {
    let matrix = |values: &[E], shape: [usize; 2]| Tensor::from_slice(device, values, shape);
    let part = |i: usize| {
        let one = inputs.alone(i);
        let ([_, k, d, r], of) = (one.sizes.single(), &one.of[0]);
        let (a, b) = (matrix(&one.a, [r, k])?, matrix(&of.b, [d, r])?);
        let adapter = Adapter::from_tensors(a, b, of.scale * r as f32, Scaling::Standard)?;
        Ok((matrix(&of.w0, [d, k])?, adapter))
    };
    LoraLinear::group((0..inputs.of.len()).map(part).collect::<Result<_>>()?)
}
