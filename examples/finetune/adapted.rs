//! The frozen base with a LoRA adapter on each layer: the part that uses the crate.

use crate::Result;
use crate::base::{Base, HIDDEN};
use crate::digits::{CLASSES, Digits, PIXELS};
use crate::training::{
    Adam, BATCH, cross_entropy, learning_rate, predictions, relu, relu_backward,
};
use indicatif::ProgressBar;
use lora_kernels::{
    Accumulation, Adapter, AdapterConfig, DType, Device, LayerGradients, LoraLinear, Tensor,
};
use rand::Rng;
use rand_pcg::Pcg64;

const PEAK_LEARNING_RATE: f32 = 5e-3;

/// `logits = W2 relu(W1 x)` with both weights frozen and adapted.
///
/// The layers run on the device. ReLU and the loss are a few thousand numbers a step and run on
/// the host, which keeps the example to what the crate is about; a real network would leave its
/// activations on the GPU.
pub struct Adapted {
    device: Device,
    dtype: DType,
    first: Layer,
    second: Layer,
}

/// A LoRA layer and what its training takes.
struct Layer {
    lora: LoraLinear,
    gradients: LayerGradients,
    a: Adam,
    b: Adam,
}

/// Which weights a prediction uses.
#[derive(Clone, Copy)]
pub enum Weights {
    /// W0 and the adapter beside it.
    Adapted,
    /// The layer's own weight alone: W0, or W0 + sBA once merged.
    Own,
}

/// New adapters for the two layers. They need no weights yet, only their shapes.
pub fn adapters(
    device: &Device,
    dtype: DType,
    rank: usize,
    alpha: f32,
    rng: &mut Pcg64,
) -> Result<[Adapter; 2]> {
    let mut adapter = |d, k| {
        let config = AdapterConfig::new(rank).with_alpha(alpha).with_seed(rng.next_u64());
        Adapter::new(device, [d, k], dtype, &config)
    };
    Ok([adapter(HIDDEN, PIXELS)?, adapter(CLASSES, HIDDEN)?])
}

impl Adapted {
    pub fn new(
        device: &Device,
        dtype: DType,
        base: &Base,
        [first, second]: [Adapter; 2],
    ) -> Result<Self> {
        let w1 = Tensor::from_f32(device, &base.w1, [HIDDEN, PIXELS], dtype)?;
        let w2 = Tensor::from_f32(device, &base.w2, [CLASSES, HIDDEN], dtype)?;
        Ok(Adapted {
            device: device.clone(),
            dtype,
            first: Layer::new(LoraLinear::new(w1, first)?)?,
            second: Layer::new(LoraLinear::new(w2, second)?)?,
        })
    }

    /// From now on training drops elements of the adapters' input with probability p.
    pub fn drop_inputs(&mut self, p: f32, seed: u64) -> Result<()> {
        self.first.lora.train(p, seed, 0)?;
        // Another seed, or both layers would have the same mask.
        Ok(self.second.lora.train(p, seed.wrapping_add(1), 0)?)
    }

    /// Trains the adapters and returns the loss of every step.
    pub fn train(
        &mut self,
        images: &Digits,
        epochs: usize,
        rng: &mut Pcg64,
        progress: &ProgressBar,
    ) -> Result<Vec<f32>> {
        let steps = epochs * images.len().div_ceil(BATCH);
        progress.set_length(steps as u64);
        let mut losses = Vec::with_capacity(steps);
        for batch in (0..epochs).flat_map(|_| images.batches(BATCH, rng)) {
            let loss = self.step(&batch, learning_rate(PEAK_LEARNING_RATE, losses.len(), steps))?;
            if !loss.is_finite() {
                return Err("the loss is no longer finite: try a smaller --alpha".into());
            }
            losses.push(loss);
            progress.set_message(format!("loss {loss:.3}"));
            progress.inc(1);
        }
        Ok(losses)
    }

