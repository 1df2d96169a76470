//! What kernels/sm80/align.cu copies, because dense rows of its size cannot all start at multiples
//! of 16 bytes. A pass has room for these copies in its workspace.

use crate::manifest::sm80::align::COLS;
use crate::plan::scratch::Needs;
use crate::problem::Problem;

/// Tokens for which tiles shift W0 on its way to shared memory. For more it is copied. NOTES: µs of
/// a forward on an H200 with a copy, and without: for 128 tokens of 4095 → 4097 40 and 40, of
/// 4095 → 14337 119 and 105; for 256 tokens 54 and 56, 162 and 162.
pub(super) const W0_TOKENS: usize = 128;

/// Elements of 16 bits in 16 bytes.
const CHUNK: usize = 8;

/// The sizes of a problem as the rows of its copies are long.
pub(crate) fn padded(problem: &Problem) -> Problem {
    problem.padded_to(CHUNK)
}

/// The columns of a copy.
pub(super) fn padded_size(cols: usize) -> usize {
    cols.next_multiple_of(CHUNK)
}

/// The memory of the copy of a matrix, if its size needs one: whole lines of 128 bytes, so that
/// what follows starts aligned. There is none of what fits on no GPU, so that needs and their bytes
/// are a `usize`.
pub(crate) fn copy_needs([rows, cols]: [usize; 2]) -> Needs {
    const MOST: usize = 1 << 40;
    if cols.is_multiple_of(CHUNK) || rows * cols > MOST {
        return Needs::default();
    }
    Needs { partials: (rows * padded_size(cols)).div_ceil(64) * 32, flags: 0 }
}

/// The CTAs that copy a matrix.
pub(crate) fn copy_ctas([rows, cols]: [usize; 2]) -> usize {
    rows * cols.div_ceil(COLS)
}

/// Copies of X and A.
pub(super) fn of_forward(problem: &Problem) -> Needs {
    let (t, k) = (problem.t(), problem.k());
    copy_needs([t, k]).and(copy_needs([problem.rank(), k]))
}

/// Copies of each W0.
pub(super) fn of_w0(problem: &Problem) -> Needs {
    let each = problem.projections().iter().map(|&(d, _)| copy_needs([d, problem.k()]));
    each.fold(Needs::default(), Needs::and)
}

/// Copies of X, A and each dH.
pub(super) fn of_backward(problem: &Problem) -> Needs {
    let dh = problem.projections().iter().map(|&(d, _)| copy_needs([problem.t(), d]));
    dh.fold(of_forward(problem), Needs::and)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::{problems, shapes};

    /// Whole chunks of 16 bytes hold every row of a copy, and the next one starts aligned.
    #[test]
    fn copies_have_room() {
        for [rows, cols, ..] in shapes() {
            let Needs { partials, flags } = copy_needs([rows, cols]);
            let context = format!("{rows}×{cols}");
            assert_eq!((partials % 32, flags), (0, 0), "{context}");
            match cols % CHUNK {
                0 => assert_eq!(partials, 0, "{context}"),
                _ => assert!(4 * partials >= rows * cols.div_ceil(CHUNK) * 16, "{context}"),
            }
        }
    }

    /// Padded sizes need no copy, and are no more than rows of copies have room for.
    #[test]
    fn padded_sizes_are_aligned() {
        for problem in problems() {
            let padded = padded(&problem);
            let copies = of_backward(&padded).and(of_w0(&padded));
            assert_eq!(copies, Needs::default(), "{problem}");
            assert!((problem.k()..problem.k() + CHUNK).contains(&padded.k()), "{problem}");
            assert_eq!((padded.t(), padded.rank()), (problem.t(), problem.rank()), "{problem}");
        }
    }

    /// In the kernel, CTA i of a matrix copies COLS columns of a row.
    #[test]
    fn every_chunk_is_copied_once() {
        let sizes: [[usize; 2]; 6] =
            [[1, 1], [4, 1024], [5, 1023], [9, 1025], [16, 4095], [3, 2049]];
        for [rows, cols] in sizes {
            let in_row = cols.div_ceil(COLS);
            let mut copied = vec![0; rows * cols.div_ceil(CHUNK)];
            for cta in 0..copy_ctas([rows, cols]) {
                let [row, col0] = [cta / in_row, cta % in_row * COLS];
                for col in (col0..col0 + COLS).step_by(CHUNK).filter(|&col| col < cols) {
                    copied[row * cols.div_ceil(CHUNK) + col / CHUNK] += 1;
                }
            }
            assert!(copied.iter().all(|&times| times == 1), "{rows}×{cols}");
        }
    }
}
