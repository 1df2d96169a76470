//! Inputs with dropout.

use crate::common::{DeviceElement, Inputs};
use lora_kernels::Dropout;

impl<E: DeviceElement> Inputs<E> {
    /// The same with dropout. With p a half, sums of [`Inputs::integers`] stay exact.
    pub fn dropped(self, p: f32, seed: u64, offset: u64) -> Self {
        let dropout = Dropout::new(p, seed, offset).expect("a probability below one");
        Inputs { dropout: Some(dropout), ..self }
    }
}
