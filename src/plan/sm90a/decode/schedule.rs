//! Which rows of W0 and A the CTAs of `kernels/sm90a/decode.cu` read.

use crate::manifest::sm90a::decode::{
    BUFFERS_BY_ROWS, BUFFERS_BY_STEPS, BUFFERS_BY_TOKENS, CHUNK_BYTES, CHUNK_TOKENS,
    FORWARD_HALF_TOKENS, HALF_PROJ_TOKENS, INPUT_GRAD_HALF_TOKENS, INPUT_GRAD_TILES_T,
    MAX_SHARED_BYTES, MAX_STAGES, MOST_ROWS, PAD_BYTES, STAGES_AT, STEP, STEP_BYTES, TILES_T,
    TURNS_ROWS,
};
use crate::manifest::sm90a::ptx::{BOX_COLS, SHARED_ALIGNMENT};
use crate::plan::cost::CostModel;
use crate::plan::sm90a::grads;

/// The most tokens the kernel serves.
pub(crate) const MOST_TOKENS: usize = TILES_T[TILES_T.len() - 1];

/// Shared memory with which two CTAs fit on an SM.
pub(super) const HALF_SHARED_BYTES: usize = 113 << 10;

/// Of that, for barriers, and for alignment.
pub(super) const BARRIER_BYTES: usize = STAGES_AT + SHARED_ALIGNMENT;

/// Flags for S.
pub(crate) const FLAGS: usize = 2;

/// Rows of a cluster, at least, with two CTAs per SM: with fewer, X is read too often.
const LEAST_ROWS: usize = 32;

/// Columns of S of a cluster, at most, with one CTA per SM.
const PROJ_ROWS: usize = 32;

/// Columns of S of a cluster, at most, with two CTAs per SM.
const HALF_PROJ_ROWS: usize = 64;

/// Clusters left for S, at least, with two CTAs per SM.
pub(super) const HALF_PROJ_CLUSTERS: usize = 2;

/// How a product reads its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reads {
    /// The forward.
    Rows,
    /// The input gradient: columns, in whole boxes, as the rows of the transposed. Columns of the
    /// last box that belong to another CTA come from the L2.
    Columns,
}

impl Reads {
    /// Rows of a share are a multiple of this.
    pub(super) fn unit(self) -> usize {
        match self {
            Reads::Rows => 8,
            Reads::Columns => BOX_COLS,
        }
    }
}

/// The stages of a CTA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    /// Tokens and rows of a weight in a stage.
    pub(super) tile_t: usize,
    pub(super) rows: usize,
    /// The CTAs of a cluster add up their sums.
    pub(super) split: bool,
    /// The cluster computes S.
    pub(super) projects: bool,
}

impl Ring {
    pub(super) fn stage_bytes(&self) -> usize {
        (self.tile_t + self.rows) * STEP_BYTES
    }

    /// Behind the stages, for the epilogue: the buffers of the cluster reduce, and the output.
    /// wgmma reads up to 56 rows beyond a stage.
    pub(super) fn epilogue_bytes(&self) -> usize {
        let (rows, buffers) = match self.rows <= TURNS_ROWS {
            false => (MOST_ROWS, BUFFERS_BY_ROWS),
            true if self.tile_t == 64 && !self.projects => (TURNS_ROWS, BUFFERS_BY_TOKENS),
            true => (TURNS_ROWS, BUFFERS_BY_STEPS),
        };
        // Of a cluster that splits k, each CTA finishes half of the chunks.
        let chunks = self.tile_t / CHUNK_TOKENS;
        let (chunks, buffers) =
            if self.split { (chunks.div_ceil(2), buffers) } else { (chunks, 0) };
        let output = chunks * CHUNK_TOKENS * (rows * 2 + PAD_BYTES);
        (buffers * chunks * CHUNK_BYTES + output).max(56 * STEP_BYTES)
    }

    /// Stages that keep `in_flight` bytes of the weight in flight, as far as they fit.
    pub(super) fn stages(&self, shared_bytes: usize, in_flight: f64) -> usize {
        let fit = (shared_bytes - BARRIER_BYTES - self.epilogue_bytes()) / self.stage_bytes();
        let stages =
            (in_flight as usize / (self.rows * STEP_BYTES)).max(4).min(fit).min(MAX_STAGES);
        // Warpgroups that alternate steps have stages of their own.
        stages - if self.rows <= TURNS_ROWS { stages % 2 } else { 0 }
    }
}

/// A launch. The rows of W0 are cut into shares, each of a CTA or of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The tile of tokens, one of [`TILES_T`].
    pub(crate) tile_t: usize,
    /// Dynamic shared memory of a CTA.
    pub(crate) shared_bytes: usize,
    /// The CTAs of a cluster split a share along k.
    pub(crate) split: bool,
    /// Rows of a share.
    pub(crate) rows: usize,
    /// Shares per CTA or cluster, one after the other; 1 if split.
    pub(crate) rounds: usize,
    /// Clusters that compute H.
    pub(crate) clusters: usize,
    /// Stages of their CTAs.
    pub(crate) stages: usize,
    /// Steps of W0 to prefetch into the L2 before the PDL wait.
    pub(crate) prefetch_steps: usize,
    /// The step at which their CTAs trigger PDL.
    pub(crate) pdl_trigger_step: usize,
    /// The clusters that compute S.
    pub(crate) proj: ProjectionSchedule,
}

