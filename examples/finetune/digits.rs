//! The images: read, split, rotated and put in a random order.

use crate::Result;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

pub const SIDE: usize = 8;
pub const PIXELS: usize = SIDE * SIDE;
pub const CLASSES: usize = 10;

/// About a fifth of the images.
const TEST_IMAGES: usize = 360;

/// Images with their labels: rows of [`PIXELS`] values between 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Digits {
    pub pixels: Vec<f32>,
    pub labels: Vec<usize>,
}

impl Digits {
    /// All 1797 images of `examples/data/digits.csv`, which is part of the executable.
    pub fn load() -> Result<Self> {
        let mut digits = Digits { pixels: Vec::new(), labels: Vec::new() };
        for line in include_str!("../data/digits.csv").lines() {
            let values = line.split(',').map(str::parse).collect::<Result<Vec<u8>, _>>()?;
            let [pixels @ .., label] = values.as_slice() else { return Err("empty line".into()) };
            if pixels.len() != PIXELS || usize::from(*label) >= CLASSES {
                return Err(format!("not an image and its label: {line}").into());
            }
            digits.pixels.extend(pixels.iter().map(|&pixel| f32::from(pixel) / 16.0));
            digits.labels.push((*label).into());
        }
        Ok(digits)
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The training and the test images. The split is one for all seeds, so that the accuracies
    /// of different seeds compare.
    pub fn split(&self) -> (Self, Self) {
        let order = permutation(self.len(), &mut Pcg64::seed_from_u64(1998));
        let (test, train) = order.split_at(TEST_IMAGES);
        (self.select(train), self.select(test))
    }

    /// The images with these indices.
    pub fn select(&self, indices: &[usize]) -> Self {
        let image = |&index: &usize| &self.pixels[index * PIXELS..][..PIXELS];
        Digits {
            pixels: indices.iter().flat_map(image).copied().collect(),
            labels: indices.iter().map(|&index| self.labels[index]).collect(),
        }
    }

    /// Minibatches of a new random order; the last one may be smaller.
    pub fn batches(&self, size: usize, rng: &mut Pcg64) -> Vec<Self> {
        permutation(self.len(), rng).chunks(size).map(|indices| self.select(indices)).collect()
    }

    /// Every image turned clockwise by 90 degrees.
    pub fn rotated(&self) -> Self {
        let turn = |image: &[f32]| -> [f32; PIXELS] {
            std::array::from_fn(|i| image[(SIDE - 1 - i % SIDE) * SIDE + i / SIDE])
        };
        let pixels = self.pixels.chunks(PIXELS).flat_map(turn).collect();
        Digits { pixels, labels: self.labels.clone() }
    }

    /// The share of images whose predicted label is theirs.
    pub fn accuracy(&self, predictions: &[usize]) -> f64 {
        let hits = self.labels.iter().zip(predictions).filter(|(label, guess)| label == guess);
        hits.count() as f64 / self.len() as f64
    }
}

/// The numbers below `n` in random order.
fn permutation(n: usize, rng: &mut Pcg64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_there() {
        let digits = Digits::load().unwrap();
        assert_eq!(digits.pixels.len(), 1797 * PIXELS);
        assert!(digits.pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        let mut counts = [0; CLASSES];
        digits.labels.iter().for_each(|&label| counts[label] += 1);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn split_shares_all_images_out() {
        let digits = Digits::load().unwrap();
        let (train, test) = digits.split();
        assert_eq!((train.len(), test.len()), (1437, 360));
        let sum = |digits: &Digits| digits.pixels.iter().map(|&p| f64::from(p)).sum::<f64>();
        assert_eq!(sum(&train) + sum(&test), sum(&digits));
    }

    #[test]
    fn batches_hold_every_image_once() {
        let digits = Digits::load().unwrap();
        let batches = digits.batches(64, &mut Pcg64::seed_from_u64(0));
        assert_eq!(batches.last().map(Digits::len), Some(1797 % 64));
        let mut counts = [0; CLASSES];
        batches.iter().flat_map(|batch| &batch.labels).for_each(|&label| counts[label] += 1);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn rotation_turns_clockwise() {
        let mut pixels = vec![0.0; PIXELS];
        pixels[..SIDE].fill(1.0);
        let top = Digits { pixels, labels: vec![7] };
        let right = top.rotated();
        for (i, &pixel) in right.pixels.iter().enumerate() {
            assert_eq!(pixel, if i % SIDE == SIDE - 1 { 1.0 } else { 0.0 }, "pixel {i}");
        }
        assert_eq!(top, right.rotated().rotated().rotated());
    }
}
