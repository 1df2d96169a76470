//! What both trainings share: the loss, the optimiser and its schedule.

use crate::digits::CLASSES;

pub const BATCH: usize = 64;

/// The mean cross-entropy of logits [T, CLASSES] and its gradient by the logits.
pub fn cross_entropy(logits: &[f32], labels: &[usize]) -> (f32, Vec<f32>) {
    let mut loss = 0.0;
    let mut gradient = logits.to_vec();
    for (row, &label) in gradient.chunks_mut(CLASSES).zip(labels) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = row[label] - max;
        row.iter_mut().for_each(|logit| *logit = (*logit - max).exp());
        let sum: f32 = row.iter().sum();
        loss += sum.ln() - shifted;
        row.iter_mut().for_each(|exp| *exp /= sum * labels.len() as f32);
        row[label] -= 1.0 / labels.len() as f32;
    }
    (loss / labels.len() as f32, gradient)
}

/// The class with the greatest logit in each row of logits [T, CLASSES].
pub fn predictions(logits: &[f32]) -> Vec<usize> {
    let greatest =
        |row: &[f32]| (1..row.len()).fold(0, |at, i| if row[i] > row[at] { i } else { at });
    logits.chunks(CLASSES).map(greatest).collect()
}

/// max(z, 0), element by element.
pub fn relu(mut z: Vec<f32>) -> Vec<f32> {
    z.iter_mut().for_each(|z| *z = z.max(0.0));
    z
}

/// The gradient by z from the gradient by `y = relu(z)`.
pub fn relu_backward(mut dy: Vec<f32>, y: &[f32]) -> Vec<f32> {
    dy.iter_mut().zip(y).filter(|&(_, &y)| y == 0.0).for_each(|(dy, _)| *dy = 0.0);
    dy
}

/// The learning rate of a step: half a cosine from `peak` down to zero.
///
/// Ending at rest is what makes runs comparable: at a constant rate, the last few steps, which
/// differ between bf16 and f32, would move the accuracy by more than the element types do.
pub fn learning_rate(peak: f32, step: usize, steps: usize) -> f32 {
    let done = step as f32 / steps as f32;
    0.5 * peak * (1.0 + (std::f32::consts::PI * done).cos())
}

/// Adam (Kingma and Ba, 2015) on one parameter tensor.
///
/// The parameters live here in f32, whatever the layers compute in: an update is mostly smaller
/// than what bf16 resolves, so that weights kept in bf16 alone would stand still.
pub struct Adam {
    parameters: Vec<f32>,
    mean: Vec<f32>,
    variance: Vec<f32>,
    steps: i32,
}

impl Adam {
    /// Bytes of optimiser state a parameter: its f32 copy and two moments.
    pub const BYTES_PER_PARAMETER: usize = 3 * size_of::<f32>();

    pub fn new(parameters: Vec<f32>) -> Self {
        let zeros = vec![0.0; parameters.len()];
        Adam { parameters, mean: zeros.clone(), variance: zeros, steps: 0 }
    }

    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    pub fn step(&mut self, gradient: &[f32], learning_rate: f32) {
        const DECAY: (f32, f32) = (0.9, 0.999);
        self.steps += 1;
        let bias = (1.0 - DECAY.0.powi(self.steps), 1.0 - DECAY.1.powi(self.steps));
        let moments = self.mean.iter_mut().zip(&mut self.variance);
        for ((w, (m, v)), &g) in self.parameters.iter_mut().zip(moments).zip(gradient) {
            *m = DECAY.0 * *m + (1.0 - DECAY.0) * g;
            *v = DECAY.1 * *v + (1.0 - DECAY.1) * g * g;
            *w -= learning_rate * (*m / bias.0) / ((*v / bias.1).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn cross_entropy_gradient_is_the_slope() {
        let labels = [3, 9];
        let logits: Vec<f32> = (0..2 * CLASSES).map(|i| (i as f32 * 0.7).sin()).collect();
        let (_, gradient) = cross_entropy(&logits, &labels);
        for i in 0..logits.len() {
            let loss_at = |shift: f32| {
                let mut logits = logits.clone();
                logits[i] += shift;
                cross_entropy(&logits, &labels).0
            };
            let slope = (loss_at(0.01) - loss_at(-0.01)) / 0.02;
            assert_abs_diff_eq!(slope, gradient[i], epsilon = 1e-3);
        }
    }

    #[test]
    fn adam_finds_a_minimum() {
        let mut adam = Adam::new(vec![2.0, -3.0]);
        for step in 0..500 {
            let gradient: Vec<f32> = adam.parameters().iter().map(|w| 2.0 * (w - 1.0)).collect();
            adam.step(&gradient, learning_rate(0.1, step, 500));
        }
        assert_abs_diff_eq!(*adam.parameters(), [1.0; 2][..], epsilon = 1e-2);
    }
}
