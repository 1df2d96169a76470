//! AdamW. candle-nn's keeps its moments to itself, so that a run could not be resumed with the
//! same bits. This one has them in two vectors of all variables, which is also 6 launches a
//! variable less.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var, bail};
use lora_kernels_candle::check_gradients;

const DECAY: (f64, f64) = (0.9, 0.999);
const EPS: f64 = 1e-8;
/// PyTorch's and candle's.
pub const WEIGHT_DECAY: f64 = 0.01;

/// AdamW ([Loshchilov and Hutter, 2017](https://arxiv.org/abs/1711.05101)) on f32 variables.
pub struct AdamW {
    vars: Vec<(String, Var)>,
    lr: f64,
    steps: usize,
    /// m and v of all variables, one after the other.
    moments: [Tensor; 2],
}

impl AdamW {
    pub fn new(vars: Vec<(String, Var)>, lr: f64) -> Result<Self> {
        let Some((_, first)) = vars.first() else { bail!("there is nothing to train") };
        let count: usize = vars.iter().map(|(_, var)| var.elem_count()).sum();
        let zeros = Tensor::zeros(count, DType::F32, first.device())?;
        Ok(AdamW { vars, lr, steps: 0, moments: [zeros.clone(), zeros] })
    }

    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let named: Vec<_> = self.vars.iter().map(|(name, var)| (name.as_str(), var)).collect();
        check_gradients(gradients, &named)?;
        self.steps += 1;
        let g = flat(self.vars.iter().filter_map(|(_, var)| gradients.get(var)))?;
        let [m, v] = &self.moments;
        let m = ((m * DECAY.0)? + (&g * (1.0 - DECAY.0))?)?;
        let v = ((v * DECAY.1)? + (g.sqr()? * (1.0 - DECAY.1))?)?;
        let bias = (1.0 - DECAY.0.powi(self.steps as i32), 1.0 - DECAY.1.powi(self.steps as i32));
        let update = ((&m / bias.0)? / ((&v / bias.1)?.sqrt()? + EPS)?)?;
        let old = flat(self.vars.iter().map(|(_, var)| var.as_tensor()))?;
        let new = ((old * (1.0 - self.lr * WEIGHT_DECAY))? - (update * self.lr)?)?;
        let mut at = 0;
        for (_, var) in &self.vars {
            let count = var.elem_count();
            var.set(&new.narrow(0, at, count)?.reshape(var.shape())?)?;
            at += count;
        }
        self.moments = [m, v];
        Ok(())
    }

    /// m and v.
    pub fn moments(&self) -> &[Tensor; 2] {
        &self.moments
    }

    /// Goes on after `steps` steps that left these moments.
    pub fn resume(&mut self, steps: usize, moments: [Tensor; 2]) -> Result<()> {
        for (new, own) in moments.iter().zip(&self.moments) {
            if new.dims() != own.dims() {
                bail!("moments are {:?}: expected {:?}", new.shape(), own.shape())
            }
        }
        (self.steps, self.moments) = (steps, moments);
        Ok(())
    }
}

/// The elements of all tensors, outside of any graph.
fn flat<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    let tensors = tensors.map(|tensor| tensor.detach().flatten_all());
    Tensor::cat(&tensors.collect::<Result<Vec<_>>>()?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_nn::{Optimizer, ParamsAdamW};

    #[test]
    fn steps_are_those_of_candle() {
        let var = |values: &[f32]| Var::new(values, &Device::Cpu).unwrap();
        let ours = [var(&[1.0, -2.0]), var(&[3.0])];
        let theirs = [var(&[1.0, -2.0]), var(&[3.0])];
        let loss = |vars: &[Var; 2]| {
            let parts = [vars[0].sqr().unwrap(), (vars[1].as_tensor() * 5.0).unwrap()];
            Tensor::cat(&parts, 0).unwrap().sum_all().unwrap()
        };
        let named = ["a", "b"].map(String::from).into_iter().zip(ours.clone());
        let mut adam = AdamW::new(named.collect(), 0.1).unwrap();
        let params = ParamsAdamW { lr: 0.1, weight_decay: WEIGHT_DECAY, ..Default::default() };
        let mut reference = candle_nn::AdamW::new(theirs.to_vec(), params).unwrap();
        for _ in 0..5 {
            adam.step(&loss(&ours).backward().unwrap()).unwrap();
            reference.backward_step(&loss(&theirs)).unwrap();
        }
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let (ours, theirs) = (ours.to_vec1::<f32>().unwrap(), theirs.to_vec1::<f32>().unwrap());
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");
            }
        }
    }
}