/// The clusters that compute S, each some columns of some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProjectionSchedule {
    pub(crate) clusters: usize,
    /// Clusters for the same tokens.
    pub(crate) ranks: usize,
    /// Columns of S of a cluster: rows of A.
    pub(crate) rows: usize,
    /// Tokens of a cluster, and of a stage.
    pub(crate) tokens: usize,
    pub(crate) tile_t: usize,
    pub(crate) stages: usize,
    /// Steps of A and X to prefetch into the L2 before the PDL wait.
    pub(crate) prefetch_steps: usize,
}

impl ProjectionSchedule {
    fn new(
        [t, r]: [usize; 2],
        reads: Reads,
        ranks: usize,
        tile_t: usize,
        shared_bytes: usize,
    ) -> Self {
        let rows = r.div_ceil(ranks.max(1)).next_multiple_of(8).max(8);
        let (ranks, slices) = (r.div_ceil(rows), t.div_ceil(tile_t));
        let loaded = rows.next_multiple_of(reads.unit());
        let ring = Ring { tile_t, rows: loaded, split: true, projects: true };
        let stages = ring.stages(shared_bytes, f64::INFINITY);
        let (clusters, tokens) = (ranks * slices, t.div_ceil(slices));
        ProjectionSchedule { clusters, ranks, rows, tokens, tile_t, stages, prefetch_steps: 0 }
    }
}

/// Shared memory of a step of dA or dB, with its alignment.
fn grads_bytes(reads: Reads, t: usize, r: usize) -> usize {
    match reads {
        Reads::Rows => 0,
        Reads::Columns => grads::bytes_beside(t, r) + SHARED_ALIGNMENT,
    }
}

impl Schedule {
    /// For H (T×d) over k, with S (T×r) unless r is 0, on `clusters` clusters.
    pub(crate) fn forward(sizes: [usize; 4], clusters: usize, cost: &CostModel) -> Self {
        Self::new(sizes, Reads::Rows, clusters, cost)
    }

    /// For dX (T×k) over d, with dS (T×r), dA and dB; `None` for more tokens than a tile has.
    pub(crate) fn input_grad(sizes: [usize; 4], clusters: usize, cost: &CostModel) -> Option<Self> {
        let few = INPUT_GRAD_TILES_T.iter().any(|&tile| sizes[0] <= tile);
        few.then(|| Self::new(sizes, Reads::Columns, clusters, cost))
    }

    /// In the letters of the forward.
    fn new(sizes: [usize; 4], reads: Reads, clusters: usize, cost: &CostModel) -> Self {
        let halves = Self::halves(sizes, reads, clusters, cost);
        halves.unwrap_or_else(|| Self::wholes(sizes, reads, clusters, cost))
    }

    /// Whether a launch whose clusters each read these rows of k elements is short.
    fn is_short(rows: usize, k: usize, cost: &CostModel) -> bool {
        (rows * k) as f64 <= cost.decode_short_elements
    }

    /// Two CTAs per SM, for layers where each reads little: memory idles between two launches, so a
    /// CTA of the next launch starts early and prefetches W0 meanwhile.
    fn halves(
        [t, d, k, r]: [usize; 4],
        reads: Reads,
        clusters: usize,
        cost: &CostModel,
    ) -> Option<Self> {
        let most_tokens = match reads {
            Reads::Rows => FORWARD_HALF_TOKENS,
            Reads::Columns => INPUT_GRAD_HALF_TOKENS,
        };
        let tile_t = *TILES_T.iter().find(|&&tile| t <= tile && tile <= most_tokens)?;
        let proj_tile = tile_t.min(HALF_PROJ_TOKENS);
        let slices = t.div_ceil(proj_tile);
        // No more clusters than have SMs of their own: two CTAs that read W0 on one SM are the
        // slowest of the launch, and leave no room for the next. The order of sums along k depends
        // on this choice, so T must not.
        let left_to_s = if r > 0 { HALF_PROJ_CLUSTERS } else { 0 };
        let of_h = clusters.checked_sub(left_to_s).filter(|&clusters| clusters > 0)?;
        let least_rows = LEAST_ROWS.min(d.next_multiple_of(8));
        let rows = d.div_ceil(of_h).max(least_rows).next_multiple_of(reads.unit());
        if rows > TURNS_ROWS || !Self::is_short(rows, k, cost) {
            return None;
        }
        let of_h = d.div_ceil(rows);
        // S must not be late: all clusters left compute it, or as many as its columns need.
        let ranks = (clusters - of_h) / slices;
        let most_ranks = r.div_ceil(reads.unit().max(16));
        let ranks = ranks.clamp(r.div_ceil(HALF_PROJ_ROWS), most_ranks);
        let for_stages = HALF_SHARED_BYTES - grads_bytes(reads, t, r);
        let left = match tile_t {
            ..=16 => cost.decode_left_16,
            32 => cost.decode_left_32,
            _ => cost.decode_left_64,
        };
        let ring = Ring { tile_t, rows, split: true, projects: false };
        let steps = k.div_ceil(STEP).div_ceil(2);
        Some(Schedule {
            tile_t,
            shared_bytes: HALF_SHARED_BYTES,
            split: true,
            rows,
            rounds: 1,
            clusters: of_h,
            stages: ring.stages(for_stages, cost.decode_half_in_flight),
            prefetch_steps: cost.decode_prefetch as usize / (rows * STEP_BYTES),
            pdl_trigger_step: steps.saturating_sub(left as usize / (rows * STEP_BYTES)),
            proj: ProjectionSchedule {
                prefetch_steps: steps,
                ..ProjectionSchedule::new([t, r], reads, ranks, proj_tile, for_stages)
            },
        })
    }

