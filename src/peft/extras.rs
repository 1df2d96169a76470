//! What a PEFT directory holds besides the adapters that a layer of this crate computes.

use super::experts::ParameterAdapters;
use crate::error::{Error, Result};
use crate::layers::Scaling;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The contents of a PEFT directory besides adapters of [`LoraLinear`](crate::LoraLinear).
///
/// [`load`](super::load) keeps them in the configuration
/// ([`Config::extras`](super::Config::extras)), and [`save`](super::save) writes them back. All
/// tensors are on the CPU, in the element types of the file. This crate computes nothing with them;
/// the example `merge` merges them.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Extras {
    /// Parameters that replace the base model's, by their names there, such as `score.weight`:
    /// modules saved whole (`modules_to_save`, and embeddings that PEFT saves along), weights
    /// beneath adapters, and trained biases. A parameter of a new head is added to the model.
    pub whole: BTreeMap<String, Arc<Tensor>>,
    /// Adapters that [`LoraLinear`](crate::LoraLinear) does not compute, by the path of the module.
    pub updates: BTreeMap<String, Update>,
    /// Adapters of parameters that `target_parameters` names, such as the stacked weights of
    /// experts, by the path of their module.
    pub parameters: BTreeMap<String, ParameterAdapters>,
    /// Trained rows of embeddings (`trainable_token_indices`), by the path of the embedding.
    pub tokens: BTreeMap<String, TokenRows>,
}

impl Extras {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        let Extras { whole, updates, parameters, tokens } = self;
        whole.is_empty() && updates.is_empty() && parameters.is_empty() && tokens.is_empty()
    }
}

/// An adapter that [`LoraLinear`](crate::LoraLinear) does not compute: of an embedding or
/// convolution, of a rank above 256, with magnitudes (DoRA), or with a bias of B (`lora_bias`).
///
/// The merged weight is W = W0 + s·B A, [d, k]. With magnitudes m, row i of it is scaled by mᵢ /
/// ‖row i of W‖ ([Liu et al., 2024](https://arxiv.org/abs/2402.09353), section 4.1). The merged
/// bias is that of the layer plus s times the bias of B. For a convolution, k stands for the
/// channels and the kernel: [k, ..].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Update {
    /// A, [r, k]. For an embedding, k is the number of its rows; for a convolution, A is [r, k,
    /// ..].
    pub a: Arc<Tensor>,
    /// B, [d, r]; for a convolution, [d, r, 1, ..].
    pub b: Arc<Tensor>,
    /// α.
    pub alpha: f32,
    /// How s follows from α and r.
    pub scaling: Scaling,
    /// Whether the module is an embedding, whose weight is [k, d].
    pub embedding: bool,
    /// The bias of B, `[d]`.
    pub bias: Option<Arc<Tensor>>,
    /// The magnitudes of DoRA, `[d]`; for a convolution, [1, d, 1, ..].
    pub magnitude: Option<Arc<Tensor>>,
}

impl Update {
    /// The rank r.
    pub fn rank(&self) -> usize {
        self.a.shape().dims()[0]
    }

    /// The factor s of the update: α/r or α/√r.
    pub fn scale(&self) -> f32 {
        self.scaling.scale(self.alpha, self.rank())
    }
}

/// Rows that replace rows of an embedding.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenRows {
    /// The indices of the replaced rows, in the order of `rows`.
    pub indices: Vec<usize>,
    /// The rows, [n, d].
    pub rows: Arc<Tensor>,
}

impl TokenRows {
    /// Rows [n, d] for n indices.
    ///
    /// # Errors
    /// [`Error::Count`] unless there are n indices.
    pub fn new(indices: Vec<usize>, rows: Tensor) -> Result<Self> {
        let n = rows.shape().rows();
        if indices.len() != n {
            let (argument, got) = ("indices", indices.len());
            return Err(Error::Count { argument, expected: format!("{n}, as rows"), got });
        }
        Ok(TokenRows { indices, rows: Arc::new(rows) })
    }
}
