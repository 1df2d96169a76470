//! Dropout of the adapters' input, by a mask that is computed where it is used.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

/// Dropout of the adapters' input in a call: S = s · A(m ∘ x / (1 − p)), where an element of the
/// mask m is 0 with probability p. The frozen layer sees x whole.
///
/// The mask is not stored. It is a function of the seed and of the row offset + t: Philox4x32-10
/// (Salmon et al., [2011](https://doi.org/10.1145/2063384.2063405)) with the seed as key, 16 bits
/// an element, of which those are kept that are at least round(65536·p), at most 65535. Element
/// (t, j) has the low half, for an even j, of word ⌊j mod 32 / 8⌋ of the counter
/// (4⌊j / 32⌋ + ⌊j mod 8 / 2⌋, the 64 bits of offset + t, 0).
///
/// So a backward pass that is given the same has the mask of its forward pass, and a batch that is
/// cut at row c has the same mask in both parts, if the second part's offset is larger by c. Give
/// every layer a seed of its own, and add T to the offset after a step. Projections that share x
/// share the mask.
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    p: f32,
    source: Source<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    Values { seed: u64, offset: u64 },
    Memory(TensorView<'a>),
}

impl Dropout<'static> {
    /// With probability p, 0 ≤ p < 1.
    ///
    /// # Errors
    /// [`Error::Dropout`] for any other p.
    pub fn new(p: f32, seed: u64, offset: u64) -> Result<Self> {
        Ok(Dropout { p: check_p(p)?, source: Source::Values { seed, offset } })
    }
}

impl<'a> Dropout<'a> {
    /// With a seed and an offset that the kernels read from device memory: a CUDA graph is replayed
    /// with another mask if they are set in between.
    ///
    /// # Errors
    /// [`Error::Dropout`] unless 0 ≤ p < 1.
    pub fn from_state(p: f32, state: &'a DropoutState) -> Result<Self> {
        Ok(Dropout { p: check_p(p)?, source: Source::Memory(state.0.view()) })
    }

    /// The same with a seed and an offset in the caller's memory, for a framework that draws them
    /// on the device. `state` is a view of 4 elements of f32; their bits are the seed and the
    /// offset, 64 bits each, low word first.
    ///
    /// # Errors
    /// As for [`Dropout::from_state`]; the call refuses a view of any other shape or type.
    pub fn from_view(p: f32, state: TensorView<'a>) -> Result<Self> {
        Ok(Dropout { p: check_p(p)?, source: Source::Memory(state) })
    }

    /// The seed and the offset, unless they are in device memory.
    pub fn seed_and_offset(&self) -> Option<(u64, u64)> {
        match self.source {
            Source::Values { seed, offset } => Some((seed, offset)),
            Source::Memory(_) => None,
        }
    }

    /// p.
    pub fn p(&self) -> f32 {
        self.p
    }

    /// The mask of x [T, k], row-major: whether an element is kept. For tests, and for the same in
    /// another framework; no operation needs it.
    ///
    /// # Errors
    /// [`Error::Dropout`] if the seed is in device memory.
    pub fn kept(&self, [t, k]: [usize; 2]) -> Result<Vec<bool>> {
        if matches!(self.source, Source::Memory(_)) {
            let expected = "of a seed and an offset on the host, for its mask";
            return Err(Error::Dropout { expected, got: Some(self.p) });
        }
        let mask = self.mask();
        Ok((0..t)
            .flat_map(|row| (0..k).map(move |col| (row, col)))
            .map(|(t, j)| mask.keeps(t, j))
            .collect())
    }

    pub(crate) fn source(&self) -> &Source<'a> {
        &self.source
    }

    /// What an element's 16 bits are compared with.
    pub(crate) fn threshold(&self) -> u32 {
        (65536.0 * f64::from(self.p)).round().min(65535.0) as u32
    }

    /// 1 / (1 − p).
    pub(crate) fn inv_keep(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.p))) as f32
    }

    /// The mask, on the CPU.
    pub(crate) fn mask(&self) -> Mask {
        let [seed, offset] = match self.source {
            Source::Values { seed, offset } => [seed, offset],
            Source::Memory(state) => {
                let words: &[u32] = bytemuck::cast_slice(&state.host_bytes()[..16]);
                [0, 2].map(|i| u64::from(words[i]) | u64::from(words[i + 1]) << 32)
            }
        };
        Mask { seed, offset, threshold: self.threshold() }
    }
}

fn check_p(p: f32) -> Result<f32> {
    if (0.0..1.0).contains(&p) {
        return Ok(p);
    }
    Err(Error::Dropout { expected: "a probability p, 0 <= p < 1", got: Some(p) })
}

/// A seed and an offset in the memory of a device, for [`Dropout::from_state`].
#[derive(Debug)]
pub struct DropoutState(Tensor);

impl DropoutState {
    /// # Errors
    /// As for [`Tensor::zeros`].
    pub fn new(device: &Device, seed: u64, offset: u64) -> Result<Self> {
        let mut state = DropoutState(Tensor::zeros(device, [4], DType::F32)?);
        state.set(seed, offset)?;
        Ok(state)
    }

    /// Overwrites both, in the order of the device's stream.
    ///
    /// # Errors
    /// [`Error::Driver`]; [`Error::Capture`] while the stream captures.
    pub fn set(&mut self, seed: u64, offset: u64) -> Result<()> {
        let words = [seed, seed >> 32, offset, offset >> 32];
        self.0.copy_from_slice(&words.map(|word| f32::from_bits(word as u32)))
    }
}

/// The mask of the reference.
pub(crate) struct Mask {
    seed: u64,
    offset: u64,
    threshold: u32,
}

