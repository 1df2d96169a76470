//! The trainable half of a LoRA layer.

use crate::call::check_finite;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::rng::Rng;
use crate::tensor::Tensor;

/// How the scale s of the update follows from α and the rank r.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Scaling {
    /// s = α/r ([Hu et al., 2021](https://arxiv.org/abs/2106.09685), section 4.1).
    #[default]
    Standard,
    /// s = α/√r, with which the update keeps its size as the rank grows: rsLoRA
    /// ([Kalajdzievski, 2023](https://arxiv.org/abs/2312.03732)), PEFT's `use_rslora`.
    RankStabilized,
}

impl Scaling {
    /// The factor s of the update.
    pub fn scale(self, alpha: f32, rank: usize) -> f32 {
        match self {
            Scaling::Standard => alpha / rank as f32,
            Scaling::RankStabilized => alpha / (rank as f32).sqrt(),
        }
    }
}

/// The settings of a new adapter. The defaults are r = 8, α = 8, s = α/r.
///
/// ```
/// use lora_kernels::{AdapterConfig, Scaling};
///
/// let config = AdapterConfig::new(16).with_alpha(32.0).with_scaling(Scaling::RankStabilized);
/// assert_eq!((config.rank, config.alpha), (16, 32.0));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct AdapterConfig {
    /// The rank r, `1..=256`.
    pub rank: usize,
    /// α, any finite number.
    pub alpha: f32,
    /// How s follows from α and r.
    pub scaling: Scaling,
    /// Standard deviation of A's Gaussian. `None` is 1/√k, with which each element of A x has the
    /// variance of x's; PEFT's `init_lora_weights="gaussian"` has 1/r.
    pub init_std: Option<f32>,
    /// Seed of A's Gaussian. The same seed gives the same A on every device.
    pub seed: u64,
}

impl AdapterConfig {
    /// Rank r, and α = r: s = 1.
    pub fn new(rank: usize) -> Self {
        let scaling = Scaling::Standard;
        AdapterConfig { rank, alpha: rank as f32, scaling, init_std: None, seed: 0 }
    }

    /// Another α.
    pub fn with_alpha(self, alpha: f32) -> Self {
        AdapterConfig { alpha, ..self }
    }

    /// Another way from α to s.
    pub fn with_scaling(self, scaling: Scaling) -> Self {
        AdapterConfig { scaling, ..self }
    }

    /// Another standard deviation of A.
    pub fn with_init_std(self, std: f32) -> Self {
        AdapterConfig { init_std: Some(std), ..self }
    }

    /// Another seed of A.
    pub fn with_seed(self, seed: u64) -> Self {
        AdapterConfig { seed, ..self }
    }
}

impl Default for AdapterConfig {
    fn default() -> Self {
        AdapterConfig::new(8)
    }
}

/// A low-rank update s · B A of a weight: A [r, k] and B [d, r] with their scale.
#[derive(Debug)]
pub struct Adapter {
    a: Tensor,
    b: Tensor,
    alpha: f32,
    scaling: Scaling,
}

