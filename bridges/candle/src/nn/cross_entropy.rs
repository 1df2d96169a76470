//! The loss of a language model with a long vocabulary.

use crate::nn::check_alike;
use crate::node::{self, Value};
use candle_core::{D, DType, Result, Tensor, bail};

/// The label of tokens that the loss leaves out, as in PyTorch. In u32: `IGNORE_INDEX as u32`.
pub const IGNORE_INDEX: i64 = -100;

/// Logits computed at a time: 128 MiB in f32. The peak is two such tensors.
const MAX_LOGITS: usize = 1 << 25;

/// The mean cross-entropy of the logits `hidden` Wᵀ and the labels, in f32: of hidden [..., n],
/// a frozen W [vocabulary, n] and labels [...] in u32 or i64, without those that are
/// [`IGNORE_INDEX`]. Without any label it is NaN, as in PyTorch.
///
/// Logits are computed in chunks of rows, and so is the gradient of `hidden`, in the forward pass:
/// neither all logits nor their gradient ever exist. Labels are not checked on a GPU, where one
/// beyond the vocabulary fails an assertion of candle's kernels.
///
/// # Errors
/// If the shapes, types or devices do not fit each other, or candle's.
pub fn linear_cross_entropy(hidden: &Tensor, weight: &Tensor, labels: &Tensor) -> Result<Tensor> {
    in_chunks(hidden, weight, labels, MAX_LOGITS)
}

fn in_chunks(
    hidden: &Tensor,
    weight: &Tensor,
    labels: &Tensor,
    max_logits: usize,
) -> Result<Tensor> {
    let fits = match (hidden.dims(), weight.dims()) {
        ([of_labels @ .., n], [_, of_n]) => n == of_n && of_labels == labels.dims(),
        _ => false,
    };
    if !fits {
        let (x, w, labels) = (hidden.shape(), weight.shape(), labels.shape());
        bail!(
            "linear_cross_entropy of {x:?}, a weight {w:?} and labels {labels:?}: expected \
             [..., n], [vocabulary, n] and [...]"
        )
    }
    check_alike("linear_cross_entropy", &[hidden, weight])?;
    let (vocabulary, n) = weight.dims2()?;
    let rows = labels.elem_count();
    let x = hidden.detach().reshape((rows, n))?;
    let (labels, counted) = split_labels(labels)?;
    let count = counted.sum_all()?;
    let chunk = (max_logits / vocabulary.max(1)).clamp(1, rows.max(1));
    let (mut losses, mut grads) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(chunk) {
        let part = |t: &Tensor| t.narrow(0, start, chunk.min(rows - start));
        let (x, labels, counted) = (part(&x)?, part(&labels)?, part(&counted)?);
        let (loss, grad) = rows_of(&x, &weight.detach(), &labels, &counted, hidden.track_op())?;
        losses.push(loss);
        grads.extend(grad);
    }
    let loss = (Tensor::cat(&losses, 0)?.sum_all()? / &count)?;
    if !hidden.track_op() {
        return Ok(loss);
    }
    let grad = Tensor::cat(&grads, 0)?.reshape(hidden.shape())?;
    node::one("linear-cross-entropy", hidden, Value::take(&loss)?, move |step| {
        // In f32: in 16 bits 1 / count would shift all gradients alike.
        let factor = (step.dy / &count)?;
        grad.to_dtype(DType::F32)?.broadcast_mul(&factor)?.to_dtype(grad.dtype())
    })
}

/// Labels [rows, 1] that all are in the vocabulary, and 1 or 0 in f32: whether each counts.
fn split_labels(labels: &Tensor) -> Result<(Tensor, Tensor)> {
    let labels = labels.detach().reshape(((), 1))?;
    let counts = match labels.dtype() {
        DType::U32 => labels.ne(IGNORE_INDEX as u32)?,
        DType::I64 => labels.ne(IGNORE_INDEX)?,
        other => bail!("labels are {other:?}: expected u32 or i64"),
    };
    let labels = counts.where_cond(&labels, &labels.zeros_like()?)?;
    Ok((labels, counts.to_dtype(DType::F32)?))
}

/// The losses [rows, 1] and, if it is wanted, the gradient of their sum for x [rows, n].
fn rows_of(
    x: &Tensor,
    weight: &Tensor,
    labels: &Tensor,
    counted: &Tensor,
    wanted: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let logits = x.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
    let max = logits.max_keepdim(D::Minus1)?;
    let own = (logits.gather(labels, D::Minus1)? - &max)?;
    // Not candle's softmax: it has one warp a row, and rows are few and long.
    let shifted = logits.broadcast_sub(&max)?;
    drop(logits);
    let exp = shifted.exp()?;
    drop(shifted);
    let sum = exp.sum_keepdim(D::Minus1)?;
    let losses = ((sum.log()? - own)? * counted)?;
    if !wanted {
        return Ok((losses, None));
    }
    let p = exp.broadcast_mul(&(counted / sum)?)?;
    drop(exp);
    p.scatter_add_set(labels, &counted.neg()?, D::Minus1)?;
    Ok((losses, Some(p.to_dtype(x.dtype())?.matmul(weight)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn chunks_are_the_whole() -> Result<()> {
        let cpu = &Device::Cpu;
        let x = Var::randn(0f32, 1.0, (10, 4), cpu)?;
        let weight = Tensor::randn(0f32, 1.0, (7, 4), cpu)?;
        let labels = Tensor::new(&[0u32, 6, 2, IGNORE_INDEX as u32, 4, 5, 1, 1, 3, 0], cpu)?;
        let run = |max_logits| -> Result<Vec<f32>> {
            let loss = in_chunks(&x, &weight, &labels, max_logits)?;
            let gradient = loss.backward()?.remove(&x).unwrap().flatten_all()?;
            Tensor::cat(&[loss.reshape(1)?, gradient], 0)?.to_vec1()
        };
        let whole = run(MAX_LOGITS)?;
        // Three rows at a time, the last chunk has one; one row; less than a row.
        for max_logits in [3 * 7 + 1, 7, 1] {
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(run(max_logits)?.iter().zip(&whole).all(close), "{max_logits}");
        }
        Ok(())
    }
}