impl Mask {
    /// Whether element (t, j) is kept.
    pub(crate) fn keeps(&self, t: usize, j: usize) -> bool {
        let row = self.offset.wrapping_add(t as u64);
        let call = 4 * (j / 32) + j % 8 / 2;
        let words = philox([call as u32, row as u32, (row >> 32) as u32, 0], self.seed);
        words[j % 32 / 8] >> (j % 2 * 16) & 0xffff >= self.threshold
    }
}

/// Philox4x32-10: four random words of a counter and a key.
fn philox(mut c: [u32; 4], key: u64) -> [u32; 4] {
    let mut key = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let product = |multiplier: u64, word: u32| {
            let product = multiplier * u64::from(word);
            [(product >> 32) as u32, product as u32]
        };
        let [high0, low0] = product(0xd251_1f53, c[0]);
        let [high1, low1] = product(0xcd9e_8d57, c[2]);
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    /// The known answers that Random123, the authors' library, is tested with.
    #[test]
    fn philox_has_the_known_answers() {
        let ones = [u32::MAX; 4];
        assert_eq!(philox([0; 4], 0), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox(ones, u64::MAX), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], 0x299f31d0_a4093822),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn p_is_a_probability_below_one() {
        for p in [0.0, 0.1, 0.5, 0.999_999_9] {
            assert_eq!(Dropout::new(p, 1, 2).unwrap().p(), p);
        }
        for p in [-0.1, 1.0, 1.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(Dropout::new(p, 1, 2), Err(Error::Dropout { got: Some(_), .. })));
        }
        let threshold = |p| Dropout::new(p, 0, 0).unwrap().threshold();
        assert_eq!([0.0, 0.1, 0.5, 0.999_999_9].map(threshold), [0, 6554, 32768, 65535]);
    }

    fn bits(p: f32, seed: u64, offset: u64, [t, k]: [usize; 2]) -> Vec<bool> {
        Dropout::new(p, seed, offset).unwrap().kept([t, k]).unwrap()
    }

    /// The share of equal elements, which of independent masks is p² + (1 − p)².
    fn agreement(a: &[bool], b: &[bool]) -> f64 {
        a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
    }

    /// Five standard errors of a share of n elements.
    fn five_errors(share: f64, n: usize) -> f64 {
        5.0 * (share * (1.0 - share) / n as f64).sqrt()
    }

    #[test]
    fn masks_keep_their_share_of_every_row_and_column() {
        let (t, k) = (256, 320);
        for p in [0.05f32, 0.1, 0.5, 0.9] {
            let keep = 1.0 - Dropout::new(p, 3, 0).unwrap().threshold() as f64 / 65536.0;
            let all = bits(p, 3, 77, [t, k]);
            let share = |of: &mut dyn Iterator<Item = bool>, n: usize| {
                let share = of.filter(|&kept| kept).count() as f64 / n as f64;
                assert_abs_diff_eq!(share, keep, epsilon = five_errors(keep, n));
            };
            share(&mut all.iter().copied(), t * k);
            (0..t).for_each(|row| share(&mut all[row * k..][..k].iter().copied(), k));
            (0..k).for_each(|col| share(&mut all.iter().skip(col).step_by(k).copied(), t));
        }
    }

    #[test]
    fn neighbours_seeds_and_offsets_are_independent() {
        let (t, k) = (256, 320);
        for p in [0.1f32, 0.5] {
            let p64 = f64::from(p);
            let expected = p64 * p64 + (1.0 - p64) * (1.0 - p64);
            let all = bits(p, 3, 0, [t, k]);
            let check = |a: &[bool], b: &[bool]| {
                let epsilon = five_errors(expected, a.len()) + 1e-4;
                assert_abs_diff_eq!(agreement(a, b), expected, epsilon = epsilon);
            };
            // Shifted along a row by each distance within a call, and along a column.
            for shift in [1, 2, 7, 8, 16, 24, 32, k, 2 * k, 16 * k] {
                check(&all[shift..], &all[..all.len() - shift]);
            }
            for other in [bits(p, 4, 0, [t, k]), bits(p, 3 | 1 << 32, 0, [t, k])] {
                check(&all, &other);
            }
            for offset in [1 << 20, 1 << 32, u64::MAX - 10] {
                check(&all, &bits(p, 3, offset, [t, k]));
            }
        }
    }

    #[test]
    fn a_cut_batch_has_the_same_mask() {
        let (t, k) = (40, 72);
        for offset in [5, u64::from(u32::MAX) - 7, u64::MAX - 3] {
            let whole = bits(0.3, 9, offset, [t, k]);
            for cut in [1, 13, 39] {
                let first = bits(0.3, 9, offset, [cut, k]);
                let rest = bits(0.3, 9, offset.wrapping_add(cut as u64), [t - cut, k]);
                assert_eq!([first, rest].concat(), whole);
            }
        }
    }

    #[test]
    fn a_state_is_as_its_values() {
        let mut state = DropoutState::new(&Device::cpu(), 0, 0).unwrap();
        for (seed, offset) in [(1, 2), (u64::MAX, 0x7fc0_0000_0000_0001), (0xffc0_0001, 3 << 40)] {
            state.set(seed, offset).unwrap();
            let mask = Dropout::from_state(0.5, &state).unwrap().mask();
            assert_eq!([mask.seed, mask.offset], [seed, offset]);
            let words = [seed, seed >> 32, offset, offset >> 32].map(|w| f32::from_bits(w as u32));
            let view = TensorView::from_host(&words, [4]).unwrap();
            let mask = Dropout::from_view(0.5, view).unwrap().mask();
            assert_eq!([mask.seed, mask.offset], [seed, offset]);
            let on_host = Dropout::from_state(0.5, &state).unwrap().kept([1, 1]);
            assert!(matches!(on_host, Err(Error::Dropout { .. })));
        }
    }
}
