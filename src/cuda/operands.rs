//! The operands of a pass, as the launches take them.

use crate::driver::params::{Dropout, Operand, Parts};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::Needs;
use crate::plan::sm90a::grads::Splits;
use crate::problem::{MAX_PROJECTIONS, Problem};
use std::iter;

/// Projections that share X, and what a pass works on: the forward, or the backward up to dX.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Layers {
    pub(super) dtype: DType,
    pub(super) t: usize,
    pub(super) k: usize,
    /// X or dX, T×k.
    pub(super) x: Operand,
    /// The layers' A, one below the other, R×k with the sum of their ranks as R.
    pub(super) a: Operand,
    /// S or dS, T×R.
    pub(super) s: Operand,
    /// Of X in S and dA, and of dS A in dX.
    pub(super) dropout: Option<Dropout>,
    /// The first `count` are used.
    of: [Layer; MAX_PROJECTIONS],
    count: usize,
}

/// What each has for itself. Without an adapter, r = 0.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Layer {
    pub(super) d: usize,
    pub(super) r: usize,
    /// W0, d×k.
    pub(super) w0: Operand,
    /// B, d×r.
    pub(super) b: Operand,
    /// H or dH, T×d.
    pub(super) h: Operand,
    pub(super) scale: f32,
}

impl Layer {
    const NONE: Layer =
        Layer { d: 0, r: 0, w0: Operand::NONE, b: Operand::NONE, h: Operand::NONE, scale: 0.0 };
}

impl Layers {
    /// Without layers yet.
    pub(super) fn new(problem: &Problem, [x, a, s]: [Operand; 3]) -> Self {
        let (dtype, t, k) = (problem.dtype(), problem.t(), problem.k());
        let of = [Layer::NONE; MAX_PROJECTIONS];
        Layers { dtype, t, k, x, a, s, dropout: None, of, count: 0 }
    }

    pub(super) fn push(&mut self, layer: Layer) {
        self.of[self.count] = layer;
        self.count += 1;
    }

    /// The same with the scales of S where X has dropout: its factor 1 / (1 − p) is theirs.
    pub(super) fn scaled_for_s(&self) -> Self {
        let mut scaled = *self;
        if let Some(Dropout { inv_keep, .. }) = self.dropout {
            scaled.of.iter_mut().for_each(|layer| layer.scale *= inv_keep);
        }
        scaled
    }

    pub(super) fn of(&self) -> &[Layer] {
        &self.of[..self.count]
    }

    /// What the forward reads, with rows and columns: X, A, and W0 of each if that is wanted.
    pub(super) fn read_by_forward(
        &mut self,
        with_w0: bool,
    ) -> impl Iterator<Item = (&mut Operand, [usize; 2])> {
        let (t, k, rank) = (self.t, self.k, self.rank());
        let of_each = self.of[..self.count].iter_mut().filter(move |_| with_w0);
        let w0 = of_each.map(move |layer| (&mut layer.w0, [layer.d, k]));
        [(&mut self.x, [t, k]), (&mut self.a, [rank, k])].into_iter().chain(w0)
    }

    /// What the backward reads of these, likewise: dH of each, and for dX A and W0.
    pub(super) fn read_by_backward(
        &mut self,
        [with_a, with_w0]: [bool; 2],
    ) -> impl Iterator<Item = (&mut Operand, [usize; 2])> {
        let (t, k, rank) = (self.t, self.k, self.rank());
        let of_each =
            self.of[..self.count].iter_mut().flat_map(move |Layer { d, w0, h, .. }| {
                [(true, (h, [t, *d])), (with_w0, (w0, [*d, k]))]
            });
        let all = iter::once((with_a, (&mut self.a, [rank, k]))).chain(of_each);
        all.filter_map(|(wanted, operand)| wanted.then_some(operand))
    }

    /// R.
    pub(super) fn rank(&self) -> usize {
        self.of().iter().map(|layer| layer.r).sum()
    }

