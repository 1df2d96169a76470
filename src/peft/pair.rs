//! The tensors of one adapter.

use super::file::{PREFIX, malformed, unsupported};
use super::names::{Part, key};
use super::tensors::{TensorEntry, not_numbers};
use crate::dtype::DType;
use crate::error::Result;
use std::path::Path;

/// The tensors of a module's adapter.
#[derive(Debug)]
pub(super) struct Pair {
    pub a: String,
    pub b: String,
    /// Rows of A.
    pub rank: usize,
    /// The wider of the element types of A and B.
    pub dtype: DType,
    pub embedding: bool,
    /// Of a convolution: A [r, k, ..] and B [d, r, 1, ..].
    pub convolution: bool,
    /// The bias of B.
    pub bias: Option<String>,
    /// The magnitudes of DoRA.
    pub magnitude: Option<String>,
}

pub(super) type Tensor<'a> = (&'a str, &'a TensorEntry);

/// What has been found of a module's adapter.
#[derive(Default)]
pub(super) struct Found<'a> {
    pub a: Option<Tensor<'a>>,
    pub b: Option<Tensor<'a>>,
    bias: Option<Tensor<'a>>,
    magnitude: Option<Tensor<'a>>,
    /// Whether A and B have the names of an embedding's.
    embedding: Option<bool>,
    pub wrapped: Vec<(&'a str, Tensor<'a>)>,
}

impl<'a> Found<'a> {
    pub fn add(&mut self, part: Part<'a>, tensor: Tensor<'a>) -> Result<(), String> {
        let place = match part {
            Part::A | Part::EmbeddingA => &mut self.a,
            Part::B | Part::EmbeddingB => &mut self.b,
            Part::BiasOfB => &mut self.bias,
            Part::Magnitude => &mut self.magnitude,
            Part::Wrapped(parameter) => {
                self.wrapped.push((parameter, tensor));
                return Ok(());
            }
            Part::Tokens | Part::Whole => unreachable!("not of an adapter"),
        };
        if let Some((other, _)) = place.replace(tensor) {
            return Err(format!("is there twice: {other} is the same"));
        }
        if matches!(part, Part::A | Part::B | Part::EmbeddingA | Part::EmbeddingB) {
            let embedding = matches!(part, Part::EmbeddingA | Part::EmbeddingB);
            if self.embedding.replace(embedding).is_some_and(|other| other != embedding) {
                return Err("its module has adapters of a linear layer and of an embedding".into());
            }
        }
        Ok(())
    }

    pub fn pair(self, path: &Path, module: &str) -> Result<Pair> {
        let embedding = self.embedding == Some(true);
        let (Some((a, of_a)), Some((b, of_b))) = (self.a, self.b) else {
            let parts = [self.a, self.b, self.bias, self.magnitude];
            let other = parts.into_iter().flatten().next().map_or("", |(name, _)| name);
            let half = if self.a.is_none() { 'A' } else { 'B' };
            let missing = match embedding {
                true => format!("{PREFIX}{module}.lora_embedding_{half}"),
                false => key(module, half),
            };
            return Err(malformed(path, &missing, format!("is missing, but {other} is there")));
        };
        let dims = of_a.shape.len();
        let ones = of_b.shape[2..].iter().all(|&dim| dim == 1);
        if of_a.shape[0] != of_b.shape[1] || of_b.shape.len() != dims || !ones {
            let (a_shape, b_shape) = (&of_a.shape, &of_b.shape);
            let reason = format!("has shape {b_shape:?}, which does not fit {a} of {a_shape:?}");
            return Err(malformed(path, b, reason));
        }
        let d = of_b.shape[0];
        let mut of_convolution = vec![1; dims];
        of_convolution[1] = d;
        for (tensor, of_convolution) in
            [(self.bias, None), (self.magnitude, (dims > 2).then_some(of_convolution))]
        {
            let Some((name, entry)) = tensor else { continue };
            if entry.shape != of_convolution.unwrap_or(vec![d]) {
                let (shape, b_shape) = (&entry.shape, &of_b.shape);
                let reason = format!("has shape {shape:?}, which does not fit {b} of {b_shape:?}");
                return Err(malformed(path, name, reason));
            }
        }
        let dtype = wider(of_a.dtype, of_b.dtype);
        let dtype = dtype.ok_or_else(|| unsupported(path, a, not_numbers(of_a)))?;
        let name = |tensor: Option<Tensor<'_>>| tensor.map(|(name, _)| name.to_string());
        let (bias, magnitude) = (name(self.bias), name(self.magnitude));
        let rank = of_a.shape[0];
        let (a, b, convolution) = (a.into(), b.into(), dims > 2);
        Ok(Pair { a, b, rank, dtype, embedding, convolution, bias, magnitude })
    }
}

pub(super) fn check_entry(
    path: &Path,
    name: &str,
    entry: &TensorEntry,
    part: Part<'_>,
) -> Result<()> {
    if entry.shape == [0] {
        let reason = "is empty (shape [0]), as DeepSpeed ZeRO-3 leaves parameters that are not \
                      gathered for saving: save again with \
                      stage3_gather_16bit_weights_on_model_save, or take the weights from \
                      zero_to_fp32.py of the checkpoint";
        return Err(malformed(path, name, reason));
    }
    if entry.dtype.is_none() {
        return Err(unsupported(path, name, not_numbers(entry)));
    }
    let (dims, empty) = (entry.shape.len(), entry.shape.contains(&0));
    let of = match part {
        Part::Whole | Part::Wrapped(_) => {
            if empty || !(1..=6).contains(&dims) {
                let reason = format!("its shape is {:?}, not one to six dimensions", entry.shape);
                return Err(unsupported(path, name, reason));
            }
            return Ok(());
        }
        Part::BiasOfB => 1..=1,
        // Of a convolution, or of a linear layer.
        Part::Magnitude => 1..=5,
        Part::A | Part::B => 2..=5,
        Part::EmbeddingA | Part::EmbeddingB | Part::Tokens => 2..=2,
    };
    if !of.contains(&dims) || empty {
        let what = if *of.start() == 2 { "matrix" } else { "vector" };
        let reason = format!("is no {what}: its shape is {:?}", entry.shape);
        return Err(malformed(path, name, reason));
    }
    Ok(())
}

/// The element type that holds the values of both.
fn wider(a: Option<DType>, b: Option<DType>) -> Option<DType> {
    let (a, b) = (a?, b?);
    Some(if a == b { a } else { DType::F32 })
}
