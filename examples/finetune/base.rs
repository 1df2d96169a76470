//! The base model, trained in full in plain f32: what a pretrained network is in real life.

use crate::digits::{CLASSES, Digits, PIXELS};
use crate::training::{
    Adam, BATCH, cross_entropy, learning_rate, predictions, relu, relu_backward,
};
use indicatif::ProgressBar;
use rand::RngExt;
use rand_pcg::Pcg64;

/// Width of the hidden layer.
pub const HIDDEN: usize = 256;

const EPOCHS: usize = 40;
const PEAK_LEARNING_RATE: f32 = 2e-3;

/// The weights of `logits = W2 relu(W1 x)`, each [outputs, inputs] and row-major.
pub struct Base {
    pub w1: Vec<f32>,
    pub w2: Vec<f32>,
}

impl Base {
    pub const PARAMETERS: usize = HIDDEN * PIXELS + CLASSES * HIDDEN;

    pub fn train(images: &Digits, rng: &mut Pcg64, progress: &ProgressBar) -> Self {
        let mut w1 = Adam::new(initial(HIDDEN, PIXELS, rng));
        let mut w2 = Adam::new(initial(CLASSES, HIDDEN, rng));
        let steps = EPOCHS * images.len().div_ceil(BATCH);
        progress.set_length(steps as u64);
        let batches = (0..EPOCHS).flat_map(|_| images.batches(BATCH, rng));
        for (step, batch) in batches.enumerate() {
            let x = &batch.pixels;
            let y = relu(times(x, &transposed(w1.parameters(), PIXELS), PIXELS));
            let logits = times(&y, &transposed(w2.parameters(), HIDDEN), HIDDEN);
            let (loss, dlogits) = cross_entropy(&logits, &batch.labels);
            let dz = relu_backward(times(&dlogits, w2.parameters(), CLASSES), &y);

            let rate = learning_rate(PEAK_LEARNING_RATE, step, steps);
            w2.step(&times(&transposed(&dlogits, CLASSES), &y, batch.len()), rate);
            w1.step(&times(&transposed(&dz, HIDDEN), x, batch.len()), rate);
            progress.set_message(format!("loss {loss:.3}"));
            progress.inc(1);
        }
        Base { w1: w1.parameters().to_vec(), w2: w2.parameters().to_vec() }
    }

    pub fn predict(&self, images: &Digits) -> Vec<usize> {
        let y = relu(times(&images.pixels, &transposed(&self.w1, PIXELS), PIXELS));
        predictions(&times(&y, &transposed(&self.w2, HIDDEN), HIDDEN))
    }
}

/// Uniform weights of variance 2/inputs, which keep the size of what passes a ReLU (He et al.,
/// 2015).
fn initial(outputs: usize, inputs: usize, rng: &mut Pcg64) -> Vec<f32> {
    let bound = (6.0 / inputs as f32).sqrt();
    (0..outputs * inputs).map(|_| rng.random_range(-bound..bound)).collect()
}

/// The product of row-major matrices, `lhs` [.., inner] and `rhs` [inner, ..].
fn times(lhs: &[f32], rhs: &[f32], inner: usize) -> Vec<f32> {
    let (rows, cols) = (lhs.len() / inner, rhs.len() / inner);
    let mut product = vec![0.0; rows * cols];
    for (out, lhs) in product.chunks_mut(cols).zip(lhs.chunks(inner)) {
        for (&l, rhs) in lhs.iter().zip(rhs.chunks(cols)) {
            out.iter_mut().zip(rhs).for_each(|(out, r)| *out += l * r);
        }
    }
    product
}

fn transposed(matrix: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| matrix.iter().skip(col).step_by(cols)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_multiply() {
        let m = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(transposed(&m, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(times(&m, &transposed(&m, 3), 3), [14.0, 32.0, 32.0, 77.0]);
    }
}