    /// Each with its own columns of S or dS.
    pub(super) fn with_columns(&self) -> impl Iterator<Item = (&Layer, Operand)> {
        self.of().iter().scan(0, |end, layer| {
            let start = *end;
            *end += layer.r;
            Some((layer, self.s.columns_from(start, self.dtype)))
        })
    }

    /// Each with its own rows of A and columns of S.
    pub(super) fn with_operands(&self) -> impl Iterator<Item = (&Layer, [Operand; 2])> {
        let mut a = self.a;
        self.with_columns().map(move |(layer, s)| {
            let of_layer = a;
            a.data += layer.r as u64 * a.ld as u64 * self.dtype.bytes() as u64;
            (layer, [of_layer, s])
        })
    }

    /// Whether all rows start at multiples of 16 bytes, as the tensor memory accelerator needs.
    pub(super) fn is_aligned(&self) -> bool {
        let of_all = [self.x, self.a, self.s].into_iter();
        let of_each = self.of().iter().flat_map(|layer| [layer.w0, layer.b, layer.h]);
        of_all.chain(of_each).all(|operand| operand.is_aligned())
    }

    /// Overwrites an entry for every layer; the others stay.
    pub(super) fn fill<T>(
        &self,
        entries: &mut [T; MAX_PROJECTIONS],
        of: impl Fn(&Layer) -> Result<T>,
    ) -> Result<()> {
        let mut each = entries.iter_mut().zip(self.of());
        each.try_for_each(|(entry, layer)| {
            *entry = of(layer)?;
            Ok(())
        })
    }
}

/// Where layers begin, if the outputs of each are counted in so many at a time, and where the last
/// one ends.
pub(super) fn parts(layers: &Layers, unit: usize) -> (Parts, i32) {
    let mut parts = Parts::NONE;
    let (mut outputs, mut end, mut ranks) = (0, 0, 0);
    for (i, layer) in layers.of().iter().enumerate() {
        (parts.start[i], parts.rank_start[i]) = (outputs, ranks);
        (parts.rank[i], parts.scale[i]) = (layer.r as i32, layer.scale);
        end = outputs + layer.d as i32;
        outputs += layer.d.next_multiple_of(unit) as i32;
        ranks += layer.r as i32;
    }
    (parts, end)
}

/// What the gradients of A and B are made of, and where they go.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Gradients {
    pub(super) x: Operand,
    pub(super) s: Operand,
    /// Dense, as every dB.
    pub(super) da: u64,
    pub(super) db: [u64; MAX_PROJECTIONS],
    /// Of dA and dB.
    pub(super) dtype: DType,
    /// Added to what is there.
    pub(super) accumulate: bool,
    /// The splits of T in which Hopper's kernels compute dA, and where they meet.
    pub(super) splits: Splits,
    pub(super) splits_at: Handover,
}

impl Gradients {
    /// Whether dA and dB are rounded to 16 bits.
    pub(super) fn rounds(&self) -> bool {
        self.dtype != DType::F32
    }

    /// As [`Layers::is_aligned`].
    pub(super) fn is_aligned(&self) -> bool {
        let all = self.db.iter().fold(self.da, |all, db| all | db);
        self.x.is_aligned() && self.s.is_aligned() && all.is_multiple_of(16)
    }
}

/// Where CTAs tell each other what they have made: memory of the sizes that the plan asks for.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Handover {
    /// Zeros.
    pub(super) flags: u64,
    pub(super) partials: u64,
}

impl Handover {
    /// For a launch that needs none.
    pub(super) const NONE: Handover = Handover { flags: 0, partials: 0 };

    /// Hands out what `needs` counts, and goes on behind it.
    pub(super) fn take(&mut self, needs: Needs) -> Handover {
        let taken = *self;
        self.flags += 4 * needs.flags as u64;
        self.partials += 4 * needs.partials as u64;
        taken
    }
}
