//! The model.

use super::config::Config;
use super::layer::Layer;
use super::projections::{MakeAdapter, Projections};
use super::targets::{Lora, TARGETS};
use crate::dropout::ROWS_OF_GROUP;
use crate::nn::{Attention, linear_cross_entropy, rms_norm};
use crate::{FrozenLinear, LoraAdapter, LoraGroup, peft::PeftAdapters};
use candle_core::{D, Device, IndexOp, Module, Result, Tensor, Var, bail};
use candle_nn::VarBuilder;
use lora_kernels::{Dropout, peft};

/// A Llama whose weights are frozen, with adapters of its linear layers.
#[derive(Debug)]
pub struct Llama {
    config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: FrozenLinear,
    attention: Attention,
    pub(super) peft: peft::Config,
}

impl Llama {
    /// Loads the weights of a model for causal language modelling, in the type and on the device
    /// of `vb`: bf16, f16, or, on the CPU, f32. Adapters are new.
    ///
    /// # Errors
    /// If a weight is missing or has another shape, or a target is no layer of the model; candle's.
    pub fn load(config: &Config, vb: VarBuilder<'_>, lora: Option<&Lora>) -> Result<Self> {
        let device = vb.device().clone();
        let mut made = 0;
        if let Some(lora) = lora {
            lora.check()?;
        }
        Llama::build(config, &vb, &mut |module, sizes| match lora {
            Some(lora) if lora.matches(module) => {
                made += 1;
                LoraAdapter::new(sizes, &lora.config_of(made), &device).map(Some)
            }
            _ => Ok(None),
        })
    }

    /// The same with the adapters of a PEFT directory, as [`load_peft`](crate::load_peft) returns
    /// it. They can be trained on.
    ///
    /// # Errors
    /// If the directory has more than adapters of this model's layers; as for [`Llama::load`].
    pub fn with_peft(
        config: &Config,
        vb: VarBuilder<'_>,
        mut loaded: PeftAdapters,
    ) -> Result<Self> {
        if !loaded.config.extras().is_empty() {
            bail!("the PEFT directory also has {}", loaded.not_computed.join("; "))
        }
        let mut take = |module: &str, [d, k]: [usize; 2]| {
            let Some(adapter) = loaded.adapters.remove(module) else { return Ok(None) };
            let (a, b) = (adapter.a().shape(), adapter.b().shape());
            if (b.dims()[0], a.dims()[1]) != (d, k) {
                bail!("{module} is [{d}, {k}]: it has no adapter with A {a:?} and B {b:?}")
            }
            Ok(Some(adapter))
        };
        let mut model = Llama::build(config, &vb, &mut take)?;
        if let Some(module) = loaded.adapters.keys().next() {
            let (n, targets) = (loaded.adapters.len(), TARGETS.join(", "));
            bail!("{n} adapters are of no layer of the model, such as {module}: it has {targets}")
        }
        model.peft = loaded.config;
        Ok(model)
    }

