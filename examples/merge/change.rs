//! What happens to a tensor of the checkpoint.

use crate::Result;
use crate::shard::Shard;
use lora_kernels::peft::{ParameterAdapter, TensorEntry, TokenRows};
use lora_kernels::{DType, Tensor};
use std::ops::Range;
use std::rc::Rc;

/// A tensor, or the matrix of one expert in it, and what becomes of it.
#[derive(Clone)]
pub struct Change<'a> {
    pub weight: String,
    /// Where it is in the file, and its shape there. A tensor that is added has no bytes there.
    pub entry: TensorEntry,
    /// The element type that is written.
    pub dtype: DType,
    /// The shape that is written.
    pub shape: Vec<usize>,
    pub kind: Kind<'a>,
    pub allow_non_finite: bool,
}

#[derive(Clone)]
pub enum Kind<'a> {
    /// W0 + s·B A, of one adapter or, where head and embedding share a weight, of both.
    Update {
        /// What takes the place of the checkpoint's W0.
        base: Option<&'a Tensor>,
        updates: Vec<Update<'a>>,
    },
    /// Other numbers.
    Replace(&'a Tensor),
    /// The numbers of another tensor of the checkpoint.
    Copy { shard: &'a Shard, bytes: Range<u64> },
    /// A bias, to which a scaled one is added.
    AddBias { base: Option<&'a Tensor>, bias: &'a Tensor, scale: f32 },
    /// Some rows replaced.
    Rows(&'a TokenRows),
}

#[derive(Clone)]
pub struct Update<'a> {
    pub factors: Factors<'a>,
    /// s, times what the user asked for.
    pub scale: f32,
    /// Whether the weight is stored as [k, d].
    pub transposed: bool,
    /// The magnitudes of DoRA, [d].
    pub magnitude: Option<&'a Tensor>,
}

/// A [r, k] and B [d, r]; of a convolution, k are its channels and kernel.
#[derive(Clone)]
pub enum Factors<'a> {
    Pair {
        a: &'a Tensor,
        b: &'a Tensor,
    },
    /// Of one of the experts of a parameter, and of these rows of its B.
    Expert {
        of: Rc<ParameterAdapter>,
        expert: usize,
        rows: Range<usize>,
    },
}

impl Factors<'_> {
    pub fn rank(&self) -> usize {
        match self {
            Factors::Pair { a, .. } => a.shape().dims()[0],
            Factors::Expert { of, .. } => of.rank(),
        }
    }

    /// [d, k], the shape of the update.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Factors::Pair { a, b } => [b.shape().dims()[0], a.shape().dims()[1..].iter().product()],
            Factors::Expert { of, rows, .. } => [rows.len(), of.a.shape().cols()],
        }
    }
}

/// The experts' A and B of the parameters that were used last: the matrices of a parameter follow
/// each other, or a layer's few parameters do.
#[derive(Default)]
pub struct Split(Vec<(Rc<ParameterAdapter>, Experts)>);

/// A and B of each expert.
type Experts = Vec<[Vec<f32>; 2]>;

/// A layer has gate, up and down.
const KEPT: usize = 3;

impl Split {
    /// A and B in f32.
    pub fn numbers(&mut self, factors: &Factors<'_>) -> Result<[Vec<f32>; 2]> {
        let (of, expert, rows) = match factors {
            Factors::Pair { a, b } => return Ok([a.to_f32_vec()?, b.to_f32_vec()?]),
            Factors::Expert { of, expert, rows } => (of, *expert, rows),
        };
        let at = match self.0.iter().position(|(other, _)| Rc::ptr_eq(of, other)) {
            Some(at) => at,
            None => {
                if self.0.len() == KEPT {
                    self.0.remove(0);
                }
                self.0.push((of.clone(), of.split()?));
                self.0.len() - 1
            }
        };
        let [a, b] = &self.0[at].1[expert];
        let r = of.rank();
        Ok([a.clone(), b[rows.start * r..rows.end * r].to_vec()])
    }
}
