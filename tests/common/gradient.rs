//! The gradient of a matrix, in all the ways that operations make it.

use super::assert_same_bits;
use super::buffer::{Buffer, DeviceElement, Place};
use lora_kernels::{DType, Element};

/// Where the gradients of a matrix go: overwritten and added to, in f32 and in 16 bits.
pub struct Gradient<E> {
    pub new: Buffer<f32>,
    pub added: Buffer<f32>,
    /// `None` if the element type is f32.
    pub rounded: Option<[Buffer<E>; 2]>,
}

impl<E: DeviceElement> Gradient<E> {
    pub fn new(place: &Place, [new, added, rounded]: [&'static str; 3], shape: [usize; 2]) -> Self {
        let two = || [0; 2].map(|_| Buffer::new(place, rounded, shape));
        Gradient {
            new: Buffer::new(place, new, shape),
            added: Buffer::new(place, added, shape),
            rounded: (E::DTYPE != DType::F32).then(two),
        }
    }

    /// What the buffers hold that are added to.
    pub fn base<G: Element>(&self) -> Vec<G> {
        let base = |i: usize| G::from_f64((0.1 * (i % 7) as f32).into());
        (0..self.new.elements()).map(base).collect()
    }

    pub fn load(&mut self) {
        self.new.set_poison();
        self.added.set(&self.base::<f32>());
        let base = self.base::<E>();
        if let Some([new, added]) = &mut self.rounded {
            new.set_poison();
            added.set(&base);
        }
    }

    /// The f32 gradient. Checks that all others follow from it: `Add` gave the bits of an overwrite
    /// and an f32 addition, and those in 16 bits are these numbers, rounded.
    pub fn get(&self) -> Vec<f32> {
        let new = self.new.get();
        let base = self.base::<f32>();
        let sum: Vec<f32> = base.iter().zip(&new).map(|(base, new)| base + new).collect();
        assert_same_bits(self.added.name, &self.added.get(), &sum);
        if let Some([rounded, added]) = &self.rounded {
            let base = self.base::<E>();
            for (buffer, adds) in [(rounded, false), (added, true)] {
                let sum = |(base, &new): (&E, &f32)| match adds {
                    true => base.to_f64() as f32 + new,
                    false => new,
                };
                let sums = base.iter().zip(&new).map(sum);
                let want: Vec<E> = sums.map(|sum| E::from_f64(sum.into())).collect();
                assert_same_bits(&format!("{}, added: {adds}", buffer.name), &buffer.get(), &want);
            }
        }
        new
    }
}