    fn build(config: &Config, vb: &VarBuilder<'_>, make: &mut MakeAdapter<'_>) -> Result<Self> {
        config.check()?;
        let inner = vb.pp("model");
        let (vocabulary, n) = (config.vocab_size, config.hidden_size);
        let embedding = inner.get((vocabulary, n), "embed_tokens.weight")?.detach();
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, &inner.pp("layers").pp(i), make))
            .collect::<Result<_>>()?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => vb.get((vocabulary, n), "lm_head.weight")?,
        };
        let attention = Attention::new(config.head_dim()).with_rope(config.frequencies()?);
        Ok(Llama {
            config: config.clone(),
            embedding,
            layers,
            norm: inner.get(n, "norm.weight")?.detach(),
            head: FrozenLinear::new(head, None)?,
            attention,
            peft: peft::Config::default().with_task_type("CAUSAL_LM"),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The hidden states [batch, T, n] after the last norm, of ids [batch, T] in u32 or i64.
    ///
    /// # Errors
    /// If the ids have another shape, or candle's.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let Ok((batch, t)) = ids.dims2() else {
            bail!("ids are {:?}: expected [batch, T]", ids.shape())
        };
        let x = self.embedding.embedding(&ids.flatten_all()?)?;
        let mut x = x.reshape((batch, t, self.config.hidden_size))?;
        for layer in &self.layers {
            x = layer.forward(&x, &self.attention)?;
        }
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    /// The logits [batch, T, vocabulary] of ids [batch, T]. For a loss, [`Llama::loss`] needs less
    /// memory.
    ///
    /// # Errors
    /// As for [`Llama::hidden`].
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.hidden(ids)?)
    }

    /// The mean cross-entropy in f32, of ids [batch, T] and labels [batch, T]: the label of a
    /// position is the token that **follows** it, or
    /// [`IGNORE_INDEX`](crate::nn::IGNORE_INDEX). The caller shifts, unlike with Hugging Face's
    /// models.
    ///
    /// # Errors
    /// As for [`Llama::hidden`] and [`linear_cross_entropy`].
    pub fn loss(&self, ids: &Tensor, labels: &Tensor) -> Result<Tensor> {
        if ids.shape() != labels.shape() {
            bail!("ids are {:?} and labels {:?}: expected one shape", ids.shape(), labels.shape())
        }
        linear_cross_entropy(&self.hidden(ids)?, self.head.w0(), labels)
    }

    /// Adapters with the paths of their modules, such as `model.layers.0.self_attn.q_proj`.
    pub fn adapters(&self) -> impl Iterator<Item = (&str, &LoraAdapter)> {
        let projections = self.layers.iter().flat_map(Layer::projections);
        projections.flat_map(|projections| projections.adapters())
    }

    /// Every A and B with its name in PEFT's files, such as
    /// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. The order is always the
    /// same.
    pub fn vars(&self) -> Vec<(String, Var)> {
        let name = |module: &str, part| format!("base_model.model.{module}.{part}.weight");
        let vars = self.adapters().flat_map(|(module, adapter)| {
            let (a, b) = (adapter.a().clone(), adapter.b().clone());
            [(name(module, "lora_A"), a), (name(module, "lora_B"), b)]
        });
        vars.collect()
    }

    /// From now on forward passes drop elements of the adapters' input with probability p: see
    /// [`LoraGroup::train`]. q, k and v share a mask, and so do gate and up. The rows of group n,
    /// counted from the first layer on, begin at `offset` + 2⁵⁰·n. Every pass of T tokens
    /// moves them on by T: the next step, or one that resumes a run, begins with `offset` larger by
    /// the tokens so far.
    ///
    /// For the p of a PEFT directory see [`peft::Config::dropout`].
    ///
    /// # Errors
    /// Unless 0 ≤ p < 1.
    pub fn train(&mut self, p: f32, seed: u64, offset: u64) -> Result<()> {
        self.set_dropout(offset, |group, offset| group.train(p, seed, offset))
    }

    /// The same with a mask for each linear layer, as PEFT has it: see [`LoraGroup::train_each`].
    ///
    /// # Errors
    /// Unless 0 ≤ p < 1.
    pub fn train_each(&mut self, p: f32, seed: u64, offset: u64) -> Result<()> {
        self.set_dropout(offset, |group, offset| group.train_each(p, seed, offset))
    }

    fn set_dropout(
        &mut self,
        offset: u64,
        set: impl Fn(&mut LoraGroup, u64) -> Result<()>,
    ) -> Result<()> {
        let projections = self.layers.iter_mut().flat_map(Layer::projections_mut);
        let mut groups = projections.filter_map(Projections::group_mut).zip(0..);
        groups.try_for_each(|(group, n)| set(group, offset.wrapping_add(n * ROWS_OF_GROUP)))
    }

    /// From now on nothing is dropped, as in a new model: for an evaluation, or to generate.
    pub fn eval(&mut self) {
        let projections = self.layers.iter_mut().flat_map(Layer::projections_mut);
        projections.filter_map(Projections::group_mut).for_each(LoraGroup::eval);
    }

    /// The dropout of the next forward pass in the first adapted layer: its p, seed and offset,
    /// given to [`Llama::train`], let training go on as if it had not stopped.
    pub fn dropout(&self) -> Option<Dropout<'static>> {
        let mut projections = self.layers.iter().flat_map(Layer::projections);
        projections.find_map(Projections::group)?.layers()[0].dropout()
    }

    /// Casts every A and B to the type of the weights, once: see
    /// [`LoraLinear::refresh`](crate::LoraLinear::refresh). Call it after **every** step of the
    /// optimiser, or never.
    ///
    /// # Errors
    /// candle's.
    pub fn refresh(&self) -> Result<()> {
        let mut projections = self.layers.iter().flat_map(Layer::projections);
        projections.try_for_each(|projections| projections.refresh())
    }

    /// The most likely tokens after a prompt, one by one: at most `max_new`, up to and without the
    /// first that is among `stop`. Each token runs the whole model on all tokens before it, with
    /// dropout if the model is [trained](Llama::train).
    ///
    /// # Errors
    /// If the prompt is empty; as for [`Llama::hidden`].
    pub fn generate(&self, prompt: &[u32], max_new: usize, stop: &[u32]) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            bail!("a prompt has at least one token")
        }
        let mut tokens = prompt.to_vec();
        for _ in 0..max_new {
            let ids = Tensor::new(tokens.as_slice(), self.device())?.unsqueeze(0)?;
            let last = self.hidden(&ids)?.i((0, tokens.len() - 1))?.detach().unsqueeze(0)?;
            let next = self.head.forward(&last)?.argmax(D::Minus1)?.i(0)?.to_scalar::<u32>()?;
            if stop.contains(&next) {
                break;
            }
            tokens.push(next);
        }
        Ok(tokens.split_off(prompt.len()))
    }
}
