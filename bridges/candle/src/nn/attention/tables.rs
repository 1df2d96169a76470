//! What attention keeps between calls.

use super::Sizes;
use candle_core::{DType, Device, Result, Tensor};

/// Columns that hold the row sums in the backward pass: 16 bytes in 16 bits, so rows stay aligned.
pub(super) const SUM_COLUMNS: usize = 8;

/// Constants of one T, type and device.
#[derive(Debug)]
pub(super) struct Tables {
    t: usize,
    /// [heads, T, T]: 0 up to the diagonal, −∞ above. It has all heads of a slice, because candle's
    /// kernels divide twice for each dimension of each element of an operand that is broadcast.
    mask: Tensor,
    /// −1 / [`SUM_COLUMNS`], [heads, T, SUM_COLUMNS].
    minus: Tensor,
    pub(super) rotary: Option<Rotary>,
}

/// Cosines, sines and negated sines, [T, head_dim / 2]; q's have the scale.
#[derive(Debug)]
pub(super) struct Rotary {
    pub(super) q: [Tensor; 3],
    pub(super) k: [Tensor; 3],
}

impl Tables {
    pub(super) fn new(
        sizes: Sizes,
        frequencies: Option<&[f32]>,
        scale: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (t, heads) = (sizes.t, sizes.slice() * sizes.group());
        let at = Tensor::arange(0u32, t as u32, device)?;
        let above = at.unsqueeze(0)?.broadcast_gt(&at.unsqueeze(1)?)?;
        let zeros = Tensor::zeros((t, t), DType::F32, device)?;
        let infinite = Tensor::full(f32::NEG_INFINITY, (t, t), device)?;
        let mask = above.where_cond(&infinite, &zeros)?.to_dtype(dtype)?;
        let mask = mask.broadcast_as((heads, t, t))?.contiguous()?;
        let minus = Tensor::full(-1.0 / SUM_COLUMNS as f32, (heads, t, SUM_COLUMNS), device)?;
        let minus = minus.to_dtype(dtype)?.contiguous()?;
        let rotary = frequencies.map(|frequencies| Rotary::new(frequencies, &at, scale, dtype));
        Ok(Tables { t, mask, minus, rotary: rotary.transpose()? })
    }

    /// Whether these serve a call.
    pub(super) fn fit(&self, sizes: Sizes, dtype: DType, device: &Device) -> bool {
        self.t == sizes.t
            && self.mask.dims()[0] >= sizes.slice() * sizes.group()
            && self.mask.dtype() == dtype
            && self.mask.device().same_device(device)
    }

    /// The mask of some heads, [heads, T, T].
    pub(super) fn mask(&self, heads: usize) -> Result<Tensor> {
        self.mask.narrow(0, 0, heads)
    }

    /// The constant of some KV heads, [KV heads, T, SUM_COLUMNS].
    pub(super) fn minus(&self, kv_heads: usize) -> Result<Tensor> {
        self.minus.narrow(0, 0, kv_heads)
    }
}

impl Rotary {
    fn new(frequencies: &[f32], at: &Tensor, scale: f64, dtype: DType) -> Result<Self> {
        let frequencies = Tensor::from_slice(frequencies, (1, frequencies.len()), at.device())?;
        let angles = at.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let scaled = |scale: f64| -> Result<_> {
            let table = |of: &Tensor, by| of.affine(by, 0.0)?.to_dtype(dtype);
            Ok([table(&cos, scale)?, table(&sin, scale)?, table(&sin, -scale)?])
        };
        Ok(Rotary { q: scaled(scale)?, k: scaled(1.0)? })
    }
}