    /// One step of training; returns the loss before it.
    fn step(&mut self, batch: &Digits, learning_rate: f32) -> Result<f32> {
        let (first, second) = (&self.first.lora, &self.second.lora);

        let x = self.upload(&batch.pixels, PIXELS)?;
        let z = first.forward(&x)?;
        let y = relu(z.h[0].to_f32_vec()?);
        let y_tensor = self.upload(&y, HIDDEN)?;
        let logits = second.forward(&y_tensor)?;
        let (loss, dlogits) = cross_entropy(&logits.h[0].to_f32_vec()?, &batch.labels);

        let overwrite = Accumulation::Overwrite;
        let dlogits = self.upload(&dlogits, CLASSES)?;
        let gradients = &mut self.second.gradients;
        let dy = second.backward(&[&dlogits], &logits.saved, gradients, overwrite)?;
        let dz = self.upload(&relu_backward(dy.to_f32_vec()?, &y), HIDDEN)?;
        // Nothing comes before the first layer that could use its dX.
        first.backward_params(&[&dz], &z.saved, &mut self.first.gradients, overwrite)?;

        self.first.update(learning_rate)?;
        self.second.update(learning_rate)?;
        Ok(loss)
    }

    pub fn predict(&self, images: &Digits, weights: Weights) -> Result<Vec<usize>> {
        let x = self.upload(&images.pixels, PIXELS)?;
        let y = relu(self.first.apply(&x, weights)?.to_f32_vec()?);
        let logits = self.second.apply(&self.upload(&y, HIDDEN)?, weights)?;
        Ok(predictions(&logits.to_f32_vec()?))
    }

    /// Adds each adapter to its layer's own weight.
    pub fn merge(&mut self) -> Result<()> {
        self.first.lora.merge()?;
        self.second.lora.merge()?;
        Ok(())
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many numbers are trained.
    pub fn parameters(&self) -> usize {
        self.layers().map(|layer| layer.lora.parameters()).sum()
    }

    pub fn adapter_bytes(&self) -> usize {
        self.layers().flat_map(Layer::adapter).map(Tensor::bytes).sum()
    }

    pub fn gradient_bytes(&self) -> usize {
        self.layers().map(|layer| layer.gradients.a.bytes() + layer.gradients.b[0].bytes()).sum()
    }

    /// A hash of every bit of the adapters (64-bit FNV-1a), to compare runs by.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = 0xcbf2_9ce4_8422_2325;
        for tensor in self.layers().flat_map(Layer::adapter) {
            for byte in tensor.to_f32_vec()?.into_iter().flat_map(f32::to_le_bytes) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Ok(hash)
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        [&self.first, &self.second].into_iter()
    }

    /// Rows of `cols` values as a tensor on the device, rounded to its element type.
    fn upload(&self, values: &[f32], cols: usize) -> Result<Tensor> {
        let shape = [values.len() / cols, cols];
        Ok(Tensor::from_f32(&self.device, values, shape, self.dtype)?)
    }
}

impl Layer {
    fn new(lora: LoraLinear) -> Result<Self> {
        let gradients = lora.zero_gradients()?;
        let a = Adam::new(lora.a().to_f32_vec()?);
        let b = Adam::new(lora.projections()[0].b().to_f32_vec()?);
        Ok(Layer { lora, gradients, a, b })
    }

    /// A and B.
    fn adapter(&self) -> [&Tensor; 2] {
        [self.lora.a(), self.lora.projections()[0].b()]
    }

    fn apply(&self, x: &Tensor, weights: Weights) -> Result<Tensor> {
        let mut h = match weights {
            Weights::Adapted => self.lora.infer(x)?,
            Weights::Own => self.lora.forward_base(x)?,
        };
        // Of the only projection.
        Ok(h.remove(0))
    }

    /// Moves A and B against their gradients. W0 has none.
    fn update(&mut self, learning_rate: f32) -> Result<()> {
        let (a, mut b) = self.lora.tensors_mut()?;
        for (tensor, gradient, adam) in
            [(a, &self.gradients.a, &mut self.a), (b.remove(0), &self.gradients.b[0], &mut self.b)]
        {
            adam.step(&gradient.to_vec::<f32>()?, learning_rate);
            tensor.copy_from_f32(adam.parameters())?;
        }
        Ok(())
    }
}
