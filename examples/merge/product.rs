//! W0 + s·B A on the CPU: sums in f64, rounded once to f32, by all cores.
//!
//! An element is summed in the order of the rank by one thread, so its bits depend neither on the
//! number of threads nor on where a part of the rows begins.

use std::num::NonZeroUsize;
use std::thread;

/// Columns of A that are read for one row of B after the other: in f64, and at the usual ranks, they
/// stay in the second-level cache.
const TILE: usize = 256;

/// Rows and columns whose sums stay in registers.
const ROWS: usize = 2;
const COLS: usize = 8;

/// A [r, k] in f64, tile after tile, each row of a tile one after the other.
pub struct Tiles {
    numbers: Vec<f64>,
    rank: usize,
    cols: usize,
}

impl Tiles {
    pub fn new(a: &[f32], rank: usize) -> Self {
        let cols = a.len() / rank;
        let mut numbers = Vec::with_capacity(a.len());
        for first in (0..cols).step_by(TILE) {
            let width = TILE.min(cols - first);
            for row in a.chunks_exact(cols) {
                numbers.extend(row[first..first + width].iter().map(|&number| f64::from(number)));
            }
        }
        Tiles { numbers, rank, cols }
    }

    /// Adds s·B A to W [n, k], with B [n, r].
    pub fn add_product(&self, w: &mut [f32], b: &[f32], s: f32) {
        let rows = b.len() / self.rank;
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let rows_each = rows.div_ceil(threads).next_multiple_of(ROWS);
        if rows_each >= rows {
            return self.add_rows(w, b, s.into());
        }
        let parts = w.chunks_mut(rows_each * self.cols).zip(b.chunks(rows_each * self.rank));
        thread::scope(|scope| {
            for (w, b) in parts {
                scope.spawn(move || self.add_rows(w, b, s.into()));
            }
        });
    }

    fn add_rows(&self, w: &mut [f32], b: &[f32], s: f64) {
        for first in (0..self.cols).step_by(TILE) {
            let width = TILE.min(self.cols - first);
            let tile = &self.numbers[first * self.rank..][..self.rank * width];
            let rows = w.chunks_mut(ROWS * self.cols).zip(b.chunks(ROWS * self.rank));
            for (w, b) in rows {
                for col in (0..width).step_by(COLS) {
                    let at = first + col;
                    match (b.len() == ROWS * self.rank, width - col >= COLS) {
                        (true, true) => {
                            let b = std::array::from_fn(|row| &b[row * self.rank..][..self.rank]);
                            let sums = sums(tile, width, col, b);
                            for (row, sums) in sums.iter().enumerate() {
                                let w = &mut w[row * self.cols + at..][..COLS];
                                for (w, sum) in w.iter_mut().zip(sums) {
                                    *w = (f64::from(*w) + s * sum) as f32;
                                }
                            }
                        }
                        _ => self.add_edge(w, b, s, tile, [first, width, col]),
                    }
                }
            }
        }
    }

    /// The same where fewer rows or columns are left.
    fn add_edge(&self, w: &mut [f32], b: &[f32], s: f64, tile: &[f64], at: [usize; 3]) {
        let [first, width, col] = at;
        for (w, b) in w.chunks_mut(self.cols).zip(b.chunks(self.rank)) {
            for col in col..width.min(col + COLS) {
                let a = tile.iter().skip(col).step_by(width);
                let sum = a.zip(b).fold(0.0, |sum, (a, &b)| sum + f64::from(b) * a);
                let w = &mut w[first + col];
                *w = (f64::from(*w) + s * sum) as f32;
            }
        }
    }
}

/// Σ b[row][j] · a[j][col..col + COLS] for each of the rows.
fn sums(tile: &[f64], width: usize, col: usize, b: [&[f32]; ROWS]) -> [[f64; COLS]; ROWS] {
    let mut sums = [[0.0; COLS]; ROWS];
    for (j, a) in tile.chunks_exact(width).enumerate() {
        let a: &[f64; COLS] = a[col..col + COLS].try_into().expect("COLS columns");
        for (sums, b) in sums.iter_mut().zip(b) {
            let b = f64::from(b[j]);
            for (sum, a) in sums.iter_mut().zip(a) {
                *sum += b * a;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(at: usize) -> f32 {
        ((at * 7919 + 13) % 997) as f32 / 498.25 - 1.0
    }

    /// Against the sum of each element by itself, also at the edges of tiles and of blocks.
    #[test]
    fn every_element_is_summed_in_order() {
        for (rows, rank, cols) in [
            (1, 1, 1),
            (2, 3, 8),
            (3, 2, 7),
            (5, 64, 300),
            (37, 5, 521),
            (8, 16, 256),
            (1, 9, 2048),
        ] {
            let numbers = |count: usize, from| (0..count).map(|at| number(at + from)).collect();
            let (a, b): (Vec<f32>, Vec<f32>) = (numbers(rank * cols, 3), numbers(rows * rank, 5));
            let w0: Vec<f32> = numbers(rows * cols, 7);
            let mut w = w0.clone();
            Tiles::new(&a, rank).add_product(&mut w, &b, 0.7);
            for (at, (w, w0)) in w.iter().zip(&w0).enumerate() {
                let (row, col) = (at / cols, at % cols);
                let product =
                    |j: usize| f64::from(b[row * rank + j]) * f64::from(a[j * cols + col]);
                let sum = (0..rank).fold(0.0, |sum, j| sum + product(j));
                let want = (f64::from(*w0) + f64::from(0.7f32) * sum) as f32;
                assert_eq!(
                    w.to_bits(),
                    want.to_bits(),
                    "{rows} x {cols}, rank {rank}: {row}, {col}"
                );
            }
        }
    }
}