impl Adapter {
    /// A new adapter for a weight [d, k]: A Gaussian with mean 0 and the configured standard
    /// deviation, B zero, so that the layer starts as the frozen one (Hu et al., section 4.1).
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::NotFinite`], [`Error::Shape`], [`Error::OutOfMemory`].
    pub fn new(
        device: &Device,
        [d, k]: [usize; 2],
        dtype: DType,
        config: &AdapterConfig,
    ) -> Result<Self> {
        let r = config.rank;
        Problem::single(1, k, d, r, dtype)?;
        let std = config.init_std.unwrap_or(1.0 / (k as f32).sqrt());
        check_finite("init_std", std)?;
        let mut rng = Rng::new(config.seed);
        let a: Vec<f32> =
            (0..r * k).map(|_| (rng.next_gaussian() * f64::from(std)) as f32).collect();
        let a = Tensor::from_f32(device, &a, [r, k], dtype)?;
        let b = Tensor::zeros(device, [d, r], dtype)?;
        Adapter::from_tensors(a, b, config.alpha, config.scaling)
    }

    /// An adapter from existing tensors: A [r, k] and B [d, r], of one element type and device.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Device`], [`Error::Rank`] or
    /// [`Error::NotFinite`].
    pub fn from_tensors(a: Tensor, b: Tensor, alpha: f32, scaling: Scaling) -> Result<Self> {
        check_finite("alpha", alpha)?;
        let (r, k, d) = (a.shape().rows(), a.shape().cols(), b.shape().rows());
        if a.shape().dims() != [r, k] {
            let expected = format!("[r, k] = {:?}", [r, k]);
            return Err(Error::Shape { argument: "a", expected, got: a.shape() });
        }
        if b.shape().dims() != [d, r] {
            let expected = format!("[d, r] with r = {r}");
            return Err(Error::Shape { argument: "b", expected, got: b.shape() });
        }
        Problem::single(1, k, d, r, a.dtype())?;
        if b.dtype() != a.dtype() {
            let expected = "the element type of a";
            return Err(Error::DType { argument: "b", expected, got: b.dtype() });
        }
        if !a.device().shares_memory_with(b.device()) {
            let (expected, got) = (a.device().to_string(), b.device().to_string());
            return Err(Error::Device { argument: "b", expected, got });
        }
        check_finite("scale", scaling.scale(alpha, r))?;
        Ok(Adapter { a, b, alpha, scaling })
    }

    /// Refuses a frozen weight, called `argument`, that is not one for this adapter.
    pub(crate) fn check_weight(&self, argument: &'static str, w0: &Tensor) -> Result<()> {
        let (d, k) = (self.b.shape().rows(), self.a.shape().cols());
        if w0.shape().dims() != [d, k] {
            let expected = format!("{:?}, as the adapter", [d, k]);
            return Err(Error::Shape { argument, expected, got: w0.shape() });
        }
        if w0.dtype() != self.a.dtype() {
            let expected = "the element type of the adapter";
            return Err(Error::DType { argument, expected, got: w0.dtype() });
        }
        if !w0.device().shares_memory_with(self.a.device()) {
            let (expected, got) = (self.a.device().to_string(), w0.device().to_string());
            return Err(Error::Device { argument, expected, got });
        }
        Ok(())
    }

    /// The down-projection A, [r, k].
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// The up-projection B, [d, r].
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// A and B.
    pub(crate) fn into_tensors(self) -> (Tensor, Tensor) {
        (self.a, self.b)
    }

    /// A copy on the same device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Driver`]; [`Error::Capture`] while the stream captures.
    pub fn try_clone(&self) -> Result<Self> {
        let (a, b) = (self.a.try_clone()?, self.b.try_clone()?);
        Ok(Adapter { a, b, alpha: self.alpha, scaling: self.scaling })
    }

    /// A and B, for an optimiser to update in place.
    pub fn tensors_mut(&mut self) -> (&mut Tensor, &mut Tensor) {
        (&mut self.a, &mut self.b)
    }

    /// The rank r.
    pub fn rank(&self) -> usize {
        self.a.shape().rows()
    }

    /// α.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// How s follows from α and r.
    pub fn scaling(&self) -> Scaling {
        self.scaling
    }

    /// The factor s of the update: α/r or α/√r.
    pub fn scale(&self) -> f32 {
        self.scaling.scale(self.alpha, self.rank())
    }

    /// The number of trained parameters: r·(d + k).
    pub fn parameters(&self) -> usize {
        self.a.shape().elements() + self.b.shape().elements()
    }

    /// Bytes of A and B together.
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.b.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn scales() {
        assert_eq!(Scaling::Standard.scale(16.0, 4), 4.0);
        assert_eq!(Scaling::RankStabilized.scale(16.0, 4), 8.0);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn configurations_are_read_back() {
        let config = AdapterConfig::new(4).with_alpha(8.0).with_scaling(Scaling::RankStabilized);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<AdapterConfig>(&text).unwrap(), config);
        // What is left out has its default, and what is unknown is refused.
        let defaults = serde_json::from_str::<AdapterConfig>("{}").unwrap();
        assert_eq!(defaults, AdapterConfig::default());
        assert!(serde_json::from_str::<AdapterConfig>(r#"{"ranks": 4}"#).is_err());
        assert_eq!(serde_json::to_string(&DType::Bf16).unwrap(), r#""bf16""#);
    }

    #[test]
    fn a_is_gaussian_and_b_is_zero() {
        let (device, config) = (Device::cpu(), AdapterConfig::new(64));
        let adapter = Adapter::new(&device, [8, 400], DType::F32, &config).unwrap();
        let a = adapter.a().to_vec::<f32>().unwrap();
        let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        // Five standard errors, √(2/n), of the variance 1/k.
        assert_abs_diff_eq!(variance * 400.0, 1.0, epsilon = 0.045);
        assert!(adapter.b().to_vec::<f32>().unwrap().iter().all(|&b| b == 0.0));
        let again = Adapter::new(&device, [8, 400], DType::F32, &config).unwrap();
        assert_eq!(a, again.a().to_vec::<f32>().unwrap());
    }
}