    fn wholes([t, d, k, r]: [usize; 4], reads: Reads, clusters: usize, cost: &CostModel) -> Self {
        let tile_t = *TILES_T.iter().find(|&&tile| t <= tile).expect("plans look at T first");
        let for_stages = MAX_SHARED_BYTES - grads_bytes(reads, t, r);
        let projects = |rows, tile_t| {
            ProjectionSchedule::new([t, r], reads, r.div_ceil(rows), tile_t, for_stages)
        };
        // As few clusters as S allows. dS gets more if they fit. With two SMs idle, the next launch
        // has fully started when the slowest cluster ends.
        let (proj, more_down, left_over) = match reads {
            Reads::Rows => (projects(PROJ_ROWS, tile_t), None, 0),
            Reads::Columns => {
                let more = projects(HALF_PROJ_ROWS, tile_t.min(HALF_PROJ_TOKENS));
                (projects(HALF_PROJ_ROWS, tile_t), Some(more), 1)
            }
        };
        // If no cluster is left, H runs behind S.
        let of_h = clusters.saturating_sub(proj.clusters + left_over).max(1);
        // A cluster that splits k reads half as much of X, but needs a cluster reduce.
        let split = d.div_ceil(of_h) <= MOST_ROWS;
        let per_pair = if split { 1 } else { 2 };
        let stream_k = of_h * per_pair;
        let rounds = d.div_ceil(stream_k).div_ceil(MOST_ROWS);
        let rows = d.div_ceil(stream_k * rounds).next_multiple_of(reads.unit());
        let of_h = d.div_ceil(rows * rounds * per_pair);
        let (in_flight, prefetch) = match Self::is_short(rows * rounds * per_pair, k, cost) {
            true => (cost.decode_in_flight, cost.decode_prefetch),
            false if reads == Reads::Rows => {
                (cost.decode_long_forward_in_flight, cost.decode_long_prefetch)
            }
            false => (cost.decode_in_flight, cost.decode_long_prefetch),
        };
        let ring = Ring { tile_t, rows, split, projects: false };
        Schedule {
            tile_t,
            shared_bytes: MAX_SHARED_BYTES,
            split,
            rows,
            rounds,
            clusters: of_h,
            stages: ring.stages(for_stages, in_flight),
            prefetch_steps: prefetch as usize / (rows * STEP_BYTES),
            pdl_trigger_step: 0,
            proj: more_down
                .filter(|more| of_h + more.clusters + left_over <= clusters)
                .unwrap_or(proj),
        }
    }

    /// For the same dS (T×r) without dX, with the same bits.
    pub(crate) fn without_out(&self, [t, r]: [usize; 2]) -> Self {
        let shared_bytes = MAX_SHARED_BYTES;
        let ProjectionSchedule { ranks, tile_t, .. } = self.proj;
        let proj = ProjectionSchedule::new([t, r], Reads::Columns, ranks, tile_t, shared_bytes);
        Schedule { shared_bytes, clusters: 0, proj, ..*self }
    }

    /// The offset in shared memory of the steps of dA and dB, in a CTA that computes dX.
    pub(crate) fn grads_at(&self, [t, r]: [usize; 2]) -> usize {
        (self.shared_bytes - grads_bytes(Reads::Columns, t, r)) / SHARED_ALIGNMENT
            * SHARED_ALIGNMENT
    }

    /// Rows of X a CTA loads in a step: all T, or half of them if the CTAs of a cluster multicast
    /// X. A multiple of 8 then, as the swizzle needs.
    pub(crate) fn x_rows(&self, t: usize) -> usize {
        match !self.split && self.tile_t >= 32 {
            true => t.div_ceil(2).next_multiple_of(8),
            false => t,
        }
    }

    /// The grid.
    pub(crate) fn blocks(&self) -> usize {
        2 * (self.clusters + self.proj.clusters)
    }
}
